"""Batches by token count: bucketed by length (text to text), or windows of a stream (language model).

Shapes: B rows, S source positions, T target positions.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from tfx.data.prepare import Pairs, Stream
from tfx.data.tokenizer import Tokenizer
from tfx.errors import UserError
from tfx.record.seeds import derive_seed

IGNORE = -100


@dataclass(frozen=True)
class Mix:
    """How the examples of a batch are mixed (mixup): each with ``weight`` in [0, 1], its partner with the rest.

    ``partner`` are row numbers; the masks are True on real tokens (None: everywhere) before mixing.
    """

    partner_B: Tensor
    weight_B: Tensor
    source_real_BS: Tensor | None
    target_real_BT: Tensor


@dataclass
class Batch:
    """One micro-batch of training or scoring.

    ``target_in`` starts with the begin token; ``target_out`` is shifted by one, ends with the end token, and
    is `IGNORE` on padding. ``source_mask`` is True on real tokens, None where there is no padding. ``rows``
    are the examples' numbers (a stream: where the windows begin). ``tokens`` counts the real tokens of both
    sides, ``positions`` also the padding, ``targets`` the labels. ``special`` are the ids of the padding,
    begin and end tokens.
    """

    target_in_BT: Tensor
    target_out_BT: Tensor
    source_BS: Tensor | None
    source_mask_BS: Tensor | None
    rows: np.ndarray
    tokens: int
    positions: int
    targets: int
    special: tuple[int, ...]
    mix: Mix | None = None

    def to(self, device: torch.device) -> Batch:
        """The same batch on a device; the copy does not wait."""
        if device.type == "cpu":
            return self

        def move(tensor: Tensor | None) -> Tensor | None:
            if tensor is None:
                return None
            return (tensor.pin_memory() if device.type == "cuda" else tensor).to(device, non_blocking=True)

        names = ("target_in_BT", "target_out_BT", "source_BS", "source_mask_BS")
        moved: dict[str, Any] = {name: move(getattr(self, name)) for name in names}
        return replace(self, **moved)

    def split(self, pieces: int) -> list[Batch]:
        """The rows in so many batches, or as many as there are rows; counts are divided with them."""
        found = []
        for rows in np.array_split(np.arange(len(self.rows)), min(pieces, len(self.rows))):
            part = slice(int(rows[0]), int(rows[-1]) + 1)
            source = None if self.source_BS is None else self.source_BS[part]
            mask = None if self.source_mask_BS is None else self.source_mask_BS[part]
            target_in, target_out = self.target_in_BT[part], self.target_out_BT[part]
            targets = int((target_out >= 0).sum())
            sources = 0 if source is None else int(source.numel() if mask is None else mask.sum())
            found.append(
                replace(
                    self,
                    target_in_BT=target_in,
                    target_out_BT=target_out,
                    source_BS=source,
                    source_mask_BS=mask,
                    rows=self.rows[part],
                    tokens=targets + sources,
                    positions=target_out.numel() + (0 if source is None else source.numel()),
                    targets=targets,
                )
            )
        return found

    def targets_and_weights(self) -> list[tuple[Tensor, Tensor | None]]:
        """The labels of each position (N,) and their weights (N,), None for 1: two sets where examples are mixed."""
        own_N = self.target_out_BT.flatten()
        if self.mix is None:
            return [(own_N, None)]
        weight_BT = self.mix.weight_B.unsqueeze(1).expand_as(self.target_out_BT)
        partner_N = self.target_out_BT[self.mix.partner_B].flatten()
        return [(own_N, weight_BT.flatten()), (partner_N, 1.0 - weight_BT.flatten())]


# --- text to text -----------------------------------------------------------------------------------


def bucket(
    source_lengths: np.ndarray, target_lengths: np.ndarray, batch_tokens: int, order: np.ndarray
) -> list[np.ndarray]:
    """Cuts examples into batches of similar lengths, at most ``batch_tokens`` positions each, padding included.

    ``order`` breaks ties, so that another permutation gives other batches. Lengths count begin and end
    tokens. A single example longer than ``batch_tokens`` is a batch of its own.
    """
    # Sorted by target; inside one target length by source, up and down in turn, so that a batch that spans
    # two target lengths does not span all source lengths.
    snake = np.where(target_lengths % 2 == 0, source_lengths, -source_lengths)
    ranked = np.lexsort((order, snake, target_lengths))
    batches: list[np.ndarray] = []
    start, longest_source, longest_target = 0, 0, 0
    lengths = zip(source_lengths[ranked].tolist(), target_lengths[ranked].tolist(), strict=True)
    for position, (source, target) in enumerate(lengths):
        longest_source, longest_target = max(longest_source, source), max(longest_target, target)
        if position > start and (position - start + 1) * (longest_source + longest_target) > batch_tokens:
            batches.append(ranked[start:position])
            start, longest_source, longest_target = position, source, target
    if start < len(ranked):
        batches.append(ranked[start:])
    return batches


def collate_pairs(pairs: Pairs, rows: np.ndarray, tokenizer: Tokenizer) -> Batch:
    """Pads the given rows into one batch."""
    sources = [pairs.source[row] for row in rows]
    targets = [pairs.target[row] for row in rows]
    source_length = max(map(len, sources)) + 1
    target_length = max(map(len, targets)) + 1
    source = np.full((len(rows), source_length), tokenizer.pad, dtype=np.int64)
    target_in = np.full((len(rows), target_length), tokenizer.pad, dtype=np.int64)
    target_out = np.full((len(rows), target_length), IGNORE, dtype=np.int64)
    target_in[:, 0] = tokenizer.bos
    for i, (source_ids, target_ids) in enumerate(zip(sources, targets, strict=True)):
        source[i, : len(source_ids)] = source_ids
        source[i, len(source_ids)] = tokenizer.eos
        target_in[i, 1 : len(target_ids) + 1] = target_ids
        target_out[i, : len(target_ids)] = target_ids
        target_out[i, len(target_ids)] = tokenizer.eos
    real_sources = sum(map(len, sources)) + len(rows)
    real_targets = sum(map(len, targets)) + len(rows)
    mask = None
    if real_sources != source.size:
        lengths = np.fromiter((len(ids) + 1 for ids in sources), dtype=np.int64, count=len(rows))
        mask = torch.from_numpy(np.arange(source_length)[None, :] < lengths[:, None])
    return Batch(
        target_in_BT=torch.from_numpy(target_in),
        target_out_BT=torch.from_numpy(target_out),
        source_BS=torch.from_numpy(source),
        source_mask_BS=mask,
        rows=rows,
        tokens=real_sources + real_targets,
        positions=source.size + target_in.size,
        targets=real_targets,
        special=(tokenizer.pad, tokenizer.bos, tokenizer.eos),
    )


# --- language model ---------------------------------------------------------------------------------


def collate_windows(stream: Stream, starts: np.ndarray, context: int, tokenizer: Tokenizer) -> Batch:
    """Windows of ``context`` inputs that begin at ``starts``; each target is the token after its input.

    A window that would pass the end of the stream is padded.
    """
    positions = starts[:, None] + np.arange(context + 1)[None, :]
    inside = positions < len(stream)
    window = stream.tokens[np.minimum(positions, len(stream) - 1)].astype(np.int64)
    target_out = np.where(inside[:, 1:], window[:, 1:], IGNORE)
    real = int(inside[:, 1:].sum())
    return Batch(
        target_in_BT=torch.from_numpy(np.ascontiguousarray(window[:, :-1])),
        target_out_BT=torch.from_numpy(np.ascontiguousarray(target_out)),
        source_BS=None,
        source_mask_BS=None,
        rows=starts,
        tokens=real,
        positions=target_out.size,
        targets=real,
        special=(tokenizer.pad, tokenizer.bos, tokenizer.eos),
    )


# --- the order of training and scoring --------------------------------------------------------------


Reorder = Callable[[np.ndarray, int, np.ndarray], np.ndarray]
"""From the lengths of an epoch's batches, its number and its shuffled order to the order that is used."""


