"""How the processes of a run share a training: which rows each one runs, and how their gradients become one step.

Each global batch is divided by rows. Techniques change the whole batch before, with the draws of a run of one process,
so the number of processes changes nothing but the order of sums.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from tfx.config.schema import LocalConfig, Root
from tfx.errors import UserError
from tfx.model.batch import slices
from tfx.model.rewiring import ParameterMap
from tfx.model.transformer import Transformer
from tfx.processes.group import Group
from tfx.techniques.rows import Rows, all_rows
from tfx.training.optimizers import Optimizers

if TYPE_CHECKING:
    from tfx.techniques.stack import Stack


class Sharing:
    """Data parallelism: each step's gradients are summed over all processes, whose weights so stay the same.

    Gradients are summed once a step, in buckets, after the last backward pass, and not by torch's
    `DistributedDataParallel`. That wrapper sums while a backward pass runs, which is faster by the time that the
    messages take, but takes each pass for the whole step and each parameter for one that gets its gradient there. Here
    a step has several passes (accumulation, pieces that fit the memory), the weights may be seen through a mask and a
    grid, so that their gradients exist only at the end, and a process that runs out of memory in a pass repeats it:
    under the wrapper the others would wait for it for ever.
    """

    # Whether each process takes steps by itself, with the gradient of its own rows.
    steps_apart = False
    # Whether each process holds a part of each weight.
    divides_weights = False

    def __init__(self, group: Group) -> None:
        self.group = group

    # --- a step -----------------------------------------------------------------------------------------

    def own(self, count: int, pieces: int) -> list[slice]:
        """The slices of ``count`` rows that this process runs; none if there are more processes than rows."""
        return slices(range(self.group.rank, count, self.group.size), pieces)

    def all_fit(self, fits: bool, parameters: Sequence[Tensor]) -> bool:
        """Whether the step fitted the memory of every process. A gradient that some process has, all have then."""
        if self.group.size == 1:
            return fits
        exceeds, *present = self.group.greatest(float(not fits), *(float(p.grad is not None) for p in parameters))
        if exceeds:
            return False
        for parameter, is_present in zip(parameters, present, strict=True):
            if is_present and parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
        return True

    def combine(self, parameters: Sequence[Tensor], sums: Mapping[str, Tensor], complete: bool) -> dict[str, Tensor]:
        """Adds up gradients, in place, and named sums over all processes. ``complete``: each process has all names."""
        names, values_N = totals(self.group, parameters[0].device, sums, complete)
        self.group.add_up([values_N, *(p.grad for p in parameters if p.grad is not None)])
        return dict(zip(names, values_N.unbind(), strict=True))

    def common_norm(self, norm: Tensor) -> Tensor:
        """The norm of the gradient by which all processes judge the step; not finite if it is so in any of them."""
        return norm

    # --- weights ----------------------------------------------------------------------------------------

    def divide(self, model: Transformer, extra: nn.Module) -> Transformer:
        """The model that trains: where weights are divided, a copy with this process's part of them.

        Raises `UserError` if that cannot be, with the modules that techniques train beside the model.
        """
        return model

    @contextmanager
    def gathered(self, divided: Transformer, whole: Transformer, *, changes: bool = False) -> Iterator[Transformer]:
        """Inside, ``whole`` has the weights of the model that trains, and can be evaluated.

        With ``changes`` the model that trains gets the weights that ``whole`` has at the end.
        """
        yield divided

    def joined(self, divided: Transformer, whole: Transformer) -> Transformer:
        """The model with the weights of the one that trained, on its device, once training is over."""
        return divided

    def rows(self, weight: Tensor) -> Rows:
        """The rows that this process holds of a weight of the model that trains."""
        return all_rows(weight)

    def saved_state(self, state: Any) -> Any:
        """A nested state with whole tensors; where weights are divided, on the CPU and in the first process alone."""
        return state

    def divide_moments(self, optimizers: Optimizers, states: list[dict[str, Any]]) -> list[dict[str, Any]]:
        """The states of optimizers with moments in the form of their parameters, from whole ones on the CPU."""
        return states

    # --- between steps ----------------------------------------------------------------------------------

    @property
    def are_equal(self) -> bool:
        """Whether all processes have the same weights now."""
        return True

    def begin(self, parameters: Sequence[Tensor], optimizers: Optimizers) -> None:
        """Call this before the first step, with the parameters that are trained: they are the same everywhere."""

    def stepped(self, averages: Sequence[Tensor]) -> None:
        """Call this after each step, with the averages of weights that go with the parameters."""

    def meet(self, averages: Sequence[Tensor]) -> None:
        """Gives all processes the same weights and averages, if they differ."""

    def rewire(self, parameter_map: ParameterMap) -> None:
        """Carries what it holds over to the smaller parameters that replace the old ones."""

    def state_dict(self) -> dict[str, Any]:
        """All that exact resuming needs, the same in each process."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """The inverse of `state_dict`."""


class LocalSteps(Sharing):
    """DiLoCo (Douillard 2023, arXiv 2311.08105): steps of each process by itself, joined now and then by an outer one.

    The outer optimizer is SGD with Nesterov momentum. Its gradient is the common weights before, minus the mean of the
    processes' weights now. The moments of the optimizers that step apart are averaged too, unless the config leaves
    each process its own: those of a few rows are noisier (local Adam; Iacob 2025, arXiv 2505.22549). Where the network
    is slow this sends weights and moments once in many steps, and not gradients in each.
    """

    steps_apart = True

    def __init__(self, group: Group, config: LocalConfig) -> None:
        super().__init__(group)
        self._config = config
        self._optimizers = Optimizers([])
        self._parameters: list[Tensor] = []
        self._common: list[Tensor] = []
        self._momentum: list[Tensor] = []
        # Steps since they last met.
        self._apart = 0

    def all_fit(self, fits: bool, parameters: Sequence[Tensor]) -> bool:
        return not self.group.any(not fits)

    def combine(self, parameters: Sequence[Tensor], sums: Mapping[str, Tensor], complete: bool) -> dict[str, Tensor]:
        names, values_N = totals(self.group, parameters[0].device, sums, complete)
        self.group.add_up([values_N])
        return dict(zip(names, values_N.unbind(), strict=True))

    def common_norm(self, norm: Tensor) -> Tensor:
        # A process without rows has no gradient, and torch then gives a norm of 0 on the CPU: all send theirs from one
        # kind of device, or they wait for each other for ever.
        found = norm.detach().to(self._parameters[0].device, copy=True).view(1)
        self.group.add_up([found])
        return found[0] / self.group.size

    @property
    def are_equal(self) -> bool:
        return self._apart == 0

    def begin(self, parameters: Sequence[Tensor], optimizers: Optimizers) -> None:
        self._optimizers = optimizers
        self._parameters = list(parameters)
        self._common = [parameter.detach().clone() for parameter in parameters]
        self._momentum = [torch.zeros_like(value) for value in self._common]

    def stepped(self, averages: Sequence[Tensor]) -> None:
        self._apart += 1
        if self._apart >= self._config.steps:
            self.meet(averages)

    @torch.no_grad()
    def meet(self, averages: Sequence[Tensor]) -> None:
        if self.are_equal:
            return
        self._apart = 0
        changes = torch._foreach_sub(self._common, [parameter.detach() for parameter in self._parameters])
        meeting = [*changes, *averages]
        if self._config.average_moments:
            meeting += self._optimizers.moments()
        self.group.add_up(meeting)
        torch._foreach_div_(meeting, float(self.group.size))
        momentum = self._config.outer_momentum
        torch._foreach_mul_(self._momentum, momentum)
        torch._foreach_add_(self._momentum, changes)
        torch._foreach_add_(changes, self._momentum, alpha=momentum)
        torch._foreach_add_(self._common, changes, alpha=-self._config.outer_lr)
        torch._foreach_copy_([parameter.detach() for parameter in self._parameters], self._common)

    def rewire(self, parameter_map: ParameterMap) -> None:
        momenta: list[Tensor] = []
        common: list[Tensor] = []
        for old, before, momentum in zip(self._parameters, self._common, self._momentum, strict=True):
            now = parameter_map.select(old, before)
            carried = [origin.select(momentum) for _, origin in parameter_map.elements(old)]
            # Factors of a matrix begin without momentum.
            momenta += carried or [torch.zeros_like(each) for each in now]
            common += now
        self._common, self._momentum = common, momenta
        self._parameters = parameter_map.follow(self._parameters)

    def state_dict(self) -> dict[str, Any]:
        return {"common": self._common, "momentum": self._momentum, "apart": self._apart}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._common, self._momentum = list(state["common"]), list(state["momentum"])
        self._apart = state["apart"]


def totals(group: Group, device: torch.device, sums: Mapping[str, Tensor], complete: bool) -> tuple[list[str], Tensor]:
    """The names of sums, in one order for all processes, and this process's own (N,). ``complete``: each has all."""
    names = list(sums) if complete else group.first(list(sums))
    exact = torch.float32 if device.type == "mps" else torch.float64
    zero = torch.zeros((), device=device)
    return names, torch.stack([sums.get(name, zero).detach().to(exact) for name in names])


