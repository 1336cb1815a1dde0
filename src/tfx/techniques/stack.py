"""The stack: puts techniques in order, checks that they go together, runs their hooks, and asks for proof."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from omegaconf import OmegaConf
from torch import Tensor, nn

from tfx.config.registry import technique_class
from tfx.config.schema import Root
from tfx.data.batching import Batch
from tfx.data.prepare import PreparedData
from tfx.data.sources import Corpus
from tfx.errors import UserError
from tfx.model.transformer import Transformer
from tfx.techniques.contract import HOOKS, Moment, Objective, Teacher, TeacherNeed, Technique


class NoEffectError(Exception):
    """A technique of the stack did nothing."""


class Stack:
    """The techniques of one run. Whatever order they are given in, the stack is the same."""

    def __init__(self, techniques: Sequence[Technique], config: Root) -> None:
        """Raises `UserError` for conflicts, for cycles, and for settings that cannot work in this run."""
        self.config = config
        self._techniques = sorted(techniques, key=lambda technique: technique.name)
        for technique in self._techniques:
            if config.dataset.task not in technique.tasks:
                kinds = " and ".join(technique.tasks)
                raise UserError(f"technique '{technique.name}' is for {kinds}, and the run is {config.dataset.task}")
            technique.check(config)
        self._check_conflicts()
        self.order = {hook: resolve_order([t for t in self._techniques if hook in t.hooks()], hook) for hook in HOOKS}
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
            settings = OmegaConf.to_object(OmegaConf.merge(OmegaConf.structured(kind.Settings), values))
            techniques.append(kind(settings))
        return cls(techniques, config)

    def __len__(self) -> int:
        return len(self._techniques)

    @property
    def names(self) -> list[str]:
        """Techniques by the first hook that they act in."""
        ordered = [technique.name for hook in HOOKS for technique in self.order[hook]]
        return list(dict.fromkeys([*ordered, *(technique.name for technique in self._techniques)]))

    def plan(self) -> list[dict[str, Any]]:
        """What acts where, from when to when: one row a hook and technique, in the order in which they run."""
        return [
            {
                "phase": phase,
                "hook": hook,
                "technique": technique.name,
                "start": technique.settings.start,
                "end": technique.settings.end,
            }
            for hook, phase in HOOKS.items()
            for technique in self.order[hook]
        ]

    def _check_conflicts(self) -> None:
        for technique in self._techniques:
            for effect, why in technique.conflicts().items():
                for other in self._techniques:
                    if other is not technique and effect in other.effects and other.hooks():
                        sides = f"technique '{technique.name}' conflicts with technique '{other.name}'"
                        raise UserError(f"{sides}, which {effect}: {why}")

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

    def data_prepared(self, teachers: dict[str, Teacher], data: PreparedData, device: torch.device) -> None:
        """Shows the tokenized data to the techniques that have a teacher."""
        for technique in self._techniques:
            if technique.name in teachers:
                technique.receive_teacher(teachers[technique.name], data, device)

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

    def transform_batch(self, batch: Batch, moment: Moment) -> Batch:
        """Lets each technique change a training batch."""
        for technique in self.order["transform_batch"]:
            batch = technique.transform_batch(batch, moment)
        return batch

    def objective(self, objective: Objective, moment: Moment) -> None:
        """Lets each technique change the terms of the loss."""
        for technique in self.order["objective"]:
            technique.objective(objective, moment)

    def report(self, name: str, total: Tensor, count: int) -> None:
        """Hands what was measured of a loss term to the technique that added it."""
        for technique in self.order["objective"]:
            technique.report(name, total, count)

    # --- proof and state ------------------------------------------------------------------------------

    def evidence(self) -> dict[str, dict[str, float]]:
        """Each technique's proof that it acted. Raises `NoEffectError` where one did not, and may not."""
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


def resolve_order(techniques: Sequence[Technique], hook: str) -> list[Technique]:
    """Sorts by the declared effects: A runs after B where A asks for an effect of B's earlier, or B for A's later.

    Where nothing is declared, by name. Raises `UserError` for a cycle, naming its members.
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
            names = " and ".join(f"'{technique.name}'" for technique in waiting)
            raise UserError(f"techniques {names} each want to run before the other in {hook}: they cannot be combined")
        ordered.append(free)
        placed.add(free.name)
        waiting.remove(free)
    return ordered
