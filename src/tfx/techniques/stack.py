"""The stack: orders techniques, checks that they fit together, runs their hooks, and demands proof that they acted."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from omegaconf import OmegaConf
from torch import Tensor, nn

from tfx.compression.checkpoint import Storage, runnable
from tfx.compression.grid import Grid
from tfx.config.grammar import escaped
from tfx.config.registry import entry_points, technique_class
from tfx.config.schema import Root
from tfx.data.corpus import Corpus
from tfx.data.tokenizer import Tokenizer
from tfx.errors import UserError
from tfx.model.architecture import Architecture
from tfx.model.batch import Batch
from tfx.model.rewiring import Rewiring
from tfx.model.transformer import Transformer
from tfx.tasks.prepare import PreparedData
from tfx.techniques.contract import (
    HOOKS,
    Instant,
    Objective,
    Student,
    TeacherNeed,
    Teachers,
    Technique,
    TechniqueSettings,
)
from tfx.techniques.kept_zeros import KeepZeros
from tfx.techniques.weight_view import View

# Where `busiest` looks.
_MOMENTS = (0.5, 0.95, 0.05)

if TYPE_CHECKING:
    from tfx.techniques.calibration import Calibration


class NoEffectError(Exception):
    """A technique of the stack did nothing."""


class Stack:
    """The techniques of one run. The order in which they are given does not matter."""

    def __init__(self, techniques: Sequence[Technique], config: Root) -> None:
        """Raises `UserError` for conflicts, unmet needs and cycles, and for settings that cannot work in this run."""
        self.config = config
        self._techniques = sorted(techniques, key=lambda technique: technique.name)
        for technique in self._techniques:
            if config.dataset.task not in technique.tasks:
                kinds = " and ".join(technique.tasks)
                raise UserError(f"technique '{technique.name}' is for {kinds}, and the run is {config.dataset.task}")
            technique.check(config)
        self._check_conflicts()
        self._check_needs()
        self.order = {hook: resolve_order([t for t in self._techniques if hook in t.hooks()], hook) for hook in HOOKS}
        for hook, what in (
            ("grid", "put the weights on a grid of their own"),
            ("reduce_tokenizer", "reduce the tokenizer"),
        ):
            if len(self.order[hook]) > 1:
                names = " and ".join(f"'{technique.name}'" for technique in self.order[hook])
                raise UserError(f"techniques {names} each {what}: name one of them")
        self.view = View(self.order["mask"], self.order["grid"], self._techniques)
        if config.trainer.budget.is_zero:
            for technique in self._techniques:
                if technique not in self.compressing and not technique.acts_before_training():
                    raise UserError(f"technique '{technique.name}' acts only while training, and the budget is zero")
        # The weights on their grids, by name, once the technique that quantizes has finished.
        self.grids: dict[str, Grid] = {}
        # The masks of the techniques that have finished, by name: False means zero for good.
        self.masks: dict[str, Tensor] = {}
        for technique in self._techniques:
            if not technique.hooks() and not technique.settings.allow_noop:
                raise UserError(
                    f"technique '{technique.name}' does nothing with these settings; "
                    f"technique.{technique.name}.allow_noop=true lets it"
                )

    @classmethod
    def from_config(cls, config: Root) -> Stack:
        """Builds the techniques that the config names."""
        techniques = []
        for name, values in config.technique.items():
            kind = technique_class(name)
            settings = OmegaConf.to_object(OmegaConf.merge(OmegaConf.structured(kind.Settings), escaped(values)))
            techniques.append(kind(settings))
        if config.trainer.keep_zeros:
            techniques.append(KeepZeros(TechniqueSettings()))
        return cls(techniques, config)

    def __len__(self) -> int:
        return len(self._techniques)

    @property
    def names(self) -> list[str]:
        """Techniques by the first hook that they act in."""
        ordered = [technique.name for hook in HOOKS for technique in self.order[hook]]
        return list(dict.fromkeys([*ordered, *(technique.name for technique in self._techniques)]))

    def plan(self) -> list[dict[str, Any]]:
        """What acts in which hook, and when: one row per hook and technique, in the order in which they run."""
        return [
            {
                "phase": phase,
                "hook": hook,
                "technique": technique.name,
                "when": technique.when(hook),
            }
            for hook, phase in HOOKS.items()
            for technique in self.order[hook]
        ]

    def plan_for(self, model: Transformer) -> list[tuple[str, str]]:
        """Name of each technique, and a line on what it does to the model.

        Raises `UserError` for settings that do not fit the shapes of the model, before or after parts are removed.
        """
        lines = []
        whole, going = model, self.order["rewire"]
        for technique in going:
            architecture = technique.reduced(model.architecture)
            if architecture != model.architecture:
                lines.append((technique.name, technique.reduction(model.architecture, architecture)))
                with torch.device("meta"):
                    model = Transformer(architecture, model.rates)
        leave = max((technique.settings.start for technique in going), default=0.0)
        for technique in self._techniques:
            if model is not whole and technique.settings.start < leave:
                technique.plan(whole)
            lines += [(technique.name, line) for line in technique.plan(model)]
        return lines

    def busiest(self) -> float:
        """A progress at which most techniques act."""
        return max(_MOMENTS, key=lambda progress: sum(each.active(progress) for each in self._techniques))

    def settled(self) -> bool:
        """Whether everything that compresses weights has its final form."""
        return all(technique.settled() for technique in self.compressing)

    def _check_conflicts(self) -> None:
        for technique in self._techniques:
            for effect, why in technique.conflicts().items():
                for other in self._techniques:
                    if other is not technique and effect in other.effects and other.hooks():
                        sides = f"technique '{technique.name}' conflicts with technique '{other.name}'"
                        raise UserError(f"{sides}, which {effect}: {why}")

    def _check_needs(self) -> None:
        for technique in self._techniques:
            others = [other for other in self._techniques if other is not technique and other.hooks()]
            for effect in technique.needs:
                if not any(effect in other.effects for other in others):
                    known = [name for name in _with_effect(effect) if name != technique.name]
                    mend = f"add {' or '.join(known)}" if known else "no installed technique does"
                    raise UserError(
                        f"technique '{technique.name}' needs another one that {effect}, and none in this run does: "
                        f"{mend}"
                    )

    # --- teachers -------------------------------------------------------------------------------------

    def teacher_needs(self) -> list[tuple[Technique, TeacherNeed]]:
        """The teachers that must exist before the data are prepared."""
        needs = [(technique, technique.teacher_need(self.config)) for technique in self._techniques]
        return [(technique, need) for technique, need in needs if need is not None]

    # --- hooks ----------------------------------------------------------------------------------------

    def prepare_data(self, corpus: Corpus) -> Corpus:
        """Lets each technique change the text."""
        for technique in self.order["prepare_data"]:
            corpus = technique.prepare_data(corpus, self.config)
        return corpus

    def reduce_tokenizer(self, data: PreparedData) -> tuple[Tokenizer, list[int]] | None:
        """The smaller tokenizer that a technique wants; None: the data's own."""
        for technique in self.order["reduce_tokenizer"]:
            return technique.reduce_tokenizer(data)
        return None

    def data_prepared(
        self, teachers: Teachers, data: PreparedData, architecture: Architecture, device: torch.device
    ) -> None:
        """Shows tokenizer and tokenized data to the techniques, with its teachers to one that has some."""
        for technique in self._techniques:
            technique.see_tokenizer(data.tokenizer)
            technique.receive_data(data, architecture)
            if technique.name in teachers:
                technique.receive_teachers(teachers[technique.name], data, device)

    def prepare_model(self, model: Transformer) -> nn.ModuleDict:
        """Lets each technique change the first weights; returns their own modules, by technique."""
        extra = nn.ModuleDict()
        for technique in self.order["prepare_model"]:
            module = technique.prepare_model(model, self.config)
            if module is not None:
                extra[technique.name] = module
        return extra

    def reorder(self, lengths: np.ndarray, epoch: int, order: np.ndarray) -> np.ndarray:
        """Lets each technique reorder an epoch's batches."""
        for technique in self.order["order_batches"]:
            order = technique.order_batches(lengths, epoch, order)
        return order

    def rewrite_batch(self, batch: Batch, student: Student, moment: Instant) -> tuple[Batch, float]:
        """Lets each technique have the student write a training batch; the FLOPs are those of all."""
        total = 0.0
        for technique in self.order["rewrite_batch"]:
            batch, flops = technique.rewrite_batch(batch, student, moment)
            total += flops
        return batch, total

    def resize_batch(self, batch: Batch, moment: Instant) -> Batch:
        """Lets each technique change a training batch on the CPU, also in its lengths."""
        for technique in self.order["resize_batch"]:
            batch = technique.resize_batch(batch, moment)
        return batch

    def transform_batch(self, batch: Batch, moment: Instant) -> Batch:
        """Lets each technique change a training batch."""
        for technique in self.order["transform_batch"]:
            batch = technique.transform_batch(batch, moment)
        return batch

    @property
    def reads_unlabelled(self) -> bool:
        """Whether a technique learns from texts without references."""
        return any(technique.reads_unlabelled for technique in self._techniques)

    @property
    def trains_exits(self) -> bool:
        """Whether a technique trains the heads by which texts leave a classifier early."""
        return any(technique.trains_exits for technique in self._techniques)

    @property
    def reads_states(self) -> bool:
        """Whether the objective of a technique reads the states between the student's blocks."""
        return any(technique.reads_states() for technique in self.order["objective"])

    def objective(self, objective: Objective, moment: Instant) -> None:
        """Lets each technique change the terms of the loss."""
        for technique in self.order["objective"]:
            technique.objective(objective, moment)

    def report(self, name: str, total: Tensor, count: int) -> None:
        """Passes the measurement of a loss term to the technique that added it."""
        for technique in self.order["objective"]:
            technique.report(name, total, count)

    # --- compression of the weights -----------------------------------------------------------------------

    @property
    def compressing(self) -> list[Technique]:
        """The techniques that compress the final file, in the order in which they finish."""
        return list(dict.fromkeys([*self.order["reduce_tokenizer"], *self.order["rewire"], *self.view.techniques]))

    def compresses_now(self, progress: float) -> bool:
        """Whether a technique compresses weights from this progress on, or did before."""
        return any(technique.compresses(progress) for technique in self.compressing)

    def needing_whole_weights(self) -> dict[str, str]:
        """The names of the techniques that cannot train with some rows of each weight, with the reason of each."""
        whys = {technique.name: technique.needs_whole_weights() for technique in self._techniques}
        return {name: why for name, why in whys.items() if why is not None}

    def rewire(self, model: Transformer, progress: float, calibration: Calibration) -> Iterator[Rewiring]:
        """Lets each technique remove parts of the model: the caller applies each map before it asks for the next."""
        for technique in self.order["rewire"]:
            technique.calibrate(model, progress, calibration, self.view.masked)
            rewiring = technique.rewire(model, progress)
            if rewiring is not None:
                yield rewiring
                for other in self._techniques:
                    other.rewired(rewiring)

    @torch.no_grad()
    def finish(self, model: Transformer, calibration: Calibration) -> Iterator[Technique]:
        """Replaces the model's weights by their view, technique by technique; yields each when it has finished."""
        for technique in self.compressing:
            technique.finish(model, calibration)
            dtype = self.storage().dtype
            for name, parameter in model.named_parameters():
                mask = technique.mask(name, parameter)
                if mask is not None:
                    parameter.mul_(mask)
                    self.masks[name] = self.masks[name] & mask if name in self.masks else mask
                grid = technique.grid(name, parameter.detach(), 1.0)
                if grid is not None:
                    self.grids[name] = grid
                    parameter.copy_(grid.values())
                elif name not in self.grids:
                    parameter.copy_(_stored(name, parameter, dtype))
            self.tune(model, calibration)
            yield technique

    def tune(self, model: Transformer, calibration: Calibration) -> None:
        """Lets each technique choose what the file says besides weights (`Technique.tune`)."""
        choosing = [technique for technique in self._techniques if type(technique).tune is not Technique.tune]
        if choosing:
            weights = runnable(model, self.storage())
            for technique in choosing:
                technique.tune(model, weights, calibration.validation)

    def storage(self) -> Storage:
        """How the file stores the weights: those with a grid by its codes."""
        wishes = [wish for technique in self.compressing if (wish := technique.storage()) is not None]
        return Storage(
            grids=self.grids,
            dtype=min((wish.dtype for wish in wishes), key=lambda dtype: dtype.itemsize, default=torch.float32),
            entropy=all(wish.entropy for wish in wishes),
            int8=any(wish.int8 for wish in wishes),
        )

    # --- proof and state ------------------------------------------------------------------------------

    def evidence(self) -> dict[str, dict[str, float]]:
        """Each technique's proof that it acted. Raises `NoEffectError` if one did nothing, unless that is allowed."""
        for technique in self._techniques:
            if not technique.acted() and not technique.settings.allow_noop:
                raise NoEffectError(
                    f"technique '{technique.name}' changed nothing in this run ({technique.evidence()}); "
                    f"technique.{technique.name}.allow_noop=true lets it"
                )
        return {technique.name: technique.evidence() for technique in self._techniques}

    def state_dict(self) -> dict[str, Any]:
        """States by technique."""
        return {technique.name: technique.state_dict() for technique in self._techniques}

    def load_state_dict(self, states: dict[str, Any]) -> None:
        """The inverse of `state_dict`."""
        for technique in self._techniques:
            technique.load_state_dict(states[technique.name])


