"""The batches of training and scoring, in their order."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from itertools import islice
from typing import Any, Protocol

import numpy as np

from tfx.data.tokenizer import Tokenizer
from tfx.model.batch import Batch
from tfx.processes.group import ALONE, Group
from tfx.record.seeds import derive_seed
from tfx.tasks.contract import Split
from tfx.tasks.mixture import Mixture
from tfx.tasks.streamed import Buffers, Streamed

# Of the batches with the fewest rows, how many are looked at for the one of the longest.
_LONGEST = 16

Reorder = Callable[[np.ndarray, int, np.ndarray], np.ndarray]
"""From the lengths of an epoch's batches, its number and its shuffled order to the order that is used."""


class Feed(Protocol):
    """The endless batches of one corpus."""

    def take(self) -> Batch:
        """The next batch."""

    def state_dict(self) -> dict[str, Any] | None:
        """What going on needs besides the number of batches taken."""

    def notes(self) -> list[str]:
        """What is to be said of the rows that were read so far."""


def training_batches(
    split: Split,
    tokenizer: Tokenizer,
    *,
    batch_tokens: int,
    context: int,
    seed: int,
    start: int = 0,
    reorder: Reorder | None = None,
    state: dict[str, Any] | None = None,
) -> TrainingBatches:
    """Endless training batches from the ``start``-th on, keyed by the seed.

    ``state`` is that of the batches of an earlier training that took ``start`` of them. The order of a prepared split,
    and of a mixture of such, is known without it; of a streamed split it says where to go on, and ``reorder`` has no
    effect on one.
    """
    mixture = split if isinstance(split, Mixture) else Mixture([""], [1.0], [split])
    is_mixed = len(mixture.parts) > 1
    taken = mixture.drawn_before(seed, start) if is_mixed else [start]
    feeds: list[Feed] = []
    for place, part in enumerate(mixture.parts):
        purpose = f"order of corpus {place}" if is_mixed else "order"
        if not isinstance(part, Streamed):
            rows = _epochs(part, batch_tokens, context, seed, purpose, taken[place], reorder)
            feeds.append(_Prepared(part, tokenizer, context, rows))
            continue
        own = None if state is None else state["feeds"][place]
        feeds.append(Buffers(part, batch_tokens=batch_tokens, seed=seed, purpose=purpose, state=own))
    tokens = [0] * len(feeds) if state is None else list(state["tokens"])
    return TrainingBatches(mixture, feeds, mixture.draws(seed, start) if is_mixed else None, tokens)


class TrainingBatches(Iterator[Batch]):
    """The endless batches of a training: those of each corpus, in the order in which the corpora are drawn.

    Without ``draws`` there is one corpus. ``tokens`` were trained on of each.
    """

    def __init__(self, mixture: Mixture, feeds: list[Feed], draws: Iterator[int] | None, tokens: list[int]) -> None:
        self._names, self._weights, self._unlabelled = mixture.names, mixture.weights, mixture.unlabelled
        self._feeds, self._draws, self._tokens = feeds, draws, tokens

    def __next__(self) -> Batch:
        place = 0 if self._draws is None else next(self._draws)
        batch = self._feeds[place].take()
        self._tokens[place] += batch.tokens
        return replace(batch, corpus=place, is_labelled=place not in self._unlabelled)

    def state_dict(self) -> dict[str, Any]:
        """What going on after the last batch taken needs besides the number of batches."""
        return {"tokens": list(self._tokens), "feeds": [feed.state_dict() for feed in self._feeds]}

    def notes(self) -> list[str]:
        """What is to be said of the rows that were read while training."""
        named = zip(self._names, self._feeds, strict=True)
        return [f"{name}: {note}" if name else note for name, feed in named for note in feed.notes()]

    def close(self) -> None:
        """There is nothing to end."""

    def shares(self) -> list[dict[str, Any]]:
        """Of each corpus of a mixture its weight, and the tokens that were trained on; nothing of a single corpus."""
        if self._draws is None:
            return []
        total = max(1, sum(self._tokens))
        rows = zip(self._names, self._weights, self._tokens, strict=True)
        return [{"dataset": name, "weight": weight, "tokens": n, "share": n / total} for name, weight, n in rows]


class _Prepared:
    """The batches of a split whose rows are all there."""

    def __init__(self, split: Split, tokenizer: Tokenizer, context: int, rows: Iterator[np.ndarray]) -> None:
        self._split, self._tokenizer, self._context, self._rows = split, tokenizer, context, rows

    def take(self) -> Batch:
        return self._split.collate(next(self._rows), self._context, self._tokenizer)

    def state_dict(self) -> None:
        return None

    def notes(self) -> list[str]:
        return []


def _epochs(
    split: Split, batch_tokens: int, context: int, seed: int, purpose: str, start: int, reorder: Reorder | None
) -> Iterator[np.ndarray]:
    """The rows of endless batches; the order of each epoch is keyed by (seed, epoch)."""
    epoch = 0
    while True:
        rng = np.random.Generator(np.random.PCG64(derive_seed(seed, purpose, epoch)))
        order = split.epoch(batch_tokens, context, rng)
        if reorder is not None and (lengths := split.lengths(order)) is not None:
            order = [order[i] for i in reorder(lengths, epoch, np.arange(len(order)))]
        yield from order[start:]
        start = max(0, start - len(order))
        epoch += 1


def demanding_batches(split: Split, tokenizer: Tokenizer, *, batch_tokens: int, context: int, seed: int) -> list[Batch]:
    """Of each corpus two batches of an epoch that need the most memory: that of the longest rows, and of the most rows.

    Of a streamed one those of the rows that are read first.
    """
    found = []
    for place, part in enumerate(split.parts if isinstance(split, Mixture) else [split]):
        known = part
        if isinstance(part, Streamed):
            known = Buffers(part, batch_tokens=batch_tokens, seed=seed, purpose="order", state=None).first_part()
        rng = np.random.Generator(np.random.PCG64(derive_seed(seed, "demanding")))
        order = known.epoch(batch_tokens, context, rng)
        few = [known.collate(rows, context, tokenizer) for rows in sorted(order, key=len)[:_LONGEST]]
        # Long rows, but as many as go into a batch: the last of an epoch may have less.
        longest = max(few, key=lambda batch: batch.positions**2 / len(batch.rows))
        widest = known.collate(max(order, key=len), context, tokenizer)
        found += [replace(batch, corpus=place) for batch in (longest, widest)]
    return found


def scoring_batches(
    split: Split, tokenizer: Tokenizer, *, batch_tokens: int, context: int, group: Group = ALONE
) -> Iterator[Batch]:
    """Every example of a split once; windows of a stream do not overlap. Each process of a group gets its share."""
    for rows in islice(split.in_order(batch_tokens, context), group.rank, None, group.size):
        yield split.collate(rows, context, tokenizer)
