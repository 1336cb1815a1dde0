"""Trellis-coded quantization inside GPTQ: each row takes the path through the states that costs the loss least.

A Viterbi search walks the columns of all rows at once. GPTQ passes the error of a column on to later ones, so every
survivor keeps its own rest of the row (per-survivor processing, Raheli 1995, IEEE Trans. Commun. 43(2/3)). Its cost
is the sum over columns of (error / U_cc)^2, U being the factor of GPTQ: that sum is the error of the layer's outputs.
To it come the bits of its levels at the price of the loss (as in Haase 2020, arXiv 2003.04246), so that a level is
taken which is a little farther off but much more frequent.

Shapes: R rows (outputs), C columns (inputs), S states, B columns of a block, L magnitudes of a level.
"""

from __future__ import annotations

from functools import cache

import torch
from torch import Tensor

from tfx.compression.grid import Grid
from tfx.compression.trellis import STATES, following, quantizer, row_scales, split_scales
from tfx.techniques.columns import inverse_factor

# What one bit costs, in squared steps of an average column. The squared error at a rate would be smallest with 0.3, but
# the error then makes the matrix smaller, which costs the loss more than the same error at random.
BIT_PRICE = 0.2
# Columns whose errors are passed on in one matrix product, and rows that are searched at once: what fits a cache.
_BLOCK = 32
_ROWS = 512
# Magnitudes of levels are below this.
LEVELS = 128
_GROUPS = 45

_FROM = [[(state, parity) for state in range(STATES) for parity in (0, 1) if following(state, parity) == new]
         for new in range(STATES)]  # fmt: skip
_ODD_S1 = torch.tensor([[quantizer(state)] for state in range(STATES)], dtype=torch.float32)


@cache
def _normal_prices() -> Tensor:
    """Bits (G, 2, L) of a magnitude in each quantizer, with its sign, for normal weights of so many steps.

    Group g has a standard deviation of 2^(g / 4 - 4) steps. Levels take about what is nearest to them: the first
    quantizer an interval of two steps, the second less around 0.
    """
    deviation_G11 = 2.0 ** (torch.arange(_GROUPS, dtype=torch.float64).view(-1, 1, 1) / 4 - 4)
    level_L = torch.arange(LEVELS, dtype=torch.float64)
    from_L = torch.stack([2 * level_L - 1, 2 * level_L - 2])
    to_L = torch.stack([2 * level_L + 1, 2 * level_L])
    from_L[1, 1] = to_L[1, 0] = 0.5
    from_L[:, 0] = -to_L[:, 0]
    mass_G2L = torch.special.ndtr(to_L / deviation_G11) - torch.special.ndtr(from_L / deviation_G11)
    # No level is impossible, and farther ones are rarer.
    mass_G2L += 1e-6 * 0.9**level_L
    mass_G2L[..., 1:] *= 2
    bits_G2L = -(mass_G2L / mass_G2L.sum(-1, keepdim=True)).log2()
    bits_G2L[..., 1:] += 1.0
    return bits_G2L.float()


def group_of(rows_RC: Tensor) -> Tensor:
    """The group of prices (R,) of rows in steps, by their root mean square."""
    spread_R = rows_RC.square().mean(1).sqrt().clamp(min=1e-6)
    return ((spread_R.log2() + 4) * 4).round().clamp(0, _GROUPS - 1).long()


