"""Training steps of several arms in turn on the same real batches, so that a slow minute of the machine hits all."""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable, Iterator, Mapping

import torch
from rich.console import Console
from rich.table import Table

from tfx.config.schema import Root
from tfx.model.batch import Batch
from tfx.tasks.batches import training_batches
from tfx.tasks.prepare import PreparedData


def options_and_overrides(doc: str) -> tuple[argparse.Namespace, list[str]]:
    """``--rounds`` and ``--steps``, and the overrides of `tfx train` beside them."""
    parser = argparse.ArgumentParser(description=doc.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=8)
    parser.add_argument("--steps", type=int, default=15)
    return parser.parse_known_args()


def real_batches(config: Root, data: PreparedData) -> Iterator[Batch]:
    """What `tfx train` would train on."""
    return training_batches(
        data.splits["train"],
        data.tokenizer,
        batch_tokens=config.dataset.batch_tokens,
        context=config.model.context,
        seed=config.seed,
    )


def race(
    arms: Mapping[str, Callable[[Batch], object]], config: Root, data: PreparedData, rounds: int, steps: int
) -> None:
    """Prints tokens a second of each arm, the median over rounds, and the ratio to the first arm, round by round.

    An arm is one optimizer step on a batch; a round is ``steps`` of them for each arm.
    """
    batches = real_batches(config, data)
    speeds: dict[str, list[float]] = {name: [] for name in arms}
    for turn in range(rounds + 1):
        work = [next(batches) for _ in range(steps)]
        for name, step in arms.items():
            start = time.perf_counter()
            for batch in work:
                step(batch)
            if torch.cuda.is_available():
                torch.cuda.synchronize()
            if turn:  # the first round warms up
                speeds[name].append(sum(batch.tokens for batch in work) / (time.perf_counter() - start))

    first = next(iter(arms))
    table = Table("arm", "tokens/s (median)", f"ratio to {first} (median)", "lowest", "highest")
    for name, values in speeds.items():
        ratios = [value / other for value, other in zip(values, speeds[first], strict=True)]
        cells = (statistics.median(ratios), min(ratios), max(ratios))
        table.add_row(name, f"{statistics.median(values):,.0f}", *(f"{cell:.3f}" for cell in cells))
    Console().print(table)
