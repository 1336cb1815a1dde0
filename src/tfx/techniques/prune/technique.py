"""Pruning: single weights by magnitude (Zhu & Gupta 2017, arXiv 1710.01878), and whole heads, units and layers."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from tfx.compression.checkpoint import Storage
from tfx.config.schema import Root, group, setting
from tfx.data.tokenizer import Tokenizer
from tfx.errors import UserError
from tfx.model.architecture import Architecture
from tfx.model.rewiring import Rewiring
from tfx.model.transformer import Transformer, count_parameters
from tfx.tasks.prepare import PreparedData
from tfx.techniques.calibration import Calibration
from tfx.techniques.contract import Technique, TechniqueSettings
from tfx.techniques.prune.magnitude import magnitude_masks, parse_pattern, pattern_mask
from tfx.techniques.prune.structure import StructureSettings, plan_structure, reduced_architecture
from tfx.techniques.selection import left_alone, select_weights


@dataclass
class PruneSettings(TechniqueSettings):
    """Settings of `Prune`."""

    start: float = setting(
        0.2, "when pruning begins, and whole parts are removed", minimum=0, below=1, unit="fractions of the budget"
    )
    end: float = setting(0.7, "when the sparsity is reached", above=0, maximum=1, unit="fractions of the budget")
    sparsity: float = setting(0.5, "share of zeros in the pruned tensors at the end", minimum=0, below=1)
    threshold: float | None = setting(None, "prune weights of a smaller magnitude, instead of a share of them", above=0)
    pattern: str | None = setting(
        None,
        "n:m, such as 2:4: of every m consecutive inputs n stay; sparsity must be 1 - n/m",
        paper="Mishra 2021, arXiv 2104.08378",
    )
    scope: str = setting(
        "tensor",
        "where magnitudes are compared: over all tensors, inside each, or inside each output row",
        choices=("global", "tensor", "row"),
    )
    embeddings: bool = setting(False, "prune the embeddings and the output layer too")
    vectors: bool = setting(False, "prune norms and biases too; not with a pattern")
    skip: list[str] = setting([], "patterns of tensor names that are not pruned ('decoder.blocks.0.*')")
    schedule: str = setting("cubic", "how the sparsity rises from start to end", choices=("cubic", "linear", "once"))
    initial: float = setting(0.0, "sparsity at the start", minimum=0, below=1)
    every: float = setting(0.01, "time between prunings", above=0, maximum=1, unit="fractions of the budget")
    rewind: float | None = setting(
        None,
        "once the sparsity is reached, reset the remaining weights to their values at this fraction of the budget; "
        "null: never",
        minimum=0,
        below=1,
        paper="Frankle 2020, arXiv 1912.05671",
    )
    store: str = setting(
        "fp16", "number format in the file for weights that are not quantized", choices=("fp16", "fp32")
    )
    structure: StructureSettings = group(StructureSettings)


def sparsity_at(settings: PruneSettings, progress: float) -> float:
    """The sparsity at a progress: s_f + (s_i - s_f) (1 - t)^3 for t from 0 at start to 1 at end (Zhu & Gupta 2017)."""
    if progress < settings.start:
        return 0.0
    passed = min(1.0, (progress - settings.start) / (settings.end - settings.start))
    if settings.schedule == "once":
        return settings.sparsity
    left = (1.0 - passed) ** (3 if settings.schedule == "cubic" else 1)
    return settings.sparsity + (settings.initial - settings.sparsity) * left


def _kept(sparsity: float, of: int) -> int:
    """How many of so many weights stay."""
    return of - round(sparsity * of)


class Prune(Technique):
    """Zeroes weights during training, along a ramp; removes heads, units and layers at its start."""

    name = "prune"
    Settings = PruneSettings
    effects: tuple[str, ...] = ("zeroes weights",)

    settings: PruneSettings

    def __init__(self, settings: PruneSettings) -> None:
        super().__init__(settings)
        self.masks: dict[str, Tensor] = {}
        self._due = -1
        self._reached = False
        self._removed = 0
        self._tokens: tuple[int, int] | None = None
        self._early: dict[str, Tensor] = {}
        self._rewound = 0
        if "rewire" in self.hooks():
            self.effects = (*self.effects, "removes parts")

    # --- declarations ---------------------------------------------------------------------------------

    def check(self, config: Root) -> None:
        settings = self.settings
        if settings.start >= settings.end:
            raise UserError(
                f"technique.prune.start={settings.start} must lie before technique.prune.end={settings.end}"
            )
        if settings.initial > settings.sparsity:
            raise UserError(
                f"technique.prune.initial={settings.initial:g} is above sparsity={settings.sparsity:g}, and "
                "what is gone stays gone"
            )
        self._check_pattern()
        if settings.rewind is not None:
            self._check_rewind(settings.rewind, config)

    def _check_pattern(self) -> None:
        """Checks settings that a pattern or a threshold excludes: each alone decides which weights are zeroed."""
        settings = self.settings
        given = (
            "a pattern" if settings.pattern is not None else "a threshold" if settings.threshold is not None else None
        )
        if given and settings.scope != PruneSettings.scope:
            raise UserError(
                f"technique.prune.scope={settings.scope} compares magnitudes, and with {given} nothing is compared: "
                "leave one of the two out"
            )
        if settings.threshold is not None and settings.initial:
            raise UserError(
                "technique.prune.initial is where a sparsity begins, and a threshold has none: leave it out"
            )
        if settings.pattern is None:
            return
        keep, of = parse_pattern(settings.pattern)
        if settings.threshold is not None:
            raise UserError("technique.prune has both a pattern and a threshold: name one")
        if settings.vectors:
            raise UserError(
                "technique.prune.vectors=true: a pattern is one of matrices' inputs; leave one of the two out"
            )
        exact = 1 - keep / of
        if _kept(settings.sparsity, of) != keep or not math.isclose(settings.sparsity, exact, abs_tol=5e-3):
            raise UserError(
                f"technique.prune.pattern={settings.pattern} leaves a sparsity of {exact:g}, not "
                f"{settings.sparsity:g}: set technique.prune.sparsity={exact:g}"
            )

    def _check_rewind(self, rewind: float, config: Root) -> None:
        """It needs training before it, and after the sparsity is reached."""
        settings = self.settings
        if "mask" not in self.hooks():
            raise UserError("technique.prune.rewind is for single weights, and none are pruned: leave it out")
        if config.trainer.budget.is_zero:
            raise UserError("technique.prune.rewind returns to weights of this training, and the budget is zero")
        name, reached = ("start", settings.start) if settings.schedule == "once" else ("end", settings.end)
        if rewind >= reached:
            raise UserError(
                f"technique.prune.rewind={rewind:g} must lie before the sparsity is reached, with "
                f"schedule={settings.schedule} at {name}={reached:g}"
            )
        if reached == 1.0:
            raise UserError("technique.prune.rewind needs training after the sparsity is reached: end below 1")

    def hooks(self) -> tuple[str, ...]:
        used = []
        if self.settings.structure.vocabulary:
            used.append("reduce_tokenizer")
        if replace(self.settings.structure, vocabulary=False) != StructureSettings():
            used.append("rewire")
        if self.settings.sparsity > 0 or self.settings.threshold is not None:
            used.append("mask")
        return tuple(used)

    def chosen(self, model: Transformer) -> dict[str, Tensor]:
        """The weights that are pruned, by name.

        Raises `UserError` if a pattern does not divide a tensor, or if ``skip`` matches none.
        """
        settings = self.settings
        weights = select_weights(
            model,
            settings.skip,
            "technique.prune.skip",
            embeddings=settings.embeddings,
            vectors=settings.vectors,
        )
        if self.settings.pattern is not None:
            _, of = parse_pattern(self.settings.pattern)
            for name, weight in weights.items():
                if weight.shape[1] % of:
                    raise UserError(
                        f"technique.prune.pattern={self.settings.pattern}: {of} does not divide the {weight.shape[1]} "
                        f"inputs of tensor '{name}'; leave it out with technique.prune.skip=['{name}']"
                    )
        return weights

    def plan(self, model: Transformer) -> list[str]:
        lines = []
        if self._tokens is not None:
            kept, whole = self._tokens
            lines.append(f"{whole - kept:,} of {whole:,} tokens are never used: removed with their embeddings")
        if "mask" not in self.hooks():
            return lines
        chosen = self.chosen(model)
        pruned = sum(weight.numel() for weight in chosen.values())
        whole = sum(parameter.numel() for parameter in model.parameters())
        what = (
            f"threshold {self.settings.threshold:g}"
            if self.settings.threshold is not None
            else f"{self.settings.sparsity:.0%}"
        )
        line = f"{what} of {pruned:,} weights, {pruned / whole:.0%} of the model"
        return [*lines, line + left_alone(model, chosen)]

    # --- hooks ----------------------------------------------------------------------------------------

    def reduce_tokenizer(self, data: PreparedData) -> tuple[Tokenizer, list[int]] | None:
        used = np.unique(np.concatenate([np.unique(part) for part in data.splits["train"].tokens_of_all]))
        tokenizer, kept = data.tokenizer.reduced(used.tolist())
        self._tokens = (len(kept), data.tokenizer.vocab_size)
        return None if len(kept) == data.tokenizer.vocab_size else (tokenizer, kept)

    def reduced(self, architecture: Architecture) -> Architecture:
        return reduced_architecture(architecture, self.settings.structure)

    def rewire(self, model: Transformer, progress: float) -> Rewiring | None:
        if self._removed or progress < self.settings.start:
            return None
        rewiring = plan_structure(model, self.settings.structure)
        before = sum(parameter.numel() for parameter in model.parameters())
        self._removed = before - count_parameters(rewiring.architecture)
        return rewiring

    def rewired(self, rewiring: Rewiring) -> None:
        self.masks = rewiring.carry(self.masks)
        self._early = rewiring.carry(self._early)

    @torch.no_grad()
    def update(self, model: Transformer, progress: float, masked: Callable[[str, Tensor], Tensor]) -> None:
        settings = self.settings
        if settings.rewind is not None and progress >= settings.rewind and not self._early and not self._reached:
            self._early = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
        if progress < settings.start or self._reached or not (settings.sparsity or settings.threshold is not None):
            return
        due = int((min(progress, settings.end) - settings.start) / settings.every + 1e-9)
        reached = progress >= settings.end or settings.schedule == "once"
        if due == self._due and not reached:
            return
        self._due, self._reached = due, reached
        self.masks = self._new_masks(model, sparsity_at(settings, progress))
        if reached and self._early:
            for name, parameter in model.named_parameters():
                changed = parameter != self._early[name]
                self._rewound += int((changed & self.masks[name] if name in self.masks else changed).sum())
                parameter.copy_(self._early[name])
            self._early = {}

    def _new_masks(self, model: Transformer, sparsity: float) -> dict[str, Tensor]:
        settings = self.settings
        # What was pruned stays pruned: its magnitude counts as 0.
        weights = {
            name: weight * self.masks[name] if name in self.masks else weight
            for name, weight in self.chosen(model).items()
        }
        if settings.threshold is not None:
            return {name: weight.abs() >= settings.threshold for name, weight in weights.items()}
        if settings.pattern is not None:
            _, of = parse_pattern(settings.pattern)
            return {name: pattern_mask(weight, _kept(sparsity, of), of) for name, weight in weights.items()}
        return magnitude_masks(weights, sparsity, settings.scope)

    def mask(self, name: str, weight: Tensor) -> Tensor | None:
        return self.masks.get(name)

    def settled(self) -> bool:
        hooks = self.hooks()
        return (self._reached or "mask" not in hooks) and (bool(self._removed) or "rewire" not in hooks)

    def finish(self, model: Transformer, calibration: Calibration) -> None:
        self.update(model, 1.0, lambda _, weight: weight)

    def keeps_zeros(self, share: float) -> bool:
        # The smallest go first, and those are the zeros there were.
        return self.settings.threshold is not None or self.settings.sparsity >= share

    def storage(self) -> Storage | None:
        return Storage(dtype=torch.float16 if self.settings.store == "fp16" else torch.float32)

    # --- proof and state ------------------------------------------------------------------------------

    def evidence(self) -> dict[str, float]:
        whole = sum(mask.numel() for mask in self.masks.values())
        zeros = sum(int((~mask).sum()) for mask in self.masks.values())
        return {
            "sparsity": zeros / max(1, whole),
            "weights_zeroed": float(zeros),
            "weights_rewound": float(self._rewound),
            "parameters_removed": float(self._removed),
            "tokens_removed": 0.0 if self._tokens is None else float(self._tokens[1] - self._tokens[0]),
        }

    def state_dict(self) -> dict[str, Any]:
        return {
            "masks": self.masks,
            "early": self._early,
            "due": self._due,
            "reached": self._reached,
            "removed": self._removed,
            "rewound": self._rewound,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.masks = {name: mask.bool() for name, mask in state["masks"].items()}
        self._early, self._due = dict(state["early"]), state["due"]
        self._reached, self._removed, self._rewound = state["reached"], state["removed"], state["rewound"]
