"""Muon (Jordan 2024) over stacks: the matrices of one shape are orthogonalised together.

A model has many matrices of few shapes. One at a time, each of the 15 products of an update is too small to fill the
device, and the calls cost as much as the products.
"""

from __future__ import annotations

import math
from collections import defaultdict
from typing import Any

import torch
from torch import Tensor

# Of the matrices that are orthogonalised at once. On a GPU 128 MB in bfloat16, and three times that beside it; on a CPU
# what its cache holds.
_STACK_ELEMENTS = 1 << 26
_STACK_ELEMENTS_CPU = 1 << 20


class Muon(torch.optim.Muon):
    """`torch.optim.Muon` with its arithmetic and its state, and larger products.

    Updates differ from its own in the order of summation only. ``adjust_lr_fn`` must be ``match_rms_adamw``.
    ``products`` is the number format of its matrix products: bfloat16, as torch has it, or fp32 where a device lacks
    that. In a group with ``block``, each run of that many rows of a matrix is orthogonalised on its own, as if it were
    another matrix; the last may have fewer. So is each head in per-head Muon (Kimi K3, arXiv 2607.24653).
    """

    def __init__(self, *arguments: Any, products: torch.dtype = torch.bfloat16, **settings: Any) -> None:
        super().__init__(*arguments, **settings)
        self.products = products

    @torch.no_grad()
    def step(self, closure: Any = None) -> Any:
        """One update of every parameter that has a gradient."""
        assert closure is None, "nothing evaluates the loss again"
        for group in self.param_groups:
            assert group["adjust_lr_fn"] == "match_rms_adamw"
            assert group["nesterov"]
            parameters: list[Tensor] = []
            gradients: list[Tensor] = []
            momenta: list[Tensor] = []
            self._init_group(group, parameters, gradients, momenta)
            if not parameters:
                continue
            torch._foreach_lerp_(momenta, gradients, 1 - group["momentum"])
            directions = list(torch._foreach_lerp(gradients, momenta, group["momentum"]))
            torch._foreach_mul_(parameters, 1 - group["lr"] * group["weight_decay"])
            block = group.get("block")
            weights, directions = _blocks(parameters, block), _blocks(directions, block)
            for places in _stacks(weights):
                stack_NRC = torch.stack([directions[i] for i in places]).to(self.products)
                updates_NRC = orthogonalise(stack_NRC, group["ns_coefficients"], group["ns_steps"], group["eps"])
                rate = 0.2 * math.sqrt(max(updates_NRC.shape[1:])) * group["lr"]
                for place, update_RC in zip(places, updates_NRC, strict=True):
                    weights[place].add_(update_RC, alpha=-rate)


def _blocks(matrices: list[Tensor], block: int | None) -> list[Tensor]:
    """Views of what is orthogonalised together: whole matrices, or rows of them."""
    return matrices if block is None else [part for matrix in matrices for part in matrix.split(block)]


def _stacks(parameters: list[Tensor]) -> list[list[int]]:
    """The numbers of parameters of one shape on one device, in stacks of bounded size."""
    alike: defaultdict[Any, list[int]] = defaultdict(list)
    for number, parameter in enumerate(parameters):
        alike[parameter.shape, parameter.device].append(number)
    stacks = []
    for (shape, _), numbers in alike.items():
        bound = _STACK_ELEMENTS_CPU if parameters[numbers[0]].device.type == "cpu" else _STACK_ELEMENTS
        most = max(1, bound // max(1, shape.numel()))
        stacks += [numbers[start : start + most] for start in range(0, len(numbers), most)]
    return stacks


def orthogonalise(stack_NRC: Tensor, coefficients: tuple[float, float, float], steps: int, least_norm: float) -> Tensor:
    """Brings the singular values of each matrix (R, C) of a stack near 1, by Newton and Schulz's iteration."""
    a, b, c = coefficients
    is_tall = stack_NRC.shape[1] > stack_NRC.shape[2]
    x_NRC = stack_NRC.mT if is_tall else stack_NRC
    x_NRC = x_NRC / torch.linalg.vector_norm(x_NRC, dim=(1, 2), keepdim=True).clamp(min=least_norm)
    for _ in range(steps):
        gram_NRR = torch.bmm(x_NRC, x_NRC.mT)
        polynomial_NRR = torch.baddbmm(gram_NRR, gram_NRR, gram_NRR, beta=b, alpha=c)
        x_NRC = torch.baddbmm(x_NRC, polynomial_NRR, x_NRC, beta=a)
    return x_NRC.mT if is_tall else x_NRC