def _with_effect(effect: str) -> list[str]:
    """The installed techniques that have an effect, as their classes declare it."""
    found = []
    for name in entry_points():
        try:
            effects = technique_class(name).effects
        except UserError:  # one that cannot be loaded does not help
            continue
        if effect in effects:
            found.append(name)
    return found


def resolve_order(techniques: Sequence[Technique], hook: str) -> list[Technique]:
    """Sorts by the declared effects: A runs after B if A declares B's effect as earlier, or B declares A's as later.

    Without declarations, by name. Raises `UserError` for a cycle, naming only its members.
    """
    waiting = sorted(techniques, key=lambda technique: technique.name)
    earlier = {
        technique.name: {
            other.name
            for other in waiting
            if other is not technique
            and (set(technique.after) & set(other.effects) or set(other.before) & set(technique.effects))
        }
        for technique in waiting
    }
    ordered: list[Technique] = []
    placed: set[str] = set()
    while waiting:
        free = next((technique for technique in waiting if earlier[technique.name] <= placed), None)
        if free is None:
            names = " and ".join(f"'{name}'" for name in _cycle(waiting[0].name, earlier, placed))
            raise UserError(
                f"techniques {names} each want to run before another of them in {hook}: they cannot be combined"
            )
        ordered.append(free)
        placed.add(free.name)
        waiting.remove(free)
    return ordered


def _cycle(start: str, earlier: dict[str, set[str]], placed: set[str]) -> list[str]:
    """The names of a cycle: each technique that is not placed waits for another, so following those must come back."""
    path = [start]
    while (name := min(earlier[path[-1]] - placed)) not in path:
        path.append(name)
    return sorted(path[path.index(name) :])


def _stored(name: str, weight: Tensor, dtype: torch.dtype) -> Tensor:
    """The weight as read back from a file that stores it as ``dtype``; raises `UserError` if it overflows."""
    stored = weight.to(dtype).to(weight.dtype)
    if not bool(stored.isfinite().all()):
        raise UserError(
            f"tensor '{name}' has values beyond the range of {str(dtype).removeprefix('torch.')}: store fp32"
        )
    return stored
