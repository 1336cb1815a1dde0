"""Weights, gradients and optimizer divided over the processes of a run: for a model that does not fit into one device.

PyTorch's FSDP2 (Zhao 2023, arXiv 2304.11277): each process holds a slice of each tensor, and gathers those of a block
when that runs.
"""

from __future__ import annotations

import copy
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from tfx.errors import UserError
from tfx.model.transformer import Transformer
from tfx.processes.group import Group, mapped
from tfx.techniques.rows import ALL_ROWS, Rows
from tfx.training.optimizers import Optimizers
from tfx.training.parallel import Sharing, totals


class ShardedMemoryError(Exception):
    """A process ran out of memory in a step. The others wait for its part of that step, so it cannot be repeated."""


class Sharded(Sharing):
    """FSDP2. All processes run the same number of passes: in each, they gather the weights from one another."""

    divides_weights = True

    def own(self, count: int, pieces: int) -> list[slice]:
        """As many slices in each process; where one has too few rows for that, the last are empty."""
        found = super().own(count, pieces)
        most = min(pieces, -(-count // self.group.size))
        return [*found, *[slice(0, 0)] * (most - len(found))]

    def all_fit(self, fits: bool, parameters: Sequence[Tensor]) -> bool:
        if not fits:
            raise ShardedMemoryError(
                "out of memory: set a smaller dataset.batch_tokens, with trainer.accumulation for the same step, or "
                "trainer.activation_checkpointing=true"
            )
        return True

    def combine(self, parameters: Sequence[Tensor], sums: Mapping[str, Tensor], complete: bool) -> dict[str, Tensor]:
        """The gradients are added up in the backward pass already."""
        names, values_N = totals(self.group, parameters[0].device, sums, complete)
        self.group.add_up([values_N])
        return dict(zip(names, values_N.unbind(), strict=True))

    def common_norm(self, norm: Tensor) -> Tensor:
        return _whole(norm)

    # --- weights ----------------------------------------------------------------------------------------

    def divide(self, model: Transformer, extra: nn.Module) -> Transformer:
        """A copy of the model whose weights are divided. Raises `UserError` if a technique trains modules beside it."""
        from torch.distributed.device_mesh import init_device_mesh
        from torch.distributed.fsdp import fully_shard

        if any(True for _ in extra.parameters()):
            names = " and ".join(f"'{name}'" for name, _ in extra.named_children())
            raise UserError(
                f"trainer.parallel=fsdp divides the model, and technique {names} trains modules beside it: use "
                "trainer.parallel=ddp"
            )
        # Nothing writes into what a block or the model returns, against which that warns.
        warnings.filterwarnings("ignore", message="FSDP2-wrapped module")
        self._device = model.embedding.weight.device
        mesh = init_device_mesh(self._device.type, (self.group.size,))
        # Block by block the slices go to the device: that never holds two whole models, nor does the main memory.
        own = {id(weight): nn.Parameter(weight.detach()) for weight in model.cpu().parameters()}
        divided = copy.deepcopy(model, dict(own))
        for stack in (divided.encoder, divided.decoder):
            for block in stack.blocks if stack is not None else ():
                fully_shard(block, mesh=mesh)
        fully_shard(divided, mesh=mesh)
        return divided

    @contextmanager
    def gathered(self, divided: Transformer, whole: Transformer, *, changes: bool = False) -> Iterator[Transformer]:
        try:
            yield self.joined(divided, whole)
            if changes:
                self._take(divided, whole)
        finally:
            whole.cpu()

    @torch.no_grad()
    def joined(self, divided: Transformer, whole: Transformer) -> Transformer:
        whole.load_state_dict(mapped(divided.state_dict(), lambda tensor: _whole(tensor).cpu()))
        return whole.to(self._device)

    @torch.no_grad()
    def _take(self, divided: Transformer, whole: Transformer) -> None:
        """Gives the divided model the weights of the whole one."""
        for weight, value in zip(divided.parameters(), whole.parameters(), strict=True):
            rows = self.rows(weight)
            rows.part(weight).copy_(rows.of(value))

    def rows(self, weight: Tensor) -> Rows:
        return SomeRows(weight, self.group) if isinstance(weight, DTensor) else ALL_ROWS

    def saved_state(self, state: Any) -> Any:
        found: dict[int, Tensor | None] = {}  # a tied weight stands in several places, and is saved once

        def saved(tensor: Tensor) -> Tensor | None:
            if not isinstance(tensor, DTensor):
                return tensor
            # A tensor of no rows has no address, unless it is a slice of a parameter's.
            place = tensor.to_local().untyped_storage().data_ptr() or id(tensor)
            if place not in found:
                whole = _whole(tensor)  # for which all processes give their part
                found[place] = whole.cpu() if self.group.is_first else None
            return found[place]

        return mapped(state, saved)

    def divide_moments(self, optimizers: Optimizers, states: list[dict[str, Any]]) -> list[dict[str, Any]]:
        divided = []
        for part, state in zip(optimizers.parts, states, strict=True):
            parameters = [parameter for group in part.param_groups for parameter in group["params"]]
            divided.append(
                {
                    number: {name: self._divided(value, parameters[int(number)]) for name, value in moments.items()}
                    for number, moments in state.items()
                }
            )
        return divided

    def _divided(self, value: Any, parameter: Tensor) -> Any:
        """A moment divided like its parameter; anything else as it is."""
        if not torch.is_tensor(value) or value.shape != parameter.shape or not isinstance(parameter, DTensor):
            return value
        rows = SomeRows(parameter, self.group)
        # A copy, so that it keeps no rows of others.
        return rows.divided(rows.of(value).to(self._device, copy=True))


class SomeRows(Rows):
    """This process's rows of a weight that FSDP2 divides: as many for each process, but the last have fewer or none."""

    def __init__(self, weight: DTensor, group: Group) -> None:
        self._weight, self._group, self._count = weight, group, weight.shape[0]
        each = -(-self._count // group.size)
        self._own = slice(group.rank * each, (group.rank + 1) * each)

    def of(self, value: Tensor) -> Tensor:
        return value[self._own] if value.shape[0] == self._count else value

    @torch.no_grad()
    def part(self, tensor: Tensor) -> Tensor:
        assert isinstance(tensor, DTensor)
        return tensor.to_local()

    def leaf(self, weight: Tensor) -> Tensor:
        # A copy: the values of the view take its place.
        return self.part(weight).clone().requires_grad_(weight.requires_grad)

    def set_gradient(self, weight: Tensor, gradient: Tensor) -> None:
        weight.grad = self.divided(gradient)

    def room(self, part: Tensor) -> Tensor:
        return part.new_zeros(self._count, *part.shape[1:])

    def whole(self, part: Tensor) -> Tensor:
        return _whole(self.divided(part))

    def total(self, value: Tensor) -> Tensor:
        found = value.clone()
        self._group.add_up([found])
        return found

    def divided(self, part: Tensor) -> DTensor:
        """This process's part of a tensor with as many rows as the weight, divided like it."""
        whole = torch.empty(self._count, *part.shape[1:], device="meta")
        mesh, placements = self._weight.device_mesh, self._weight.placements
        return DTensor.from_local(part, mesh, placements, run_check=False, shape=whole.shape, stride=whole.stride())


def _whole(tensor: Tensor) -> Tensor:
    """The whole of a divided tensor, in each process."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor
