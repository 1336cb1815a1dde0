"""Weights on a grid, as quantization makes them and the file stores them, and the only way back to floats.

Shapes: R rows and C columns of a matrix, G groups of columns in a row, L = 2^bits levels of a codebook.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from tfx.compression.trellis import multiples, quantizers


@dataclass(frozen=True)
class Grid:
    """A matrix (R, C) whose values are each one of a few levels.

    ``codes_RC`` (uint8) are below ``2 ** bits``, with 2 to 8 bits. Either ``scale`` or ``codebook`` is set.

    With ``scale``, a code stands for (code - zero) * scale. Its shape is (1, 1) for one scale per tensor, (R, 1)
    for one per row, or (R, G) for one per group, where each row has G groups of equally many columns. ``zero``
    (uint8, same shape) is the code of 0.0; None: 2^(bits - 1) everywhere.

    With ``trellis``, code - 2^(bits - 1) is the level k of a dependent quantizer (`tfx.compression.trellis`), and
    stands for 2 k or 2 k - sgn(k) times the scale, as the levels before it in its row say. Scales are (1, 1) or
    (R, 1), and there is no zero point.

    With ``codebook``, (1, L) or (R, L), a code stands for that entry of its row's codebook.

    Scales and codebooks are fp16 or fp32, and the file stores them in that type.
    """

    codes_RC: Tensor
    bits: int
    scale: Tensor | None = None
    zero: Tensor | None = None
    codebook: Tensor | None = None
    trellis: bool = False

    def values(self) -> Tensor:
        """The matrix (R, C) in fp32.

        The file format fixes the order of operations, so that every reader gets the same bits: code minus zero, or
        the multiple that it stands for, which is exact, then one fp32 product with the scale. Codebook entries do not
        change.
        """
        if self.codebook is not None:
            table_RL = self.codebook.float().expand(self.codes_RC.shape[0], -1)
            return table_RL.gather(1, self.codes_RC.long())
        assert self.scale is not None
        if self.trellis:
            levels_RC = self.levels()
            return multiples(levels_RC, quantizers(levels_RC)).float() * self.scale.float()
        columns = self.codes_RC.shape[1]
        zero = float(2 ** (self.bits - 1)) if self.zero is None else spread(self.zero.float(), columns)
        return (self.codes_RC.float() - zero) * spread(self.scale.float(), columns)

    def levels(self) -> Tensor:
        """The signed levels (R, C) of a grid without zero points, as int16: 0 stands for 0.0."""
        return self.codes_RC.to(torch.int16) - 2 ** (self.bits - 1)

    def to(self, device: torch.device) -> Grid:
        """The same grid on another device."""

        def move(part: Tensor | None) -> Tensor | None:
            return None if part is None else part.to(device)

        moved = (move(self.scale), move(self.zero), move(self.codebook))
        return Grid(self.codes_RC.to(device), self.bits, *moved, trellis=self.trellis)


def spread(per_group: Tensor, columns: int) -> Tensor:
    """Repeats values (1, 1), (R, 1) or (R, G) for each of their columns; the result broadcasts to (R, C)."""
    groups = per_group.shape[1]
    return per_group if groups == 1 else per_group.repeat_interleave(columns // groups, dim=1)


def straight_through(weight: Tensor, values: Tensor) -> Tensor:
    """``values``, with a gradient that passes unchanged to ``weight`` (Bengio 2013, arXiv 1308.3432)."""
    return _StraightThrough.apply(weight, values)


class _StraightThrough(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, weight: Tensor, values: Tensor) -> Tensor:
        return values.view_as(values)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        return gradients[0], None
