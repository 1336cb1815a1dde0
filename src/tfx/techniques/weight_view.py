"""The view of the weights, mask then grid: what the forward pass, averages and the file see of the trained weights.

The view is a differentiable function of the weights. A step computes it once, runs every forward pass of the step on
the result, and carries the gradients of the result back to the weights at the end.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, TypeVar

import torch
from torch import Tensor, nn
from torch.func import functional_call

from tfx.compression.grid import Grid, straight_through

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

    def mask(self, name: str, weight: Tensor) -> Tensor | None:
        """Where the weight stays: all current masks combined."""
        masks = [mask for technique in self._masking if (mask := technique.mask(name, weight)) is not None]
        return torch.stack(masks).all(0) if len(masks) > 1 else (masks[0] if masks else None)

    def masked(self, name: str, weight: Tensor) -> Tensor:
        """The weight with zeros where a mask is False."""
        mask = self.mask(name, weight)
        return weight if mask is None else weight * mask

    def grid(self, name: str, masked: Tensor, progress: float) -> Grid | None:
        """The grid of a masked weight, if there is one yet."""
        for technique in self._gridding:
            return technique.grid(name, masked, progress)
        return None

    def see(self, model: Transformer, progress: float) -> SeenWeights:
        """The current view of the weights; differentiable if gradients are enabled."""
        values = {}
        is_through = self._is_through()
        for name, parameter in model.named_parameters() if self.techniques else ():
            value = self.masked(name, parameter)
            if is_through and value is not parameter:
                value = straight_through(parameter, value)
            for technique in self._gridding:
                value = technique.see(name, value, progress)
            if value is not parameter:
                values[name] = value
        return SeenWeights(model, values)

    def update(self, model: Transformer, progress: float) -> None:
        """Updates masks and grids, before an optimizer step."""
        for technique in dict.fromkeys([*self.techniques, *self._following()]):
            technique.update(model, progress, self.masked)

    @torch.no_grad()
    def follow_gradients(self, model: Transformer, refused: Tensor | None = None) -> None:
        """Passes the gradients of a step that is taken to the techniques that follow them.

        A refused step does not count: where ``refused`` is 1 on the device, they get gradients of 0. Weights that are
        masked have none afterwards.
        """
        following, is_through = self._following(), self._is_through()
        for name, parameter in model.named_parameters() if following else ():
            if parameter.grad is None:
                continue
            passed = own = parameter.grad
            if is_through and (mask := self.mask(name, parameter)) is not None:
                parameter.grad = own = passed * mask
            if refused is not None:
                passed, own = (torch.where(refused > 0, torch.zeros_like(each), each) for each in (passed, own))
            for technique in following:
                gradient = passed if technique.gradients_of_zeros() else own
                technique.follow_gradient(name, parameter.detach(), gradient, self.masked)

    def _following(self) -> list[Technique]:
        return [technique for technique in self._whole if technique.follows_gradients()]

    def _is_through(self) -> bool:
        """Whether gradients reach weights that are masked."""
        return any(technique.gradients_of_zeros() for technique in self._whole)


class SeenWeights:
    """The view of a model's weights: ``values`` by name, for all weights that the view changes.

    ``leaves`` are the same values without their history. They collect the gradients of all batches of a step.
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

    def run(self, work: Callable[[], Result]) -> Result:
        """Runs ``work`` with these values as the weights of the model."""
        if not self.leaves:
            return work()
        seen = {place: self.leaves[name] for place, name in self._places.items()}
        return functional_call(self._host, seen, (work,), tie_weights=False)  # type: ignore[no-any-return]

    def pass_back(self) -> None:
        """Carries the gradients of the values back to the weights, through grid and mask."""
        reached = [name for name, leaf in self.leaves.items() if leaf.grad is not None]
        if reached:
            torch.autograd.backward(
                [self.values[name] for name in reached], [self.leaves[name].grad for name in reached]
            )


class _Host(nn.Module):
    """Runs any work while `functional_call` has the model's weights replaced: a step calls more than the model."""

    def __init__(self, model: Transformer) -> None:
        super().__init__()
        self.model = model

    def forward(self, work: Callable[[], Any]) -> Any:
        return work()
