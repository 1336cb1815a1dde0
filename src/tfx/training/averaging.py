"""Averages of the weights over training: exponential, or the mean of snapshots near the end."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from tfx.config.schema import AveragingConfig
from tfx.model.rewiring import ParameterMap


class Averager:
    """Keeps an average of a model's parameters; with ``kind=none`` it is the parameters themselves.

    ``ema``: Polyak's average with geometric forgetting; its decay warms up as (1 + n) / (10 + n), so that
    the random start is forgotten early. ``last``: the plain mean of snapshots, evenly spaced from ``start``
    to the end of the budget (Vaswani 2017, section 6.1).
    """

    def __init__(self, config: AveragingConfig, model: nn.Module) -> None:
        self.config = config
        self.updates = 0
        self._due = 0
        self._parameters: list[Tensor] = [parameter for parameter in model.parameters() if parameter.requires_grad]
        self.average: list[Tensor] | None = None

    @torch.no_grad()
    def update(self, progress: float) -> None:
        """Called after each optimizer step."""
        if self.config.kind == "none":
            return
        if self.config.kind == "ema":
            weight = 1.0 - min(self.config.decay, (1 + self.updates) / (10 + self.updates))
        else:
            gap = (1.0 - self.config.start) / self.config.snapshots
            due = int((progress - self.config.start) / gap + 1e-9)
            if due <= self._due:
                return
            # A long step may pass several due times at once: they make one snapshot, not several in a row.
            self._due = due
            weight = 1.0 / (self.updates + 1)
        if self.average is None:
            self.average = [parameter.detach().clone() for parameter in self._parameters]
        else:
            torch._foreach_lerp_(self.average, [p.detach() for p in self._parameters], weight)
        self.updates += 1

    @contextmanager
    def applied(self) -> Iterator[None]:
        """Inside, the model holds the average, if there is one; after, its own weights again."""
        if self.average is None:
            yield
            return
        own = [parameter.detach().clone() for parameter in self._parameters]
        self._put(self.average)
        try:
            yield
        finally:
            self._put(own)

    def apply(self) -> None:
        """Puts the average, if there is one, into the model for good."""
        if self.average is not None:
            self._put(self.average)

    def rewire(self, parameter_map: ParameterMap) -> None:
        """Carries the state of parameters over to the smaller ones that replace them."""
        if self.average is not None:
            pairs = zip(self._parameters, self.average, strict=True)
            self.average = [new for old, value in pairs for new in parameter_map.select(old, value)]
        self._parameters = parameter_map.follow(self._parameters)

    def state_dict(self) -> dict[str, Any]:
        """The average so far, and the number of weights in it."""
        return {"updates": self.updates, "due": self._due, "average": self.average}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """The inverse of `state_dict`."""
        self.updates, self._due = state["updates"], state["due"]
        if state["average"] is not None:
            pairs = zip(state["average"], self._parameters, strict=True)
            self.average = [average.to(parameter.device) for average, parameter in pairs]

    def go_back(self, progress: float) -> None:
        """Call this after loading a state. With a longer budget less of it is spent: snapshots from a last part that
        is now still to come are dropped.
        """
        if self.config.kind != "last":
            return
        if progress < self.config.start:
            self.updates, self._due, self.average = 0, 0, None
        else:
            gap = (1.0 - self.config.start) / self.config.snapshots
            self._due = min(self._due, int((progress - self.config.start) / gap + 1e-9))

    @torch.no_grad()
    def _put(self, values: list[Tensor]) -> None:
        torch._foreach_copy_([parameter.detach() for parameter in self._parameters], values)
