"""Checks a GPU in parts of a few minutes each, and prints a table.

    python scripts/check_gpu.py                           # every part
    python scripts/check_gpu.py waits graphs --json out.json
    python scripts/check_gpu.py --small --device cpu      # that the parts run: sizes without meaning

Ends with status 1 where a part failed. `--help` lists the parts.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
import traceback
from pathlib import Path

import torch
from gpu import correct, speed, steps
from gpu.parts import PARTS, Bench, Row, as_json
from rich.console import Console
from rich.table import Table

from tfx.errors import UserError
from tfx.model.device import choose_device

# Importing these modules registers their parts.
SUBJECTS = (correct, steps, speed)
MARKS = {True: "ok", False: "FAILED", None: ""}


def run_parts(names: list[str], bench: Bench) -> dict[str, list[Row]]:
    """Runs the parts one after the other; one that raises has failed, and the next one runs all the same."""
    found: dict[str, list[Row]] = {}
    for name in names:
        start, rows = time.perf_counter(), found.setdefault(name, [])
        try:
            rows.extend(PARTS[name](bench))
        except Exception as error:
            traceback.print_exc()
            rows.append(Row("ran", f"{type(error).__name__}: {error}", False))
        rows.append(Row("time", f"{time.perf_counter() - start:.0f} s", None, time.perf_counter() - start))
    return found


def table(found: dict[str, list[Row]], title: str) -> Table:
    """All rows, part by part."""
    made = Table("part", "what", "value", "", title=title)
    for name, rows in found.items():
        for row in rows:
            made.add_row(name, row.what, row.value, MARKS[row.good])
        made.add_section()
    return made


def main(arguments: list[str] | None = None) -> int:
    """Returns the exit status."""
    listed = "\n".join(f"  {name:12} {' '.join(str(work.__doc__).split())}" for name, work in PARTS.items())
    parser = argparse.ArgumentParser(
        description=__doc__, epilog=f"parts:\n{listed}", formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("parts", nargs="*", help="the parts to run; none: all")
    parser.add_argument("--device", default="auto", help="as trainer.device")
    parser.add_argument("--small", action="store_true", help="sizes without meaning; always so without a GPU")
    parser.add_argument("--shakespeare", type=Path, help="folder with tinyshakespeare's input.txt")
    parser.add_argument("--json", type=Path, help="also writes the rows here")
    asked = parser.parse_args(arguments)
    if unknown := [name for name in asked.parts if name not in PARTS]:
        parser.error(f"no part is called {' or '.join(unknown)}: there are {', '.join(PARTS)}")
    try:
        device = choose_device(asked.device)
    except UserError as error:
        parser.error(str(error))
    shakespeare = None if asked.shakespeare is None else asked.shakespeare.absolute()
    bench = Bench(device, asked.small or device.type != "cuda", shakespeare)
    name = torch.cuda.get_device_name(device) if bench.is_cuda else "no GPU: sizes without meaning"
    found = run_parts(asked.parts or list(PARTS), bench)
    Console(width=None if sys.stdout.isatty() else 160).print(table(found, f"{name}, torch {torch.__version__}"))
    if asked.json is not None:
        content = {"device": name, "torch": torch.__version__, "parts": as_json(found)}
        asked.json.write_text(json.dumps(content, indent=1) + "\n")
    return int(any(row.good is False for rows in found.values() for row in rows))


if __name__ == "__main__":
    sys.exit(main())
