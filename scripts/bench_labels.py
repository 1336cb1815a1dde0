"""How many texts a second classifiers read: model files in turn, one text at a time and in batches.

    python scripts/bench_labels.py --data path/to/trec fp32=RUN/model.safetensors int8=INT8_RUN early=EARLY_RUN
        [--rounds 7] [--batches 1 32 256] [--output FILE]

Each argument is a name and a run directory or a model file; the first is what the others are compared with. The test
questions are read in batches of so many texts of like length. All files take turns in one process, round by round;
prints the median of texts a second, and the speed-up over the first in the same round with its spread, beside the
accuracy. A file with early exits reads as its threshold says, and one with int8 activations on those kernels.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

from tfx.compression.checkpoint import LoadedModel, load
from tfx.config.compose import compose
from tfx.tasks.prepare import prepare_data
from tfx.tasks.texts import Texts, logits_of


class Candidate:
    """A model with the test questions in its tokens."""

    def __init__(self, loaded: LoadedModel, data: Path) -> None:
        self.model, self.tokenizer = loaded.model, loaded.tokenizer
        config = compose(["dataset=trec", f"dataset.path={data}"]).dataset
        architecture = loaded.model.architecture
        prepared = prepare_data(config, architecture.context, loaded.tokenizer, outputs=architecture.outputs)
        split = prepared.splits["test"]
        assert isinstance(split, Texts)
        self.texts = split
        self.order = np.argsort(split.positions, kind="stable")

    def read(self, count: int) -> tuple[float, float]:
        """Texts a second in batches of this many, and the share of right answers."""
        right, start = 0, time.perf_counter()
        for place in range(0, len(self.order), count):
            rows = self.order[place : place + count]
            answers = logits_of(self.model, self.texts, rows, self.tokenizer).argmax(1)
            right += int((answers.cpu().numpy() == self.texts.truth[rows]).sum())
        return len(self.order) / (time.perf_counter() - start), right / len(self.order)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 32, 256])
    parser.add_argument("--output", type=Path)
    parser.add_argument("files", nargs="+", metavar="NAME=RUN|FILE")
    options = parser.parse_args()
    named = [file.partition("=") for file in options.files]
    candidates = {name: Candidate(load(path), options.data.absolute()) for name, _, path in named}
    for candidate in candidates.values():  # buffers and kernels before the first round
        candidate.read(max(options.batches))
    rates: dict[tuple[int, str], list[float]] = {}
    accuracy = {}
    for number in range(options.rounds):
        # Each round begins with another one.
        names = [*list(candidates)[number % len(candidates) :], *list(candidates)[: number % len(candidates)]]
        for count in options.batches:
            for name in names:
                rate, accuracy[name] = candidates[name].read(count)
                rates.setdefault((count, name), []).append(rate)
    table = Table("texts in a batch", "file", "accuracy", "texts/s (median)", "ratio", "lowest", "highest")
    rows: list[dict[str, Any]] = []
    first = next(iter(candidates))
    for (count, name), values in rates.items():
        ratios = [own / other for own, other in zip(values, rates[count, first], strict=True)]
        row = {"batch": count, "file": name, "accuracy": accuracy[name], "texts_per_second": statistics.median(values)}
        rows.append(row | {"ratio": statistics.median(ratios), "lowest": min(ratios), "highest": max(ratios)})
        cells = [str(count), name, f"{accuracy[name]:.3f}", f"{statistics.median(values):,.0f}"]
        table.add_row(*cells, *(f"{value:.2f}" for value in (statistics.median(ratios), min(ratios), max(ratios))))
    Console().print(table)
    if options.output is not None:
        options.output.write_text(json.dumps(rows, indent=1) + "\n")


if __name__ == "__main__":
    main()
