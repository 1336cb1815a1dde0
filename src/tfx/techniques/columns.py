"""A weight's columns one after another, each of which takes a new value while later ones make up for what that loses.

This is what GPTQ (Frantar 2022, arXiv 2210.17323) and SparseGPT (Frantar 2023, arXiv 2301.00774) have in common: the
update of the optimal brain surgeon (Hassibi 1993), for a layer's squared output error and columns in a fixed order.
Shapes: R rows (outputs), C columns (inputs).
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor

# Number of columns whose errors are passed on in one matrix product.
_BLOCK = 128
# Relative to the mean of the diagonal of the inputs' second moments, and added to it.
_DAMPING = 0.01

# Gives the next ``count`` columns, (R, count), as they are by now.
Ahead = Callable[[int], Tensor]


def replace_columns(weight_RC: Tensor, factor_CC: Tensor, replacement: Callable[[int, Ahead], Tensor]) -> None:
    """Walks over the columns: ``replacement(column, ahead)`` gives what the column becomes, (R, 1).

    ``factor`` is `inverse_factor` of the inputs' second moments. ``ahead(1)`` is the column itself, with what makes up
    for the columns before it. Replacements and their errors are in fp64 on the CPU; the caller keeps what it needs.
    """
    rest_RC = weight_RC.double().cpu().clone()
    columns = rest_RC.shape[1]
    for begin in range(0, columns, _BLOCK):
        end = min(begin + _BLOCK, columns)
        # What the columns after the block have not received yet.
        errors_RC = torch.zeros(len(rest_RC), end - begin, dtype=torch.float64)
        for column in range(begin, end):
            ahead = partial(_ahead, rest_RC, errors_RC, factor_CC[begin:end], column, end)
            error = (rest_RC[:, column : column + 1] - replacement(column, ahead)) / factor_CC[column, column]
            rest_RC[:, column:end] -= error @ factor_CC[column : column + 1, column:end]
            errors_RC[:, column - begin : column - begin + 1] = error
        rest_RC[:, end:] -= errors_RC @ factor_CC[begin:end, end:]


def _ahead(rest_RC: Tensor, errors_RC: Tensor, factor_CC: Tensor, column: int, end: int, count: int) -> Tensor:
    part = rest_RC[:, column : column + count].clone()
    if column + count > end:
        part[:, end - column :] -= errors_RC @ factor_CC[:, end : column + count]
    return part


def inverse_factor(moments_CC: Tensor, damping: float = _DAMPING) -> Tensor:
    """The upper Cholesky factor of the inverse of the damped second moments, in fp64 on the CPU.

    An input that is always 0 has no effect.
    """
    moments_CC = moments_CC.double().cpu()
    diagonal = moments_CC.diagonal()
    mean = diagonal.mean()
    damped = moments_CC + torch.diag(torch.where(diagonal == 0, torch.ones_like(diagonal), damping * mean))
    inverse = torch.cholesky_inverse(torch.linalg.cholesky(damped))
    return torch.linalg.cholesky(inverse, upper=True)


def output_error(weight_RC: Tensor, changed_RC: Tensor, moments_CC: Tensor) -> tuple[float, float]:
    """The mean squared change of a layer's outputs, and their mean square, for inputs with these second moments."""
    weight, moments = weight_RC.double().cpu(), moments_CC.double().cpu()
    difference = weight - changed_RC.double().cpu()
    return float(((difference @ moments) * difference).sum()), float(((weight @ moments) * weight).sum())
