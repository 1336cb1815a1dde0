"""The view of the weights, mask then grid: what the forward pass, averages and the file see of the trained weights.

The view is a differentiable function of the weights. A step computes it once, runs every forward pass of the step on
the result, and carries the gradients of the result back to the weights at the end. Where processes divide the weights,
each computes the view of its own rows.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

import torch
from torch import Tensor, nn
from torch.func import functional_call

from tfx.compression.grid import Grid, straight_through
from tfx.techniques.rows import ALL_ROWS, Rows, RowsOf, all_rows

if TYPE_CHECKING:
    from tfx.model.transformer import Transformer
    from tfx.techniques.contract import Technique

Result = TypeVar("Result")


class View:
    """The combined view of a run's techniques: all masks, then the one grid.

    ``whole`` are all techniques of the run: some follow the gradients of weights without a mask or a grid.
    """

    def __init__(self, masking: Sequence[Technique], gridding: Sequence[Technique], whole: Sequence[Technique]) -> None:
        self._masking, self._gridding, self._whole = masking, gridding, whole

    @property
    def techniques(self) -> list[Technique]:
        """The techniques with a mask or a grid, in the order in which they act."""
        return list(dict.fromkeys([*self._masking, *self._gridding]))

    def mask(self, name: str, weight: Tensor, rows: Rows = ALL_ROWS) -> Tensor | None:
        """Where these rows of the weight stay: all current masks combined."""
        masks = [rows.of(mask) for technique in self._masking if (mask := technique.mask(name, weight)) is not None]
        return torch.stack(masks).all(0) if len(masks) > 1 else (masks[0] if masks else None)

    def masked(self, name: str, weight: Tensor, rows: Rows = ALL_ROWS) -> Tensor:
        """The weight, or these rows of it, with zeros where a mask is False."""
        mask = self.mask(name, weight, rows)
        return weight if mask is None else weight * mask

    def grid(self, name: str, masked: Tensor, progress: float) -> Grid | None:
        """The grid of a masked weight, if there is one yet."""
        for technique in self._gridding:
            return technique.grid(name, masked, progress)
        return None

    def see(self, model: Transformer, progress: float, rows_of: RowsOf = all_rows) -> SeenWeights:
        """The current view of the weights, or of the rows that this process holds; differentiable if gradients are
        enabled.
        """
        values: dict[str, Tensor] = {}
        parts: dict[str, Part] = {}
        is_through = self._is_through()
        for name, parameter in model.named_parameters() if self.techniques else ():
            rows = rows_of(parameter)
            weight = rows.leaf(parameter)
            value = self.masked(name, weight, rows)
            if is_through and value is not weight:
                value = straight_through(weight, value)
            for technique in self._gridding:
                value = technique.see(name, value, progress, rows)
            if value is not weight:
                values[name] = value
                if rows is not ALL_ROWS:
                    parts[name] = Part(parameter, rows, weight)
        return SeenRows(values, parts) if parts else SeenWeights(model, values)

    def is_due(self, progress: float) -> bool:
        """Whether `update` reads or changes weights at this progress."""
        return any(technique.is_due(progress) for technique in self._updated())

    def update(self, model: Transformer, progress: float) -> None:
        """Updates masks and grids, before an optimizer step. Only where it `is_due` it needs whole weights."""
        for technique in self._updated():
            technique.update(model, progress, self.masked)

    @torch.no_grad()
    def follow_gradients(self, model: Transformer, refused: Tensor | None = None, rows_of: RowsOf = all_rows) -> None:
        """Passes the gradients of a step that is taken to the techniques that follow them.

        A refused step does not count: where ``refused`` is 1 on the device, they get gradients of 0. Weights that are
        masked have none afterwards.
        """
        following, is_through = self._following(), self._is_through()
        for name, parameter in model.named_parameters() if following else ():
            if parameter.grad is None:
                continue
            rows = rows_of(parameter)
            passed = own = rows.part(parameter.grad)
            if is_through and (mask := self.mask(name, parameter, rows)) is not None:
                own = passed * mask
                rows.set_gradient(parameter, own)
            if refused is not None:
                passed, own = (torch.where(refused > 0, torch.zeros_like(each), each) for each in (passed, own))
            weight, masked = rows.part(parameter).detach(), partial(self.masked, rows=rows)
            for technique in following:
                gradient = passed if technique.gradients_of_zeros() else own
                technique.follow_gradient(name, weight, gradient, masked, rows)

    @torch.no_grad()
    def join_rows(self, model: Transformer, rows_of: RowsOf) -> None:
        """Gives what techniques add up by rows (`Technique.by_rows`) the rows of all processes, in each of them."""
        parameters = dict(model.named_parameters())
        for technique in self._whole:
            for name, value in technique.by_rows():
                if (rows := rows_of(parameters[name])) is not ALL_ROWS:
                    value.copy_(rows.whole(rows.of(value)))

    def _updated(self) -> list[Technique]:
        return list(dict.fromkeys([*self.techniques, *self._following()]))

    def _following(self) -> list[Technique]:
        return [technique for technique in self._whole if technique.follows_gradients()]

    def _is_through(self) -> bool:
        """Whether gradients reach weights that are masked."""
        return any(technique.gradients_of_zeros() for technique in self._whole)


class SeenWeights:
    """The view of a model's weights: ``values`` by name, for all weights that the view changes.

    ``leaves`` are the same values without their history. They collect the gradients of all batches of a step, whose
    passes all run inside the context.
    """

    def __init__(self, model: Transformer, values: Mapping[str, Tensor]) -> None:
        self._host, self.values = _Host(model), values
        self.leaves = {name: value.detach().requires_grad_(value.requires_grad) for name, value in values.items()}
        of = {id(parameter): name for name, parameter in model.named_parameters() if name in values}
        # Each place of a weight once: a tied weight has several, and a module with two names is one place.
        self._places = {
            f"model.{prefix}.{name}": of[id(parameter)]
            for prefix, module in model.named_modules()
            for name, parameter in module.named_parameters(recurse=False)
            if id(parameter) in of
        }

    def __enter__(self) -> SeenWeights:
        return self

    def __exit__(self, *error: object) -> None:
        pass

    def run(self, work: Callable[[], Result]) -> Result:
        """Runs ``work`` with these values as the weights of the model."""
        if not self.leaves:
            return work()
        seen = {place: self.leaves[name] for place, name in self._places.items()}
        return functional_call(self._host, seen, (work,), tie_weights=False)

    def pass_back(self) -> None:
        """Carries the gradients of the values back to the weights, through grid and mask."""
        reached = [name for name, leaf in self.leaves.items() if leaf.grad is not None]
        if reached:
            torch.autograd.backward(
                [self.values[name] for name in reached], [self.leaves[name].grad for name in reached]
            )


class Part(NamedTuple):
    """A divided weight of the model, the rows of it that this process holds, and these as the leaf of the view."""

    weight: Tensor
    rows: Rows
    leaf: Tensor


class SeenRows(SeenWeights):
    """The view of this process's rows of a model's weights: ``values`` by name.

    Each pass gathers the weights of a block anew, forwards and backwards, from the rows that the processes hold. So
    inside the context those are the values, and their gradients arrive at the weights.
    """

    def __init__(self, values: Mapping[str, Tensor], parts: Mapping[str, Part]) -> None:
        self.values, self._parts = values, parts

    @torch.no_grad()
    def __enter__(self) -> SeenRows:
        for name, part in self._parts.items():
            part.rows.part(part.weight).copy_(self.values[name])
        return self

    @torch.no_grad()
    def __exit__(self, *error: object) -> None:
        for part in self._parts.values():
            part.rows.part(part.weight).copy_(part.leaf)

    def run(self, work: Callable[[], Result]) -> Result:
        return work()

    def pass_back(self) -> None:
        reached = {name: part for name, part in self._parts.items() if part.weight.grad is not None}
        if not reached:
            return
        gradients = [part.rows.part(part.weight.grad) for part in reached.values() if part.weight.grad is not None]
        torch.autograd.backward([self.values[name] for name in reached], gradients)
        for part in reached.values():
            assert part.leaf.grad is not None
            part.rows.set_gradient(part.weight, part.leaf.grad)


class _Host(nn.Module):
    """Runs any work while `functional_call` has the model's weights replaced: a step calls more than the model."""

    def __init__(self, model: Transformer) -> None:
        super().__init__()
        self.model = model

    def forward(self, work: Callable[[], Any]) -> Any:
        return work()
