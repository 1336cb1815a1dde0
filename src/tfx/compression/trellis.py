"""Dependent quantization: which multiple of the step a level stands for depends on the levels before it in its row.

Two quantizers share one step (Marcellin & Fischer 1990, IEEE Trans. Commun. 38(1); for neural networks Haase 2020,
arXiv 2003.04246, and ISO/IEC 15938-17): the first has the even multiples of the step, the second the odd ones and 0.
The parities of the earlier levels say which of them is used, by the code of Ungerboeck with eight states (1982, IEEE
Trans. Inf. Theory 28(1)). So a path through the states has the even and the odd multiples to choose from, at the rate
of a quantizer with twice the step.

Shapes: R rows and C columns of a matrix.
"""

from __future__ import annotations

import torch
from torch import Tensor

STATES = 8
# Exponents of a row's scale are below this.
EXPONENTS = 32
_PERIOD, _DELAYS = 7, (2, 3, 4, 6)


def quantizer(state: int) -> int:
    """The quantizer of a state: 0 has the even multiples of the step, 1 the odd ones and 0."""
    return state & 1


def following(state: int, parity: int) -> int:
    """The state after a level of this parity.

    The bits of a state are the quantizer, what the next one differs by, and the quantizer before. So quantizers obey
    q[t + 1] = q[t] xor q[t - 2] xor (level[t - 1] mod 2).
    """
    now, change, before = state & 1, state >> 1 & 1, state >> 2
    return (now ^ change) | (before ^ parity) << 1 | now << 2


def quantizers(levels_RC: Tensor) -> Tensor:
    """The quantizer (R, C), 0 or 1, of each level of integers; each row begins in state 0.

    The recursion repeats itself after seven columns, as x^3 + x + 1 is primitive: a parity counts 2, 3, 4 and 6 columns
    later, and again each seven columns after that.
    """
    rows, columns = levels_RC.shape
    parity_RC = (levels_RC & 1).to(torch.uint8)
    padded_RC = torch.nn.functional.pad(parity_RC, (_PERIOD - 1, -columns % _PERIOD + 1))
    # Of each column and those 7, 14, … before it; wrapping around keeps the parity.
    total_RC = padded_RC.view(rows, -1, _PERIOD).cumsum(1, dtype=torch.uint8).view(rows, -1)
    begin = _PERIOD - 1
    sums = [total_RC[:, begin - delay : begin - delay + columns] for delay in _DELAYS]
    return (sums[0] ^ sums[1] ^ sums[2] ^ sums[3]) & 1


def multiples(levels: Tensor, quantizer: Tensor | int) -> Tensor:
    """The multiples of the step that levels stand for: 2 k, and for the second quantizer 2 k less the sign of k."""
    return 2 * levels - quantizer * levels.sign()


def row_scales(bases: Tensor, exponents_R: Tensor) -> Tensor:
    """The scales (R, 1) in fp32: the first base times 2^(-e / 2) for an even exponent e, the second one times
    2^(-(e - 1) / 2) for an odd one. Both are exact.
    """
    return torch.ldexp(bases.float()[exponents_R & 1], -(exponents_R >> 1)).unsqueeze(1)


def split_scales(scales_R1: Tensor) -> tuple[Tensor, Tensor]:
    """The inverse of `row_scales`: two bases (2,), and exponents (R,); raises `ValueError` if there are none."""
    scale_R = scales_R1.float().flatten()
    mantissa_R, exponent_R = torch.frexp(scale_R)
    is_first_R = mantissa_R == mantissa_R[scale_R.argmax()]
    first = scale_R.max()
    second = torch.where(is_first_R, torch.zeros(()), scale_R).max() if not bool(is_first_R.all()) else first
    bases = torch.stack([first, second])
    tops = torch.frexp(bases)[1]
    exponents_R = torch.where(is_first_R, 2 * (tops[0] - exponent_R), 2 * (tops[1] - exponent_R) + 1).long()
    if int(exponents_R.max()) >= EXPONENTS or not torch.equal(row_scales(bases, exponents_R), scales_R1.float()):
        raise ValueError("the scales of a trellis' rows must be powers of 2 of two bases, within a factor of 2^15")
    return bases, exponents_R
