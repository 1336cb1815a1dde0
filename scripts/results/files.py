"""Reading the files in docs/results, computing the numbers that tables show, and formatting tables."""

import json
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

from tfx.report.runs_file import KeptRun, read_kept

FOLDER = Path(__file__).parents[2] / "docs" / "results"
TABLES: dict[str, Callable[[], str]] = {}
NONE = "–"
BASE = "multi30k-dense/6m-decay0.3-dropout0.05"
TRIALS = "small-files-trials"

Arm = Sequence[KeptRun]


def table(name: str) -> Callable[[Callable[[], str]], Callable[[], str]]:
    """Registers a function as the maker of the table ``name``."""

    def register(make: Callable[[], str]) -> Callable[[], str]:
        TABLES[name] = make
        return make

    return register


@cache
def kept_runs() -> dict[str, KeptRun]:
    found = {}
    for file in sorted(FOLDER.glob("*.runs.jsonl")):
        for path, run in read_kept(file):
            if isinstance(run, str):
                raise ValueError(f"{path}: {run}")
            found[path.relative_to(FOLDER).as_posix()] = run
    return found


def arm(*names: str) -> Arm:
    """The runs of the arms in the order of their seeds; a name with a seed at its end stands for that run alone."""
    found = [
        (name.rsplit("/seed", 1)[1], run)
        for name, run in kept_runs().items()
        if name in names or name.rsplit("/seed", 1)[0] in names
    ]
    if not found:
        raise KeyError(f"no kept run is named {' or '.join(names)}")
    return [run for _, run in sorted(found, key=lambda item: item[0])]


def seed(run: KeptRun) -> str:
    return run.name.rsplit("seed", 1)[1]


@cache
def printed(name: str) -> dict[str, Any]:
    content: dict[str, Any] = json.loads((FOLDER / "benchmarks" / f"{name}.json").read_text(encoding="utf-8"))
    return content


def interval(of: str, name: str) -> dict[str, Any]:
    """The interval and p that `tfx report` printed for an arm, from predictions that only run directories have."""
    found: dict[str, Any]
    (found,) = (row for row in printed("intervals")["rows"] if (row["table"], row["arm"]) == (of, name))
    return found


def scores(runs: Arm, split: str, metric: str = "bleu") -> list[float]:
    return [run.summary[split][metric] for run in runs]


def mean(runs: Arm, split: str, metric: str = "bleu") -> float:
    return fmean(scores(runs, split, metric))


def by_seed(runs: Arm, split: str, metric: str = "bleu", digits: int = 2) -> str:
    return ", ".join(f"{score:.{digits}f}" for score in scores(runs, split, metric))


def spread(runs: Arm, split: str) -> str:
    values = scores(runs, split)
    return f"{fmean(values):.2f}" + (f" ± {stdev(values):.2f}" if len(values) > 1 else "")


def against(runs: Arm, others: Arm, split: str) -> str:
    """The difference of the means over the seeds that both arms have."""
    pairs = {seed(run): run for run in others}
    shared = [run for run in runs if seed(run) in pairs]
    return signed(mean(shared, split) - mean([pairs[seed(run)] for run in shared], split))


def lost(runs: Arm, split: str) -> str:
    """The mean difference between each run and the reference that it was measured against."""
    return signed(fmean(run.summary[split]["bleu"] - run.summary["reference"][split]["bleu"] for run in runs))


def signed(value: float) -> str:
    return f"{value:+.2f}".replace("+0.00", "0.00").replace("-0.00", "0.00")


def ratio(runs: Arm) -> str:
    """How many times smaller weights and header are than in plain fp32."""
    return size(fmean(run.summary["bytes"]["ratio"] for run in runs))


def size(value: float) -> str:
    return f"{value:.2f}" if value < 10 else f"{value:.1f}"


def megatokens(run: KeptRun) -> str:
    return f"{run.summary['train']['tokens'] / 1e6:.2f} M"


def rows_of(header: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    lines = [header, ["---"] * len(header), *rows]
    return "".join("| " + " | ".join(NONE if cell is None else str(cell) for cell in line) + " |\n" for line in lines)


def benchmark(name: str, columns: Sequence[tuple[str, str, str]]) -> str:
    """The rows of a printed file; each column is its title, its key, and the format of its numbers."""
    cells = [
        [
            value if isinstance(value := row.get(key), (str, type(None))) else format(value, how)
            for _, key, how in columns
        ]
        for row in printed(name)["rows"]
    ]
    return rows_of([title for title, _, _ in columns], cells)
