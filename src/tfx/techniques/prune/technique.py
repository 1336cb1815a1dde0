"""Pruning: single weights along a ramp (Zhu & Gupta 2017, arXiv 1710.01878) or in one shot; heads, units and layers."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from tfx.compression.checkpoint import Storage
from tfx.config.schema import Root
from tfx.data.tokenizer import Tokenizer
from tfx.errors import UserError
from tfx.model.architecture import Architecture
from tfx.model.rewiring import Factor, Rewiring
from tfx.model.transformer import Transformer, count_parameters
from tfx.tasks.prepare import PreparedData
from tfx.techniques.calibration import Calibration
from tfx.techniques.contract import Technique
from tfx.techniques.prune.depth import layers_by_loss
from tfx.techniques.prune.masks import parse_pattern, pattern_mask, share_masks, smallest
from tfx.techniques.prune.movement import MovementScores
from tfx.techniques.prune.one_shot import prune_blocks
from tfx.techniques.prune.settings import PruneSettings, check_settings, ramp, sparsity_at
from tfx.techniques.prune.structure import (
    Layers,
    StructureSettings,
    kept_layers,
    plan_structure,
    reduced_architecture,
)
from tfx.techniques.rows import ALL_ROWS, Rows
from tfx.techniques.weight_selection import left_alone, select_weights


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
        # How many of its removals are done, the parameters that these took, and the loss that chose the layers.
        self._removals = 0
        self._removed = 0
        self._layers: Layers | None = None
        self._layers_loss = 0.0
        self._tokens: tuple[int, int] | None = None
        self._early: dict[str, Tensor] = {}
        self._rewound = 0
        self._movement = None
        if settings.score == "movement":
            self._movement = MovementScores(is_soft=settings.threshold is not None)
        # The weights that scores follow, with their sizes; None: not known yet.
        self._followed: dict[str, int] | None = None
        self._progress = 0.0
        self._returned = 0
        self._beyond_magnitude = 0.0
        self._output_error = 0.0
        if "rewire" in self.hooks():
            self.effects = (*self.effects, "removes parts")

    # --- declarations ---------------------------------------------------------------------------------

    def check(self, config: Root) -> None:
        check_settings(self.settings, config)

    def conflicts(self) -> dict[str, str]:
        if self._movement is None or not self.settings.prunes_weights:
            return {}
        why = "movement scores belong to the matrices as they were; prune in a run of its own, with init_from"
        return {"splits matrices": why}

    def needs_whole_weights(self) -> str | None:
        if any(progress < 1.0 for progress, _ in self._planned()):
            return "removes parts of the model while it trains (technique.prune.structure)"
        return None

    def when(self, hook: str) -> str:
        return "once training is over" if hook == "mask" and self.settings.is_one_shot else super().when(hook)

    def hooks(self) -> tuple[str, ...]:
        used = []
        if self.settings.structure.vocabulary:
            used.append("reduce_tokenizer")
        if self._planned():
            used.append("rewire")
        if self.settings.prunes_weights:
            used.append("mask")
        return tuple(used)

    def _planned(self) -> list[tuple[float, StructureSettings]]:
        """The removals of parts, in order: from which progress on, and what goes."""
        structure, start = self.settings.structure, self.settings.start
        if structure.layers_at == "start" or not structure.removes_layers:
            return [(start, structure)] if structure.removes_layers or structure.removes_inner else []
        inner = [(start, structure.inner_alone)] if structure.removes_inner else []
        return [*inner, (1.0, structure.layers_alone)]

    def _due_removal(self, progress: float) -> StructureSettings | None:
        planned = self._planned()[self._removals :]
        return planned[0][1] if planned and progress >= planned[0][0] else None

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
        line = f"{what} of {pruned:,} weights, {pruned / whole:.0%} of the model, by {self.settings.score}"
        if self.settings.is_one_shot and self.settings.vectors:
            line += "; norms and biases, which multiply no inputs, by magnitude"
        return [*lines, line + left_alone(model, chosen)]

    # --- hooks ----------------------------------------------------------------------------------------

    def reduce_tokenizer(self, data: PreparedData) -> tuple[Tokenizer, list[int]] | None:
        used = np.unique(np.concatenate([np.unique(part) for part in data.splits["train"].tokens_of_all]))
        tokenizer, kept = data.tokenizer.reduced(used.tolist())
        self._tokens = (len(kept), data.tokenizer.vocab_size)
        return None if len(kept) == data.tokenizer.vocab_size else (tokenizer, kept)

    def reduced(self, architecture: Architecture) -> Architecture:
        return reduced_architecture(architecture, self.settings.structure)

    @torch.no_grad()
    def calibrate(
        self,
        model: Transformer,
        progress: float,
        calibration: Calibration,
        masked: Callable[[str, Tensor], Tensor],
    ) -> None:
        structure = self._due_removal(progress)
        if structure is None or not structure.removes_layers or structure.layers_by != "loss":
            return
        if progress >= 1.0:
            # The weights that go anyway are not to take part in the choice.
            for name, weight in model.named_parameters():
                weight.copy_(masked(name, weight))
        counts = {stack: len(numbers) for stack, numbers in kept_layers(model.architecture, structure).items()}
        present = {stack: count for stack, count in counts.items() if getattr(model, stack) is not None}
        found, self._layers_loss = layers_by_loss(model, present, calibration.validation_loss)
        self._layers = {stack: found.get(stack, []) for stack in counts}

    def rewire(self, model: Transformer, progress: float) -> Rewiring | None:
        structure = self._due_removal(progress)
        if structure is None:
            return None
        scores = None if self._movement is None else self._movement.get
        rewiring = plan_structure(model, structure, scores, self._layers)
        before = sum(parameter.numel() for parameter in model.parameters())
        self._removed += before - count_parameters(rewiring.architecture)
        self._removals, self._layers = self._removals + 1, None
        return rewiring

    def rewired(self, rewiring: Rewiring) -> None:
        if any(isinstance(origin, Factor) and origin.name in self.masks for origin in rewiring.origins.values()):
            # Matrices became products, whose weights have no mask yet.
            self._due, self._reached = -1, False
        self.masks = rewiring.carry(self.masks)
        self._early = rewiring.carry_weights(self._early)
        if self._movement is not None:
            self._movement.rewired(rewiring)
            self._followed = None

    @torch.no_grad()
    def update(self, model: Transformer, progress: float, masked: Callable[[str, Tensor], Tensor]) -> None:
        settings = self.settings
        self._progress = progress
        if self._movement is not None and self._followed is None:
            everything = select_weights(model, [], "", embeddings=settings.embeddings, vectors=settings.vectors)
            self._followed = {name: weight.numel() for name, weight in everything.items()}
        if self._is_early(progress):
            self._early = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
        if not self._is_pruning(progress):
            return
        reached = self._reaches(progress)
        self._due, self._reached = self._number_at(progress), reached
        before, self.masks = self.masks, self._new_masks(model, sparsity_at(settings, progress), masked)
        self._returned += sum(int((self.masks[name] & ~mask).sum()) for name, mask in before.items())
        if reached:
            self._compare_with_magnitude(self.chosen(model))
        if reached and self._early:
            for name, parameter in model.named_parameters():
                changed = parameter != self._early[name]
                self._rewound += int((changed & self.masks[name] if name in self.masks else changed).sum())
                parameter.copy_(self._early[name])
            self._early = {}

    def is_due(self, progress: float) -> bool:
        return self._is_early(progress) or self._is_pruning(progress)

    def _is_early(self, progress: float) -> bool:
        """Whether the weights of now are those to which they are rewound."""
        rewind = self.settings.rewind
        return rewind is not None and progress >= rewind and not self._early and not self._reached

    def _is_pruning(self, progress: float) -> bool:
        """Whether new masks are due."""
        settings = self.settings
        if progress < settings.start or self._reached or not settings.prunes_weights or settings.is_one_shot:
            return False
        return self._reaches(progress) or self._number_at(progress) != self._due

    def _reaches(self, progress: float) -> bool:
        """Whether masks of now have the sparsity of the end."""
        return progress >= self.settings.end or self.settings.schedule == "once"

    def _number_at(self, progress: float) -> int:
        """The number of the pruning that is due at a progress."""
        settings = self.settings
        return int((min(progress, settings.end) - settings.start) / settings.every + 1e-9)

    def _new_masks(
        self, model: Transformer, sparsity: float, masked: Callable[[str, Tensor], Tensor]
    ) -> dict[str, Tensor]:
        settings, movement = self.settings, self._movement
        chosen = self.chosen(model)
        if movement is None:
            # What was pruned stays pruned, and what another technique keeps at zero: its magnitude counts as 0.
            scores = {name: masked(name, weight).abs() for name, weight in chosen.items()}
        else:
            scores = {name: movement.get(name, weight) for name, weight in chosen.items()}
        if settings.threshold is not None:
            if movement is not None:
                scores = {name: score.sigmoid() for name, score in scores.items()}
            return {name: score >= settings.threshold for name, score in scores.items()}
        return self._masks_of(scores, sparsity)

    def _masks_of(self, scores: Mapping[str, Tensor], sparsity: float) -> dict[str, Tensor]:
        """The masks that keep the largest scores, compared as the settings say."""
        if self.settings.pattern is not None:
            _, of = parse_pattern(self.settings.pattern)
            return {name: pattern_mask(score, of - round(sparsity * of), of) for name, score in scores.items()}
        return share_masks(scores, sparsity, self.settings.unit)

    def _compare_with_magnitude(self, weights: Mapping[str, Tensor]) -> None:
        """Counts the zeros that magnitude would have kept, with as many zeros in each tensor."""
        if self.settings.score == "magnitude":
            return
        kept = zeros = 0
        for name, weight in weights.items():
            gone = ~self.masks[name]
            count = int(gone.sum())
            smallest_gone = smallest(weight.abs().reshape(1, -1), count).view_as(weight)
            kept, zeros = kept + int((gone & ~smallest_gone).sum()), zeros + count
        self._beyond_magnitude = kept / max(1, zeros)

    def mask(self, name: str, weight: Tensor) -> Tensor | None:
        return self.masks.get(name)

    def compresses(self, progress: float) -> bool:
        begins = [at for at, _ in self._planned()]
        if self.settings.prunes_weights:
            begins.append(1.0 if self.settings.is_one_shot else self.settings.start)
        return progress >= min(begins, default=self.settings.start)

    def follows_gradients(self) -> bool:
        if self._movement is None:
            return False
        return not self._reached if self.settings.prunes_weights else self._removals == 0

    def gradients_of_zeros(self) -> bool:
        return self.follows_gradients()

    def follow_gradient(
        self,
        name: str,
        weight: Tensor,
        gradient: Tensor,
        masked: Callable[[str, Tensor], Tensor],
        rows: Rows = ALL_ROWS,
    ) -> None:
        if self._movement is None or self._followed is None or name not in self._followed:
            return
        # The penalty is on the mean of the sigmoids of all scores.
        penalty = self.settings.penalty * ramp(self.settings, self._progress) / sum(self._followed.values())
        self._movement.follow(name, weight, gradient, penalty, rows)

    def by_rows(self) -> Iterable[tuple[str, Tensor]]:
        return () if self._movement is None else self._movement.by_rows()

    def settled(self) -> bool:
        settings = self.settings
        masked = self._reached or not settings.prunes_weights or settings.is_one_shot
        return masked and self._removals == len(self._planned())

    def finish(self, model: Transformer, calibration: Calibration) -> None:
        settings = self.settings
        if not settings.is_one_shot:
            self.update(model, 1.0, lambda _, weight: weight)
            return
        chosen = self.chosen(model)
        before = {name: weight.clone() for name, weight in chosen.items()}
        self.masks, self._output_error = prune_blocks(chosen, calibration, settings)
        rest = {name: weight.abs() for name, weight in chosen.items() if name not in self.masks}
        self.masks |= self._masks_of(rest, settings.sparsity)
        self._compare_with_magnitude(before)

    def keeps_zeros(self, share: float) -> bool:
        # The smallest go first, and those are the zeros there were. Movement does not ask for the size of a weight, and
        # one shot after training comes too late.
        is_first = self.settings.score == "magnitude"
        return is_first and (self.settings.threshold is not None or self.settings.sparsity >= share)

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
            **self._evidence_of_score(),
            "tokens_removed": 0.0 if self._tokens is None else float(self._tokens[1] - self._tokens[0]),
        }

    def _evidence_of_score(self) -> dict[str, float]:
        """What the scores did that magnitude would not have done, and the loss with the layers that it chose."""
        found = {}
        if self.settings.score != "magnitude" and self.settings.prunes_weights:
            found["zeros_magnitude_keeps"] = self._beyond_magnitude
        if self._movement is not None:
            found |= {"score_steps": float(self._movement.steps), "weights_returned": float(self._returned)}
        if self.settings.is_one_shot:
            found["output_error"] = self._output_error
        if self.settings.structure.layers_by == "loss":
            found["layers_loss"] = self._layers_loss
        return found

    def acted(self) -> bool:
        evidence = self.evidence()
        return any(evidence[name] for name in ("weights_zeroed", "parameters_removed", "tokens_removed"))

    def state_dict(self) -> dict[str, Any]:
        return {
            "masks": self.masks,
            "early": self._early,
            "due": self._due,
            "reached": self._reached,
            "removed": self._removed,
            "removals": self._removals,
            "layers_loss": self._layers_loss,
            "rewound": self._rewound,
            "movement": None if self._movement is None else self._movement.state_dict(),
            "returned": self._returned,
            "beyond_magnitude": self._beyond_magnitude,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.masks = {name: mask.bool() for name, mask in state["masks"].items()}
        self._early, self._due = dict(state["early"]), state["due"]
        self._reached, self._removed, self._rewound = state["reached"], state["removed"], state["rewound"]
        # Earlier states have one removal, or none.
        self._removals = state.get("removals", int(self._removed > 0))
        self._layers_loss = state.get("layers_loss", 0.0)
        if self._movement is not None:
            self._movement.load_state_dict(state["movement"])
            self._returned, self._beyond_magnitude = state["returned"], state["beyond_magnitude"]
