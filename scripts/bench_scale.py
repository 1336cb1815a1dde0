"""How preparing data scales: time and memory for 30 thousand, 300 thousand and 3 million pairs.

python scripts/bench_scale.py --part prepare --pairs 30000 300000 3000000

Each size is prepared in a fresh process with an empty cache. Memory is the most PSS of the process and its children
together, which counts a page that several of them share once.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from os import environ
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

# Words of a made-up language with the frequencies of a real one (Zipf), and pairs of about 13 words a side.
_WORDS, _MEAN_LENGTH = 60_000, 13
_ROWS_AT_ONCE = 20_000

# Runs in the fresh process: arguments are the folder and the context.
_PREPARE = """
import json, resource, sys, time
from tfx.config.compose import compose
config = compose(["dataset=parallel", f"dataset.path={sys.argv[1]}"]).dataset
from tfx.tasks.prepare import prepare_data
import numpy as np
times = [(time.perf_counter(), time.process_time())]
data = prepare_data(config, 256)
times.append((time.perf_counter(), time.process_time()))
order = data.splits["train"].epoch(config.batch_tokens, 256, np.random.default_rng(1))
times.append((time.perf_counter(), time.process_time()))
print(json.dumps({"times": times, "rows": len(data.splits["train"]), "batches": len(order)}))
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--part", choices=PARTS, default="prepare")
    parser.add_argument("--pairs", type=int, nargs="+", default=[30_000, 300_000, 3_000_000])
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the figures as JSON")
    options = parser.parse_args()
    rows = PARTS[options.part](options)
    if options.json is not None:
        options.json.write_text(json.dumps({"command": " ".join(sys.argv), "rows": rows}, indent=1) + "\n")


def prepare(options: argparse.Namespace) -> list[dict[str, Any]]:
    """Prepares each size twice: without and with what the first time left in the cache."""
    rows = []
    with tempfile.TemporaryDirectory() as name:
        for count in options.pairs:
            folder, cache = Path(name) / f"pairs-{count}", Path(name) / f"cache-{count}"
            write_pairs(folder, count)
            for what in ("first", "again"):
                rows.append({"pairs": count, "time": what} | measured(_PREPARE, [str(folder)], cache))
                print(rows[-1], file=sys.stderr, flush=True)
    table = Table(title="preparing aligned text, byte-level BPE of 8,000 entries")
    for column in ("pairs", "", "seconds", "CPU seconds", "CPU µs a pair", "most PSS, MB", "order of an epoch, s"):
        table.add_column(column, justify="right")
    for row in rows:
        cells = [f"{row['pairs']:,}", row["time"], f"{row['seconds']:.1f}", f"{row['cpu']:.1f}"]
        cells += [f"{1e6 * row['cpu'] / row['pairs']:.0f}", f"{row['pss'] / 1e6:.0f}", f"{row['epoch']:.2f}"]
        table.add_row(*cells)
    Console().print(table)
    return rows


def write_pairs(folder: Path, count: int) -> None:
    """Aligned files: so many training pairs, and a hundred to validate."""
    rng = np.random.default_rng(1)
    letters = np.asarray(list("aeinorstdlumcpgbhv"))
    lengths = np.clip(rng.poisson(6, _WORDS), 1, 14)
    words = np.asarray(["".join(rng.choice(letters, length)) for length in lengths])
    chances = 1.0 / np.arange(2, _WORDS + 2)
    cumulative = np.cumsum(chances / chances.sum())
    folder.mkdir(parents=True)
    for split, rows in (("train", count), ("valid", 100)):
        with open(folder / f"{split}.en", "w") as source, open(folder / f"{split}.de", "w") as target:
            for start in range(0, rows, _ROWS_AT_ONCE):
                for file in (source, target):
                    sizes = np.clip(rng.poisson(_MEAN_LENGTH, min(_ROWS_AT_ONCE, rows - start)), 1, 40)
                    drawn = words[np.searchsorted(cumulative, rng.random(sizes.sum()))]
                    file.writelines(" ".join(line) + "\n" for line in np.split(drawn, np.cumsum(sizes)[:-1]))


def measured(program: str, arguments: list[str], cache: Path) -> dict[str, Any]:
    """What a program prints about itself, and the most memory that it took with its children."""
    command = [sys.executable, "-c", program, *arguments]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env={**environ, "TFX_CACHE": str(cache)})
    most = 0

    def watch() -> None:
        nonlocal most
        while process.poll() is None:
            most = max(most, sum(map(pss, tree(process.pid))))
            time.sleep(0.1)

    watcher = threading.Thread(target=watch)
    watcher.start()
    output, _ = process.communicate()
    watcher.join()
    if process.returncode:
        raise SystemExit(process.returncode)
    found = json.loads(output.splitlines()[-1])
    (wall, cpu), (wall_prepared, cpu_prepared), (wall_ordered, _) = found["times"]
    seconds = {"seconds": wall_prepared - wall, "cpu": cpu_prepared - cpu, "epoch": wall_ordered - wall_prepared}
    return seconds | {"pss": most, "rows": found["rows"], "batches": found["batches"]}


def tree(process: int) -> list[int]:
    """A process and all below it."""
    found = [process]
    for path in Path(f"/proc/{process}/task").glob("*/children"):
        try:
            found += [below for child in path.read_text().split() for below in tree(int(child))]
        except OSError:  # it has ended
            continue
    return found


def pss(process: int) -> int:
    """Bytes of memory of a process, a page that others share counted in part; 0 once it has ended."""
    try:
        text = Path(f"/proc/{process}/smaps_rollup").read_text()
    except OSError:
        return 0
    return next((int(line.split()[1]) * 1024 for line in text.splitlines() if line.startswith("Pss:")), 0)


PARTS: dict[str, Callable[[argparse.Namespace], list[dict[str, Any]]]] = {"prepare": prepare}


if __name__ == "__main__":
    main()
