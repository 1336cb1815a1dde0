"""How tfx scales: with more data, and with more processes.

    python scripts/bench_scale.py --part prepare --pairs 30000,300000,3000000
    python scripts/bench_scale.py --part processes [--devices 1,2] [--rounds 5] [overrides of `tfx train` …]
    python scripts/bench_scale.py --part local [--seeds 1,2,3] [overrides of `tfx train` …]

``prepare``: time and memory of preparing so many pairs, each size in a fresh process with an empty cache. Memory is the
most PSS of the process and its children together, which counts a page that several of them share once.

``processes``: speed at the same global batch, in turn. Tokens are real ones of both sides, seconds those of training
alone. On a CPU each process has one thread, unless OMP_NUM_THREADS says otherwise: two have twice the cores of one.

``local``: the loss on validation data of one process, and of two that take eight steps each by themselves before they
meet (`trainer.parallel=local`; `trainer.local.steps=N` for another number), after the same tokens in the same batches.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

# Words of a made-up language with the frequencies of a real one (Zipf), and pairs of about 13 words a side.
_WORDS, _MEAN_LENGTH = 60_000, 13
_ROWS_AT_ONCE = 20_000
_LOCAL_STEPS = 8

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
    parser = argparse.ArgumentParser(
        description=(__doc__ or "").splitlines()[0], formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--part", choices=PARTS, default="prepare")
    parser.add_argument("--pairs", type=numbers, default=[30_000, 300_000, 3_000_000], help="prepare: sizes")
    parser.add_argument("--devices", type=numbers, default=[1, 2], help="processes: how many, in turn")
    parser.add_argument("--rounds", type=int, default=5, help="processes: how often")
    parser.add_argument("--seeds", type=numbers, default=[1, 2, 3], help="local: of the runs")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the figures as JSON")
    options, overrides = parser.parse_known_args()
    if overrides and options.part == "prepare":
        parser.error(f"preparing takes no overrides: {' '.join(overrides)}")
    rows = PARTS[options.part](options, overrides)
    if options.json is not None:
        options.json.write_text(json.dumps({"command": " ".join(sys.argv), "rows": rows}, indent=1) + "\n")


def numbers(word: str) -> list[int]:
    return [int(number) for number in word.split(",")]


# --- preparing ------------------------------------------------------------------------------------


def prepare(options: argparse.Namespace, overrides: list[str]) -> list[dict[str, Any]]:
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
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env={**os.environ, "TFX_CACHE": str(cache)})
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


# --- several processes ----------------------------------------------------------------------------


def processes(options: argparse.Namespace, overrides: list[str]) -> list[dict[str, Any]]:
    """Tokens a second of so many processes, the median over rounds, and the ratio to the first count in its round."""
    settings = ["trainer.budget.steps=100", "trainer.validate_every=1", *overrides]
    speeds: dict[int, list[float]] = {count: [] for count in options.devices}
    for turn in range(options.rounds):
        for count, found in speeds.items():
            found.append(trained([*settings, f"trainer.devices={count}"])["train"]["tokens_per_second"])
            print(f"round {turn + 1}, {count} processes: {found[-1]:,.0f} tokens/s", file=sys.stderr)
    first = options.devices[0]
    table = Table("processes", "tokens/s (median)", f"ratio to {first} (median)", "lowest", "highest")
    rows = []
    for count, found in speeds.items():
        ratios = [mine / base for mine, base in zip(found, speeds[first], strict=True)]
        cells = {"ratio": statistics.median(ratios), "lowest": min(ratios), "highest": max(ratios)}
        rows.append({"processes": count, "tokens_per_second": statistics.median(found), **cells, "rounds": found})
        table.add_row(str(count), f"{statistics.median(found):,.0f}", *(f"{ratio:.2f}" for ratio in cells.values()))
    Console().print(table)
    return rows


def local(options: argparse.Namespace, overrides: list[str]) -> list[dict[str, Any]]:
    """By seed: the losses of one process and of two with local steps, and how far apart they are."""
    table = Table("seed", "one process", "two, local steps", "difference", "tokens", title="loss on validation data")
    rows = []
    for seed in options.seeds:
        words = [*overrides, f"seed={seed}"]
        one = trained([*words, "trainer.devices=1"])
        two = trained([f"trainer.local.steps={_LOCAL_STEPS}", "trainer.devices=2", "trainer.parallel=local", *words])
        tokens = [run["train"]["tokens"] for run in (one, two)]
        if tokens[0] != tokens[1]:
            raise SystemExit(f"seed {seed}: one process trained on {tokens[0]} tokens, and two on {tokens[1]}")
        row = {"seed": seed, "one": one["valid"]["loss"], "two": two["valid"]["loss"], "tokens": tokens[0]}
        rows.append(row | {"difference": row["two"] / row["one"] - 1})
        print(rows[-1], file=sys.stderr, flush=True)
        cells = (f"{row['one']:.4f}", f"{row['two']:.4f}", f"{rows[-1]['difference']:+.2%}", f"{row['tokens']:,}")
        table.add_row(str(seed), *cells)
    Console().print(table)
    return rows


def trained(overrides: list[str]) -> dict[str, Any]:
    """The summary of a `tfx train` in fresh processes."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name) / "run"
        words = ["evaluation.latency_inputs=1", *overrides, f"hydra.run.dir={folder}"]
        environment = {"OMP_NUM_THREADS": "1"} | os.environ
        command = [sys.executable, "-m", "tfx", "train", *words]
        if status := subprocess.run(command, env=environment, stdout=subprocess.DEVNULL).returncode:
            raise SystemExit(status)
        return dict(json.loads((folder / "summary.json").read_text()))


PARTS: dict[str, Callable[[argparse.Namespace, list[str]], list[dict[str, Any]]]] = {
    "prepare": prepare,
    "processes": processes,
    "local": local,
}


if __name__ == "__main__":
    main()