def training_batches(
    split: Pairs | Stream,
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
        if isinstance(split, Stream):
            order = _windows(split, context, batch_tokens, rng)
        else:
            order = _shuffled_buckets(split, batch_tokens, rng)
        if reorder is not None:
            order = _reordered(split, order, epoch, reorder)
        for rows in order[start:]:
            if isinstance(split, Stream):
                yield collate_windows(split, rows, context, tokenizer)
            else:
                yield collate_pairs(split, rows, tokenizer)
        start = max(0, start - len(order))
        epoch += 1


def _shuffled_buckets(pairs: Pairs, batch_tokens: int, rng: np.random.Generator) -> list[np.ndarray]:
    batches = bucket(pairs.source.lengths + 1, pairs.target.lengths + 1, batch_tokens, rng.permutation(len(pairs)))
    return [batches[i] for i in rng.permutation(len(batches))]


def _reordered(split: Pairs | Stream, order: list[np.ndarray], epoch: int, reorder: Reorder) -> list[np.ndarray]:
    if isinstance(split, Stream):
        return order  # windows are all of one length
    by_row = split.target.lengths  # of all rows, made anew at each call
    lengths = np.asarray([by_row[rows].mean() for rows in order])
    return [order[i] for i in reorder(lengths, epoch, np.arange(len(order)))]


def _windows(stream: Stream, context: int, batch_tokens: int, rng: np.random.Generator) -> list[np.ndarray]:
    """Windows that tile the stream from a random offset, in random order: each token at most once an epoch.

    What is left over, less than a window at either end and less than a batch of windows, waits for another epoch.
    """
    if len(stream) < context + 1:
        raise UserError(
            f"the training text has {len(stream)} tokens and one window needs {context + 1}: "
            "give more text, or set a smaller model.context"
        )
    rows = max(1, batch_tokens // context)
    offset = int(rng.integers(0, min(context, len(stream) - context)))
    starts = rng.permutation(np.arange(offset, len(stream) - context, context))
    whole = len(starts) // rows * rows
    if whole == 0:
        return [starts]
    return list(starts[:whole].reshape(-1, rows))


def scoring_batches(split: Pairs | Stream, tokenizer: Tokenizer, *, batch_tokens: int, context: int) -> Iterator[Batch]:
    """Every example of a split once, in the order that pads least; windows of a stream do not overlap."""
    if isinstance(split, Stream):
        starts = np.arange(0, max(1, len(split) - 1), context)
        rows = max(1, batch_tokens // context)
        for first in range(0, len(starts), rows):
            yield collate_windows(split, starts[first : first + rows], context, tokenizer)
        return
    order = np.arange(len(split))
    for batch_rows in bucket(split.source.lengths + 1, split.target.lengths + 1, batch_tokens, order):
        yield collate_pairs(split, batch_rows, tokenizer)
