"""The rows of a weight that a process holds: all of them, or where processes divide the weights, some.

A mask and the scales of a grid are held whole in every process, and what is added up in each step by rows: then a step
needs no more than the rows at hand, and only a choice, made now and then, all rows of all weights.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor


class Rows:
    """The rows of one weight that this process holds; this class: all of them. Elements of a vector are its rows."""

    def of(self, value: Tensor) -> Tensor:
        """These rows of a value (R, ...) that has one for each row of the whole weight, or (1, ...) one for all."""
        return value

    def part(self, tensor: Tensor) -> Tensor:
        """These rows of the weight, or of its gradient, in the memory where they are."""
        return tensor

    def leaf(self, weight: Tensor) -> Tensor:
        """These rows of the weight, to differentiate by."""
        return weight

    def set_gradient(self, weight: Tensor, gradient: Tensor) -> None:
        """Gives the weight its gradient, of which ``gradient`` has these rows."""
        weight.grad = gradient

    def room(self, part: Tensor) -> Tensor:
        """Zeros for all rows of the weight, where ``part`` has these."""
        return torch.zeros_like(part)

    # --- of all processes, which call these together ------------------------------------------------------

    def whole(self, part: Tensor) -> Tensor:
        """All rows of a value of which each process has its own ``part``."""
        return part

    def total(self, value: Tensor) -> Tensor:
        """The sum of what the processes found in their rows."""
        return value


ALL_ROWS = Rows()
# Gives the rows that this process holds of a weight of the model that trains.
RowsOf = Callable[[Tensor], Rows]


def all_rows(weight: Tensor) -> Rows:
    """The rows of a weight that is not divided."""
    return ALL_ROWS
