"""The technique: chooses grids, trains with them, and leaves the weights on them."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import replace
from fnmatch import fnmatch
from typing import Any

import torch
from torch import Tensor, nn

from tfx.compression.checkpoint import Storage
from tfx.compression.grid import Grid
from tfx.config.schema import Root
from tfx.data.tokenizer import Tokenizer
from tfx.errors import UserError
from tfx.model.rewiring import Rewiring
from tfx.model.transformer import Transformer
from tfx.techniques.calibration import Calibration
from tfx.techniques.contract import Technique
from tfx.techniques.quantize.allocation import ByteBudget, rates_of
from tfx.techniques.quantize.codebook import cluster, encode_with
from tfx.techniques.quantize.gptq import gptq
from tfx.techniques.quantize.learned import LearnedStep
from tfx.techniques.quantize.rounding import GridKind, fit, scales_for_rate, to_grid
from tfx.techniques.quantize.settings import QuantizeSettings, check_settings, highest_rate
from tfx.techniques.quantize.steps import choose, coded_bits, measure, scalar_steps
from tfx.techniques.quantize.trellis import trellis
from tfx.techniques.rows import ALL_ROWS, Rows
from tfx.techniques.weight_selection import left_alone, select_weights

_DTYPES = {"fp16": torch.float16, "fp32": torch.float32}


class Quantize(Technique):
    """Weights of a few bits: trained with their grid in the last part of the budget, and stored as its codes."""

    name = "quantize"
    Settings = QuantizeSettings
    effects = ("puts weights on a grid",)

    settings: QuantizeSettings

    def __init__(self, settings: QuantizeSettings) -> None:
        super().__init__(settings)
        self._named_rate = settings.rate
        # As `code_bits` has it with a rate, which the budget is about to bring.
        self._budget = ByteBudget.of(settings.bytes, settings.ratio, highest_rate(settings.bits or 8))
        if self._budget is not None:
            self._budget.embedding_rate = settings.embedding_rate
            self.settings = settings = replace(settings, rate=self._budget.rate)
        # Whether the rows of a trellis have scales of their own; None: where that pays.
        self._by_row = {None: None, "tensor": False, "channel": True}.get(settings.granularity)
        self._shrinks = False
        self._due = -1
        self._aware_steps = 0
        self._bits: dict[str, int] = {}
        # Currently used in training: scales and zero points, or codebooks, by tensor.
        self._scales: dict[str, tuple[Tensor, Tensor | None]] = {}
        self._codebooks: dict[str, Tensor] = {}
        # Sums of squared gradients during training with the grid, for the weights of a rate.
        self._sensitivities: dict[str, Tensor] = {}
        # Logarithms of the factors on learned scales.
        self._steps: nn.ParameterDict | None = None
        self._final: dict[str, Grid] = {}
        self._error = 0.0

    # --- declarations ---------------------------------------------------------------------------------

    def check(self, config: Root) -> None:
        # How small these make the file is known when they have acted.
        self._shrinks = bool({"prune", "factorize"} & config.technique.keys())
        if self._budget is not None:
            self._budget.generation = config.evaluation
        check_settings(self.settings, config, self._named_rate)

    def when(self, hook: str) -> str:
        if hook != "grid":
            return super().when(hook)
        return (
            f"from {self.settings.start:.0%} on, and in the file" if self.settings.is_aware else "once training is over"
        )

    def conflicts(self) -> dict[str, str]:
        if not self.settings.learned_step:
            return {}
        return {"removes parts": "learned scales (technique.quantize.learned_step) belong to the layers as they were"}

    def needs_whole_weights(self) -> str | None:
        if self.settings.learned_step:
            return "trains scales beside the weights (technique.quantize.learned_step)"
        return None

    def hooks(self) -> tuple[str, ...]:
        return ("prepare_model", "grid") if self.settings.learned_step else ("grid",)

    def bits_of(self, name: str) -> int:
        """Bits of a tensor, by the last pattern that matches its name."""
        rules = (rule.rpartition(":") for rule in reversed(self.settings.layers))
        return next((int(bits) for pattern, _, bits in rules if fnmatch(name, pattern)), self.settings.code_bits)

    def chosen(self, model: Transformer) -> dict[str, Tensor]:
        """The weights that are quantized, by name.

        Raises `UserError` if a group does not divide a tensor, or if ``skip`` or ``layers`` match none.
        """
        settings = self.settings
        weights = select_weights(model, settings.skip, "technique.quantize.skip", embeddings=settings.embeddings)
        for rule in settings.layers:
            pattern = rule.rpartition(":")[0]
            if not any(fnmatch(name, pattern) for name in weights):
                raise UserError(f"technique.quantize.layers: no quantized tensor matches '{pattern}'")
        if settings.shared_by == "group" and settings.method != "codebook":
            for name, weight in weights.items():
                if weight.shape[1] % settings.group:
                    raise UserError(
                        f"technique.quantize.group={settings.group} does not divide the {weight.shape[1]} inputs of "
                        f"tensor '{name}'; name another, granularity=channel, or technique.quantize.skip=['{name}']"
                    )
        return weights

    def plan(self, model: Transformer) -> list[str]:
        chosen = self.chosen(model)
        whole = sum(parameter.numel() for parameter in model.parameters())
        share = sum(weight.numel() for weight in chosen.values()) / whole
        bits = sorted({self.bits_of(name) for name in chosen})
        unit = {"group": f"groups of {self.settings.group}"}.get(self.settings.shared_by, self.settings.shared_by)
        if self.settings.method == "trellis" and self._by_row is None:
            unit = "tensor, or row where that pays"
        kind = "codebooks" if self.settings.method == "codebook" else f"{self.settings.range}, by {unit}"
        if self.settings.rate is not None:
            kind += f", coded in {self._budget or f'{self.settings.rate:g} bits per weight'}"
            if self.settings.embedding_rate is not None:
                kind += f" ({self.settings.embedding_rate:g} bits per weight outside of the blocks)"
        if self._budget is not None and not self._shrinks:
            storage = self.storage()
            assert storage is not None
            self._budget.check(model, chosen, storage, self._grids_of_drawn)
        line = f"{' and '.join(map(str, bits))} bits, {self.settings.method}, {kind}: {share:.0%} of the model"
        return [line + left_alone(model, chosen)]

    def _grids_of_drawn(self, weights: Mapping[str, Tensor], least: float) -> dict[str, Grid]:
        """The grids of weights that no gradient and no input is known of, at the least rate."""
        settings = self.settings
        grids: dict[str, Grid] = {}
        for rate, part in rates_of(weights, least, settings.embedding_rate):
            if settings.method != "trellis":
                scales = scales_for_rate(part, rate, self.kind(""))
                grids |= {name: to_grid(weight, scales[name], None, self.kind(name)) for name, weight in part.items()}
                continue
            moments = {name: torch.eye(weight.shape[1], dtype=torch.float64) for name, weight in part.items()}
            sizes = {
                name: measure(weight, moments[name], torch.ones(()), self._by_row) for name, weight in part.items()
            }
            for name, step in choose(sizes, rate, _DTYPES[settings.scales]).items():
                grids[name] = trellis(part[name], moments[name], step, None, _DTYPES[settings.scales])
        return grids

    def kind(self, name: str) -> GridKind:
        """How to compute the scales of a tensor."""
        settings = self.settings
        group = {"tensor": None, "channel": 0, "group": settings.group}[settings.shared_by]
        return GridKind(
            self.bits_of(name), settings.range == "symmetric", group, settings.clip, _DTYPES[settings.scales]
        )

    # --- hooks ----------------------------------------------------------------------------------------

    def prepare_model(self, model: Transformer, config: Root) -> nn.Module | None:
        device = model.embedding.weight.device
        zeros = {}
        for name, weight in self.chosen(model).items():
            rows, groups, _ = self.kind(name).units(weight).shape
            zeros[_key(name)] = nn.Parameter(torch.zeros(rows, groups, device=device))
        self._steps = nn.ParameterDict(zeros)
        return self._steps

    def rewired(self, rewiring: Rewiring) -> None:
        self._scales, self._codebooks, self._sensitivities, self._due = {}, {}, {}, -1

    def update(self, model: Transformer, progress: float, masked: Callable[[str, Tensor], Tensor]) -> None:
        settings = self.settings
        if not settings.is_aware or progress < settings.start:
            return
        self._aware_steps += 1
        if not self.is_due(progress):
            return
        self._due = self._number_at(progress)
        weights = {name: masked(name, weight) for name, weight in self.chosen(model).items()}
        if self._budget is not None and not self._budget.is_known:
            self._take_rate(self._budget.first_rate(model, weights))
        if settings.method == "codebook":
            self._codebooks = self._cluster(weights)
        else:
            self._scales = self._fit(weights)

    def is_due(self, progress: float) -> bool:
        settings = self.settings
        if not settings.is_aware or progress < settings.start or (settings.learned_step and self._scales):
            return False
        return self._number_at(progress) != self._due

    def _number_at(self, progress: float) -> int:
        """The number of the choice of scales that is due at a progress."""
        return int((progress - self.settings.start) / self.settings.every + 1e-9)

    def _fit(self, weights: Mapping[str, Tensor]) -> dict[str, tuple[Tensor, Tensor | None]]:
        """Scales and zero points of masked weights."""
        if self.settings.rate is None:
            return {name: fit(weight, self.kind(name)) for name, weight in weights.items()}
        worth = self._worth(weights)
        scales: dict[str, Tensor] = {}
        for rate, part in rates_of(weights, self.settings.rate, self.settings.embedding_rate):
            if self.settings.method == "trellis":
                # Training goes on with a uniform grid: rounding each weight alone is cheap.
                squares = worth or {name: torch.ones(()) for name in part}
                scales |= scalar_steps(part, squares, rate, self._by_row)
            else:
                sensitivities = {name: float(worth[name].sum()) for name in part} if worth is not None else None
                scales |= scales_for_rate(part, rate, self.kind(""), sensitivities)
        return {name: (scale, None) for name, scale in scales.items()}

    def _worth(self, names: Collection[str]) -> dict[str, Tensor] | None:
        """The sensitivities of tensors relative to their mean, since a model that fits its data well has tiny ones.

        None where some are not known, as of layers that layer dropout has always skipped, or where all are zero.
        """
        known = self._sensitivities
        if not known.keys() >= set(names):
            return None
        mean = sum(float(known[name].sum()) for name in names) / max(1, len(names))
        return {name: known[name] / mean for name in names} if mean else None

    def _cluster(self, weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
        dtype = _DTYPES[self.settings.scales]
        return {name: cluster(weight, self.bits_of(name), dtype) for name, weight in weights.items()}

    def grid(self, name: str, weight: Tensor, progress: float, rows: Rows = ALL_ROWS) -> Grid | None:
        if self._final:
            return self._final.get(name)
        if name in self._codebooks:
            return encode_with(weight, rows.of(self._codebooks[name]))
        if name in self._scales:
            scale, zero = self._scale(name)
            return to_grid(weight, rows.of(scale), None if zero is None else rows.of(zero), self.kind(name))
        return None

    def _scale(self, name: str) -> tuple[Tensor, Tensor | None]:
        """The current scales and zero points; learned ones rounded as in the file."""
        scale, zero = self._scales[name]
        if self._steps is not None:
            scale = (scale.float() * self._steps[_key(name)].detach().exp()).to(scale.dtype)
        return scale, zero

    def see(self, name: str, weight: Tensor, progress: float, rows: Rows = ALL_ROWS) -> Tensor:
        if self._steps is None or name not in self._scales:
            return super().see(name, weight, progress, rows)
        scale, zero = self._scale(name)
        values = to_grid(weight.detach(), scale, zero, self.kind(name)).values()
        return LearnedStep.apply(weight, self._steps[_key(name)], values, scale, zero, self.kind(name))

    def follow_gradient(
        self,
        name: str,
        weight: Tensor,
        gradient: Tensor,
        masked: Callable[[str, Tensor], Tensor],
        rows: Rows = ALL_ROWS,
    ) -> None:
        if self.settings.rate is None or name not in self._scales:
            return
        # All training steps count equally: a matrix with coarse steps has small gradients because of that, and to
        # follow them alone would make its steps coarser still.
        square_R = gradient.square().sum(1) / rows.total((masked(name, weight) != 0).sum()).clamp(min=1)
        if name not in self._sensitivities:
            self._due = -1  # the scales in force were chosen without it
        sums_R = self._sensitivities[name].clone() if name in self._sensitivities else rows.room(square_R)
        rows.of(sums_R).add_(square_R)
        self._sensitivities[name] = sums_R

    def by_rows(self) -> Iterable[tuple[str, Tensor]]:
        return self._sensitivities.items()

    def compresses(self, progress: float) -> bool:
        return progress >= (self.settings.start if self.settings.is_aware else 1.0)

    def settled(self) -> bool:
        return not self.settings.is_aware or bool(self._scales or self._codebooks)

    def see_tokenizer(self, tokenizer: Tokenizer) -> None:
        if self._budget is not None:
            self._budget.tokenizer = tokenizer

    def _take_rate(self, rate: float) -> None:
        assert self._budget is not None
        self._budget.rate, self._budget.is_known = rate, True
        self.settings = replace(self.settings, rate=rate)

    @torch.no_grad()
    def finish(self, model: Transformer, calibration: Calibration) -> None:
        if self._budget is None:
            self._finish(model, calibration)
            return
        chosen, storage = self.chosen(model), self.storage()
        before = {name: weight.clone() for name, weight in chosen.items()}

        def grids_at(rate: float) -> Mapping[str, Grid]:
            self._take_rate(rate)
            for name, weight in chosen.items():
                weight.copy_(before[name])
            self._finish(model, calibration)
            return self._final

        assert storage is not None
        self._budget.meet(model, chosen, storage, grids_at)

    def _finish(self, model: Transformer, calibration: Calibration) -> None:
        settings = self.settings
        chosen = self.chosen(model)
        self._bits = {name: self.bits_of(name) for name in chosen}
        before = {name: weight.clone() for name, weight in chosen.items()}
        final: dict[str, Grid] = {}
        if settings.rate is not None and not self._sensitivities.keys() >= chosen.keys():
            calibration.request(settings.calibration)
            self._sensitivities = calibration.squared_gradients(chosen)
        # The scales of a rate are chosen for all tensors together, before a weight is changed.
        scales: dict[str, tuple[Tensor, Tensor | None]] = {}
        if settings.method == "trellis":
            scales = self._trellis_steps(chosen, calibration)
        elif settings.rate is not None:
            scales = self._fit(chosen)
        if settings.method in ("gptq", "trellis"):
            calibration.request(settings.calibration)
            for group in calibration.inputs(chosen):
                for name, moments in group.items():
                    weight = chosen[name]
                    # Zeros come from masks: they stay.
                    if settings.method == "trellis":
                        grid = trellis(weight, moments, scales[name][0], weight != 0, _DTYPES[settings.scales])
                    else:
                        grid = gptq(weight, moments, self.kind(name), weight != 0, scales.get(name))
                    weight.copy_(grid.values())
                    final[name] = grid
        rest = {name: weight for name, weight in chosen.items() if name not in final}
        if settings.method == "codebook":
            final |= {name: encode_with(rest[name], book) for name, book in self._cluster(rest).items()}
        else:
            if self._steps is not None and self._scales:
                scales = {name: self._scale(name) for name in rest}
            elif settings.rate is None:
                scales = self._fit(rest)
            final |= {name: to_grid(weight, *scales[name], self.kind(name)) for name, weight in rest.items()}
        self._final = final
        wrong = sum(float((before[name] - grid.values()).square().sum()) for name, grid in final.items())
        whole = sum(float(weight.square().sum()) for weight in before.values())
        self._error = math.sqrt(wrong / whole) if whole else 0.0

    def _trellis_steps(
        self, chosen: Mapping[str, Tensor], calibration: Calibration
    ) -> dict[str, tuple[Tensor, Tensor | None]]:
        settings = self.settings
        assert settings.rate is not None
        calibration.request(settings.calibration)
        squares = self._worth(chosen) or {name: torch.ones(()) for name in chosen}
        matrices = {
            name: measure(chosen[name], moments, squares[name], self._by_row)
            for group in calibration.inputs(chosen, at_once=True)
            for name, moments in group.items()
        }
        steps: dict[str, Tensor] = {}
        for rate, part in rates_of(matrices, settings.rate, settings.embedding_rate):
            steps |= choose(part, rate, _DTYPES[settings.scales])
        return {name: (step, None) for name, step in steps.items()}

    def storage(self) -> Storage | None:
        settings = self.settings
        return Storage(dtype=_DTYPES[settings.store], entropy=settings.entropy, int8=settings.activations == "int8")

    # --- proof and state ------------------------------------------------------------------------------

    def evidence(self) -> dict[str, float]:
        sizes = {name: grid.codes_RC.numel() for name, grid in self._final.items()}
        whole = sum(sizes.values())
        bits = sum(size * self._bits[name] for name, size in sizes.items())
        rate = self.settings.rate
        # One that was found for a number of bytes is no target of its own.
        name = "rate" if self._budget is None else "rate_for_bytes"
        return {
            **({} if rate is None else {name: rate}),
            "weights_quantized": float(whole),
            "bits": bits / max(1, whole),
            "entropy_bits": sum(coded_bits(grid) for grid in self._final.values()) / max(1, whole),
            "empty_matrices": float(sum(not grid.values().any() for grid in self._final.values())),
            "relative_error": self._error,
            "aware_steps": float(self._aware_steps),
        }

    def acted(self) -> bool:
        return bool(self._final)

    def state_dict(self) -> dict[str, Any]:
        return {
            "due": self._due,
            "aware_steps": self._aware_steps,
            "scales": {name: scale for name, (scale, _) in self._scales.items()},
            "zeros": {name: zero for name, (_, zero) in self._scales.items() if zero is not None},
            "codebooks": self._codebooks,
            "sensitivities": self._sensitivities,
            "rate": self._budget.rate if self._budget is not None and self._budget.is_known else None,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._due, self._aware_steps = state["due"], state["aware_steps"]
        self._scales = {name: (scale, state["zeros"].get(name)) for name, scale in state["scales"].items()}
        self._codebooks = dict(state["codebooks"])
        self._sensitivities = dict(state.get("sensitivities", {}))  # states from before 2026-11-25 have none
        if self._budget is not None and state["rate"] is not None:
            self._take_rate(state["rate"])


def _key(name: str) -> str:
    """A tensor's name as a parameter name, which must not have dots."""
    return name.replace(".", "/")
