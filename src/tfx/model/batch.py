"""One micro-batch for training or scoring, and how mixup mixes its examples.

Shapes: B rows, S source positions, T target positions, N = B T flattened positions.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from torch import Tensor

IGNORE = -100


@dataclass(frozen=True)
class Blend:
    """How the rows of one side are mixed: each with ``weight`` in [0, 1], the tokens of its partner with the rest.

    The masks are True on real tokens (None: everywhere) of the row and of its partner. ``partner_types`` are the types
    of the partner's tokens, where they have types.
    """

    weight_B: Tensor
    real_BL: Tensor | None
    partner_BL: Tensor
    partner_real_BL: Tensor | None
    partner_types_BL: Tensor | None = None


@dataclass(frozen=True)
class Mix:
    """How the examples of a batch are mixed (mixup), each with its partner: decoder inputs, labels, and sources.

    Partners are there with their own tokens, so that any rows of a batch can be taken out of it. ``partner_counts`` is
    what they count, where rows count differently.
    """

    target: Blend
    partner_out_BT: Tensor
    source: Blend | None
    partner_counts_B: Tensor | None = None

    @property
    def weight_B(self) -> Tensor:
        """The share of each example itself."""
        return self.target.weight_B


@dataclass
class Batch:
    """One micro-batch for training or scoring.

    ``target_in`` starts with the begin token; ``target_out`` is shifted by one, ends with the end token, and
    is `IGNORE` on padding. ``source_mask`` is True on real tokens, None if there is no padding. ``rows``
    holds the examples' numbers, or for a token stream the offsets of the windows. ``tokens`` counts the real
    tokens of both sides, ``positions`` counts padding too, and ``targets`` counts the labels. ``special``
    holds the ids of the padding, begin and end tokens. ``is_labelled`` is False where no data say what the targets
    should be: the task's own loss does not count them.

    A classifier reads no target: ``target_in`` has no position, and ``target_out`` one, the number of the label, or 0
    where ``values`` are the targets: for each label whether it holds, or one number. ``types`` tells the tokens of the
    second text of a pair (1) from those of the first; None: all are of the first. ``counts`` is what each row counts;
    None: 1.

    ``document_start`` is the token that begins a document of a language model, where none may see another one.
    ``corpus`` is the place of the batch's corpus in a mixture: ``rows`` are numbers of its own examples.
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
    types_BS: Tensor | None = None
    values_BC: Tensor | None = None
    counts_B: Tensor | None = None
    is_labelled: bool = True
    document_start: int | None = None
    corpus: int = 0

    def to(self, device: torch.device) -> Batch:
        """The same batch on a device; copies asynchronously where the device can."""
        if device.type == "cpu":
            return self
        batch = self.pinned() if device.type == "cuda" else self
        return batch._with_tensors(lambda tensor: tensor.to(device, non_blocking=True))

    def pinned(self) -> Batch:
        """The same batch in memory from which a GPU copies by itself, while the host goes on."""
        return self._with_tensors(Tensor.pin_memory)

    def _with_tensors(self, change: Callable[[Tensor], Tensor]) -> Batch:
        names = ("target_in_BT", "target_out_BT", "source_BS", "source_mask_BS", "types_BS", "values_BC", "counts_B")
        found = {name: getattr(self, name) for name in names}
        changed: dict[str, Any] = {name: change(tensor) for name, tensor in found.items() if tensor is not None}
        return replace(self, **changed)

    def split(self, pieces: int) -> list[Batch]:
        """The rows in ``pieces`` batches, or in as many as there are rows; counts are divided with them."""
        return [self.part(rows, self) for rows in slices(range(len(self.rows)), pieces)]

    def part(self, rows: slice, counted: Batch) -> Batch:
        """The batch of these rows, with their own counts. Its rows lie together, also where they are every n-th.

        ``counted`` is this batch before anything was done to its tokens, on the CPU: to count on another device would
        wait for it.
        """
        if rows.indices(len(self.rows)) == (0, len(self.rows), 1):
            return self
        found: Batch = _take(self, rows)
        target, source, mask = (
            None if side is None else side[rows]
            for side in (counted.target_out_BT, counted.source_BS, counted.source_mask_BS)
        )
        assert target is not None
        own = replace(found, target_out_BT=target, source_BS=source, source_mask_BS=mask).counted()
        return replace(found, tokens=own.tokens, positions=own.positions, targets=own.targets)

    def counted(self) -> Batch:
        """The batch with the counts of its own tokens, on the CPU."""
        targets = int((self.target_out_BT >= 0).sum())
        source, mask = self.source_BS, self.source_mask_BS
        sources = 0 if source is None else int(source.numel() if mask is None else mask.sum())
        # A label is no token.
        has_target = self.target_in_BT.shape[1] > 0
        positions = self.target_out_BT.numel() * has_target + (0 if source is None else source.numel())
        return replace(self, tokens=targets * has_target + sources, positions=positions, targets=targets)

    def mixed(self, partner_B: Tensor, weight_B: Tensor) -> Batch:
        """Each example mixed with another: row numbers of partners, and the example's own share in [0, 1]."""

        def blend(tokens_BL: Tensor, real_BL: Tensor | None, types_BL: Tensor | None = None) -> Blend:
            real, types = (None if each is None else each[partner_B] for each in (real_BL, types_BL))
            return Blend(weight_B, real_BL, tokens_BL[partner_B], real, types)

        mask, values = self.source_mask_BS, self.values_BC
        if values is not None:
            # Their losses are linear in the value, or differ from such by what no weight of the model changes.
            values = torch.lerp(values[partner_B], values, weight_B.unsqueeze(1))
        mix = Mix(
            target=blend(self.target_in_BT, _up_to_the_last(self.target_out_BT >= 0)),
            partner_out_BT=self.target_out_BT[partner_B],
            source=None if self.source_BS is None else blend(self.source_BS, mask, self.types_BS),
            partner_counts_B=None if self.counts_B is None else self.counts_B[partner_B],
        )
        both = None if mask is None else mask | mask[partner_B]
        return replace(self, mix=mix, source_mask_BS=both, values_BC=values)

    def targets_and_weights(self) -> list[tuple[Tensor, Tensor | None]]:
        """Labels (N,) with their weights (N,), None for 1. A batch with mixup has two sets, any other one."""
        own_N = self.target_out_BT.flatten()
        if self.mix is None:
            return [(own_N, None)]
        weight_BT = self.mix.weight_B.unsqueeze(1).expand_as(self.target_out_BT)
        partner_N = self.mix.partner_out_BT.flatten()
        return [(own_N, weight_BT.flatten()), (partner_N, 1.0 - weight_BT.flatten())]


def _up_to_the_last(real_BT: Tensor) -> Tensor:
    """Whether there is a label here or later: a prompt has none of its own, and after the last there is padding."""
    places_T = torch.arange(real_BT.shape[1], device=real_BT.device)
    return places_T <= torch.where(real_BT, places_T, -1).amax(1, keepdim=True)


def slices(rows: range, pieces: int) -> list[slice]:
    """The rows in ``pieces`` parts of nearly one size, or in as many as there are rows."""
    if not rows:
        return []
    bounds = np.linspace(0, len(rows), min(pieces, len(rows)) + 1).astype(int).tolist()
    parts = [rows[first:last] for first, last in pairwise(bounds)]
    return [slice(part.start, part.stop, part.step) for part in parts]


def _take(value: Any, rows: slice) -> Any:
    """The rows of each tensor and array in a dataclass, and in those inside it."""
    if isinstance(value, Tensor):
        # With gaps between rows, a copy to a GPU waits for it, and compiled kernels are others than those of `settle`.
        return value[rows].contiguous()
    if isinstance(value, np.ndarray):
        return value[rows]
    if isinstance(value, Batch | Mix | Blend):
        return replace(value, **{f.name: _take(getattr(value, f.name), rows) for f in fields(value)})
    return value
