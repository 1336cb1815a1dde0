"""The batches of training and scoring, in their order."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import islice

import numpy as np

from tfx.data.tokenizer import Tokenizer
from tfx.model.batch import Batch
from tfx.processes.group import ALONE, Group
from tfx.record.seeds import derive_seed
from tfx.tasks.contract import Split

Reorder = Callable[[np.ndarray, int, np.ndarray], np.ndarray]
"""From the lengths of an epoch's batches, its number and its shuffled order to the order that is used."""


def training_batches(
    split: Split,
    tokenizer: Tokenizer,
    *,
    batch_tokens: int,
    context: int,
    seed: int,
    start: int = 0,
    reorder: Reorder | None = None,
) -> Iterator[Batch]:
    """Endless training batches from the ``start``-th on; the order of each epoch is keyed by (seed, epoch)."""
    epoch = 0
    while True:
        rng = np.random.Generator(np.random.PCG64(derive_seed(seed, "order", epoch)))
        order = split.epoch(batch_tokens, context, rng)
        if reorder is not None and (lengths := split.lengths(order)) is not None:
            order = [order[i] for i in reorder(lengths, epoch, np.arange(len(order)))]
        for rows in order[start:]:
            yield split.collate(rows, context, tokenizer)
        start = max(0, start - len(order))
        epoch += 1


def scoring_batches(
    split: Split, tokenizer: Tokenizer, *, batch_tokens: int, context: int, group: Group = ALONE
) -> Iterator[Batch]:
    """Every example of a split once; windows of a stream do not overlap. Each process of a group gets its share."""
    for rows in islice(split.in_order(batch_tokens, context), group.rank, None, group.size):
        yield split.collate(rows, context, tokenizer)