_RUN_ONCE = "all processes run each block once in a step, which then gives its weights back"


def check_sharded(config: Root, stack: Stack) -> None:
    """Raises `UserError` for what needs whole weights in each step, if ``trainer.parallel`` divides them."""
    if config.trainer.parallel != "fsdp":
        return
    if needing := stack.needing_whole_weights():
        reasons = " and ".join(f"technique '{name}' {why}" for name, why in needing.items())
        raise UserError(
            f"trainer.parallel=fsdp divides each weight among the processes, and {reasons}: use trainer.parallel=ddp, "
            "or compress the finished model with init_from=RUN"
        )
    if stack.reads_states:
        raise UserError(
            "trainer.parallel=fsdp divides the weights of each block, and a technique reads the states between them "
            "(as technique.distill.layer_map, attention and relations do): use trainer.parallel=ddp"
        )
    copies = "a second copy of the weights cannot be divided"
    for refused, is_set, kept, why in (
        (
            f"optimizer={config.optimizer.name}",
            config.optimizer.name == "muon",
            "optimizer=adamw",
            "Muon makes whole matrices orthogonal",
        ),
        (
            f"trainer.averaging.kind={config.trainer.averaging.kind}",
            config.trainer.averaging.kind != "none",
            "trainer.averaging.kind=none",
            copies,
        ),
        ("model.layer_dropout", config.model.layer_dropout > 0, "model.layer_dropout=0", _RUN_ONCE),
        ("model.passes", config.model.passes > 1, "model.passes=1", _RUN_ONCE),
        ("trainer.keep=best", config.trainer.keep == "best", "trainer.keep=last", copies),
    ):
        if is_set:
            raise UserError(
                f"trainer.parallel=fsdp does not go with {refused}: {why}; set {kept}, or trainer.parallel=ddp"
            )
