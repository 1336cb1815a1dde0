"""One micro-batch of training or scoring, and how mixup mixes its examples.

Shapes: B rows, S source positions, T target positions, N = B T flattened.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

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