def trellis(
    weight_RC: Tensor,
    moments_CC: Tensor,
    scale: Tensor,
    mask_RC: Tensor | None = None,
    dtype: torch.dtype = torch.float16,
) -> Grid:
    """The dependent grid that keeps W x close at few bits, for inputs x with the second moments E[x x^T].

    Its scales are about ``scale``, (1, 1) or `row_scales`, with bases of ``dtype``. Where ``mask`` is False the level
    is 0.
    """
    device = weight_RC.device
    weight_RC, moments_CC = weight_RC.float().cpu(), moments_CC.double().cpu()
    bases, exponents_R = split_scales(scale.cpu())
    # Levels that cost few bits are the small ones, and a matrix that is smaller throughout costs the loss more than
    # the same error at random. The scale that makes up for all of it makes the errors larger: half of it is best.
    mask_RC = None if mask_RC is None or bool(mask_RC.all()) else mask_RC.cpu()
    levels_RC = search(weight_RC / row_scales(bases, exponents_R), inverse_factor(moments_CC), mask_RC)
    grid = Grid((levels_RC + LEVELS).to(torch.uint8), 8, row_scales(bases, exponents_R), trellis=True)
    outer_RC = weight_RC.double() @ moments_CC
    whole, kept = (float((outer_RC * values).sum()) for values in (weight_RC, grid.values()))
    gain = (whole / kept) ** 0.5 if kept > 0 else 1.0
    scale = row_scales((bases * gain).to(dtype), exponents_R)
    return Grid(grid.codes_RC, 8, scale, trellis=True).to(device)


def search(rows_RC: Tensor, factor_CC: Tensor, mask_RC: Tensor | None = None, bit_price: float = BIT_PRICE) -> Tensor:
    """The levels (R, C), int16, of rows in steps, given the factor of their inputs' second moments."""
    # In units of an average column, so that the price of a bit is the same in every matrix.
    factor_CC = (factor_CC * error_share(factor_CC) ** 0.5).float()
    price_G2L, group_R = bit_price * _normal_prices(), group_of(rows_RC)
    pieces = []
    for begin in range(0, len(rows_RC), _ROWS):
        rows = slice(begin, begin + _ROWS)
        kept = None if mask_RC is None else mask_RC[rows].t()
        pieces.append(_viterbi(rows_RC[rows].t().contiguous(), factor_CC, kept, price_G2L, group_R[rows]))
    return torch.cat(pieces)


def error_share(factor_CC: Tensor) -> float:
    """The mean over columns of 1 / U_cc^2: what a squared error costs that later columns make up for."""
    return float((factor_CC.diagonal() ** -2).mean())


def _viterbi(rows_CR: Tensor, factor_CC: Tensor, kept_CR: Tensor | None, price_G2L: Tensor, group_R: Tensor) -> Tensor:
    """The levels (R, C) of rows in steps; the prices are in squared steps."""
    columns, rows = rows_CR.shape
    rest_SCR = rows_CR.unsqueeze(0).repeat(STATES, 1, 1)
    cost_SR = torch.full((STATES, rows), 1e30)
    cost_SR[0] = 0.0
    levels_SCR = torch.zeros(STATES, columns, rows, dtype=torch.int16)
    for begin in range(0, columns, _BLOCK):
        end = min(begin + _BLOCK, columns)
        block = _Block(rest_SCR[:, begin:end].clone(), factor_CC[begin:end, begin:end], price_G2L, group_R)
        for column in range(begin, end):
            cost_SR = block.step(column - begin, cost_SR, None if kept_CR is None else kept_CR[column])
        first_SR, error_SBR, levels_SBR = block.trace()
        levels_SCR[:, :begin] = levels_SCR[:, :begin].gather(0, first_SR.unsqueeze(1).expand(-1, begin, -1))
        levels_SCR[:, begin:end] = levels_SBR
        after = columns - end
        if after:
            tail_SXR = rest_SCR[:, end:].gather(0, first_SR.unsqueeze(1).expand(-1, after, -1))
            rest_SCR[:, end:] = tail_SXR - factor_CC[begin:end, end:].t() @ error_SBR
    best_R = cost_SR.argmin(0)
    return levels_SCR.gather(0, best_R.expand(1, columns, -1))[0].t()


