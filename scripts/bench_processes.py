"""How training scales with processes: speed of one and of several at the same global batch, in turn.

    python scripts/bench_processes.py [--devices 1 2] [--rounds 5] [--json FILE] [overrides of `tfx train` …]

Each run is a `tfx train` in fresh processes; tokens are real ones of both sides, seconds those of training alone. On a
CPU each process has one thread, unless OMP_NUM_THREADS says otherwise: so two processes have twice the cores of one.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

from rich.console import Console
from rich.table import Table


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--devices", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the figures as JSON")
    options, overrides = parser.parse_known_args()
    speeds: dict[int, list[float]] = {count: [] for count in options.devices}
    with tempfile.TemporaryDirectory() as name:
        for turn in range(options.rounds):
            for count in options.devices:
                folder = Path(name) / f"{turn}-{count}"
                speeds[count].append(measured(folder, count, overrides))
                print(f"round {turn + 1}, {count} processes: {speeds[count][-1]:,.0f} tokens/s", file=sys.stderr)
    first = options.devices[0]
    table = Table("processes", "tokens/s (median)", f"ratio to {first} (median)", "lowest", "highest")
    for count, found in speeds.items():
        ratios = [mine / base for mine, base in zip(found, speeds[first], strict=True)]
        cells = (statistics.median(ratios), min(ratios), max(ratios))
        table.add_row(str(count), f"{statistics.median(found):,.0f}", *(f"{ratio:.2f}" for ratio in cells))
    Console().print(table)
    if options.json is not None:
        options.json.write_text(
            json.dumps({"command": " ".join(sys.argv), "tokens_per_second": speeds}, indent=1) + "\n"
        )


def measured(folder: Path, count: int, overrides: list[str]) -> float:
    """Tokens a second of a training in so many processes."""
    settings = ["trainer.budget.steps=100", "trainer.validate_every=1", "evaluation.latency_inputs=1"]
    words = [*settings, *overrides, f"trainer.devices={count}", f"hydra.run.dir={folder}"]
    subprocess.run(
        [sys.executable, "-m", "tfx", "train", *words],
        env={"OMP_NUM_THREADS": "1"} | os.environ,
        stdout=subprocess.DEVNULL,
        check=True,
    )
    return float(json.loads((folder / "summary.json").read_text())["train"]["tokens_per_second"])


if __name__ == "__main__":
    main()
