"""One micro-batch for training or scoring, and how mixup mixes its examples.

Shapes: B rows, S source positions, T target positions, N = B T flattened positions.
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
    """How mixup mixes the examples of a batch: each has ``weight`` in [0, 1], its partner 1 - ``weight``.

    ``partner`` holds row numbers. The masks are True on the tokens that are real before mixing; None: all are.
    """

    partner_B: Tensor
    weight_B: Tensor
    source_real_BS: Tensor | None
    target_real_BT: Tensor


@dataclass
class Batch:
    """One micro-batch for training or scoring.

    ``target_in`` starts with the begin token; ``target_out`` is shifted by one, ends with the end token, and
    is `IGNORE` on padding. ``source_mask`` is True on real tokens, None if there is no padding. ``rows``
    holds the examples' numbers, or for a token stream the offsets of the windows. ``tokens`` counts the real
    tokens of both sides, ``positions`` counts padding too, and ``targets`` counts the labels. ``special``
    holds the ids of the padding, begin and end tokens.
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
        """The same batch on a device; copies asynchronously where the device can."""
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
        """Splits the rows into ``pieces`` batches, or one batch per row if there are fewer; each counts its own."""
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
        """Labels (N,) with their weights (N,), None for 1. A batch with mixup has two sets, any other one."""
        own_N = self.target_out_BT.flatten()
        if self.mix is None:
            return [(own_N, None)]
        weight_BT = self.mix.weight_B.unsqueeze(1).expand_as(self.target_out_BT)
        partner_N = self.target_out_BT[self.mix.partner_B].flatten()
        return [(own_N, weight_BT.flatten()), (partner_N, 1.0 - weight_BT.flatten())]