class _Block:
    """The search through a few columns: what each survivor has left of them, and how it came to be."""

    def __init__(self, rest_SBR: Tensor, factor_BB: Tensor, price_G2L: Tensor, group_R: Tensor) -> None:
        self._rest_SBR, self._factor_BB, self._price = rest_SBR, factor_BB, price_G2L.flatten()
        states, size, rows = rest_SBR.shape
        self._before_BSR = torch.empty(size, states, rows, dtype=torch.int64)
        self._error_BSR = torch.empty(size, states, rows)
        self._level_BSR = torch.empty(size, states, rows, dtype=torch.int16)
        # Where the prices of a state's levels begin.
        self._table_SR = (_ODD_S1.long() + 2 * group_R) * LEVELS

    def step(self, column: int, cost_SR: Tensor, kept_R: Tensor | None) -> Tensor:
        """Extends all survivors by one column; returns the cost of the best path to each state."""
        x_SR = self._rest_SBR[:, column]
        by_parity = [self._branch(x_SR, float(self._factor_BB[column, column]), parity, kept_R) for parity in (0, 1)]
        first, second = ([_FROM[new][i] for new in range(STATES)] for i in (0, 1))
        costs, levels, errors = zip(*by_parity, strict=True)

        def pick(parts: tuple[Tensor, ...], source: list[tuple[int, int]]) -> Tensor:
            return torch.stack([parts[parity][state] for state, parity in source])

        total = [pick(tuple(cost_SR + cost for cost in costs), source) for source in (first, second)]
        is_second = total[1] < total[0]
        state_of = [torch.tensor([[state] for state, _ in source]) for source in (first, second)]
        self._before_BSR[column] = torch.where(is_second, state_of[1], state_of[0])
        self._level_BSR[column] = torch.where(is_second, pick(levels, second), pick(levels, first)).to(torch.int16)
        error_SR = torch.where(is_second, pick(errors, second), pick(errors, first))
        self._error_BSR[column] = error_SR
        after = slice(column + 1, None)
        rest = [self._rest_SBR[state.flatten(), after] for state in state_of]
        rest_SXR = torch.where(is_second.unsqueeze(1), rest[1], rest[0])
        rest_SXR -= self._factor_BB[column, after].view(1, -1, 1) * error_SR.unsqueeze(1)
        self._rest_SBR[:, after] = rest_SXR
        cost_SR = torch.where(is_second, total[1], total[0])
        return cost_SR - cost_SR.amin(0)

    def _branch(self, x_SR: Tensor, unit: float, parity: int, kept_R: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
        """Cost, level and error of the cheaper of the two levels of a parity around each entry."""
        size_SR = x_SR.abs()
        # Half the magnitude, where the second quantizer's levels are half a level earlier.
        lower_SR = (((size_SR + _ODD_S1) * 0.5 - parity) * 0.5).floor_().mul_(2).add_(parity)
        found = []
        for level_SR in (lower_SR.clamp(parity, LEVELS - 2 + parity), (lower_SR + 2).clamp(0, LEVELS - 2 + parity)):
            value_SR = 2 * level_SR - (_ODD_S1 if parity else _ODD_S1 * (level_SR > 0))
            error_SR = (size_SR - value_SR) / unit
            cost_SR = error_SR.square() + self._price[level_SR.long() + self._table_SR]
            found.append((cost_SR, level_SR, error_SR))
        (cost, level, error), (other_cost, other_level, other_error) = found
        is_other = other_cost < cost
        sign_SR = torch.where(x_SR < 0, -1.0, 1.0)
        cost = torch.where(is_other, other_cost, cost)
        level = torch.where(is_other, other_level, level) * sign_SR
        error = torch.where(is_other, other_error, error) * sign_SR
        if kept_R is not None:
            cost = torch.where(kept_R, cost, 1e30 if parity else (x_SR / unit).square())
            level = torch.where(kept_R, level, 0.0)
            error = torch.where(kept_R, error, x_SR / unit)
        return cost, level, error

    def trace(self) -> tuple[Tensor, Tensor, Tensor]:
        """For each final state: the state before the block (S, R), the errors and the levels (S, B, R)."""
        at_SR = torch.arange(STATES).unsqueeze(1).expand(-1, self._error_BSR.shape[2])
        errors, levels = [], []
        for column in reversed(range(len(self._error_BSR))):
            errors.append(self._error_BSR[column].gather(0, at_SR))
            levels.append(self._level_BSR[column].gather(0, at_SR))
            at_SR = self._before_BSR[column].gather(0, at_SR)
        return at_SR, torch.stack(errors[::-1], 1), torch.stack(levels[::-1], 1)
