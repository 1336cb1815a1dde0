"""Low rank: matrices of blocks as products of two, by the SVD that keeps outputs (Wang 2024, arXiv 2403.07378).

Shapes: R rows (outputs), C columns (inputs), K rank.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from math import sqrt
from typing import Any

import torch
from torch import Tensor

from tfx.compression.checkpoint import Storage
from tfx.config.schema import Root, setting
from tfx.errors import UserError
from tfx.model.architecture import Architecture
from tfx.model.rewiring import Rewiring, factor_matrices
from tfx.model.transformer import Transformer, count_parameters
from tfx.techniques.calibration import Calibration, in_order
from tfx.techniques.columns import output_error
from tfx.techniques.contract import Technique, TechniqueSettings
from tfx.techniques.weight_selection import left_alone, select_weights

# Relative to the mean of the diagonal of the inputs' second moments: inputs that are always 0 get this variance.
_DAMPING = 1e-4
_FACTORS = (".first.weight", ".second.weight")


@dataclass
class FactorizeSettings(TechniqueSettings):
    """Settings of `Factorize`."""

    start: float = setting(
        0.2,
        "when matrices become products; training goes on with them",
        minimum=0,
        below=1,
        unit="fractions of the budget",
    )
    parameters: float = setting(
        0.5, "share of each matrix's parameters that its factors have", above=0, below=1, paper="Denil 2013"
    )
    energy: float | None = setting(
        None,
        "choose ranks by the share of the outputs' variance that they keep, instead of parameters",
        above=0,
        below=1,
        paper="Yuan 2023, arXiv 2312.05821",
    )
    multiple: int = setting(8, "ranks are multiples of this", minimum=1, maximum=65536)
    weighted: bool = setting(
        True,
        "keep the outputs on training data; false: keep the weights, by a plain SVD",
        paper="Wang 2024, arXiv 2403.07378",
    )
    calibration: int = setting(16, "training batches that inputs are measured on", minimum=1, maximum=100000)
    skip: list[str] = setting([], "patterns of tensor names that stay whole ('*.attention.*')")
    store: str = setting(
        "fp16", "number format in the file for weights that are not quantized", choices=("fp16", "fp32")
    )


class LowRank:
    """The best products of two matrices for one weight and inputs with these second moments, of any rank.

    Of all matrices of rank K the one that changes the outputs W x least, in the mean square, is U_K U_K^T W, where
    U_K are the first K left singular vectors of W S, and S S^T the second moments of x (Eckart & Young 1936).
    """

    def __init__(self, weight_RC: Tensor, moments_CC: Tensor) -> None:
        self._weight_RC = weight_RC.double().cpu()
        moments_CC = moments_CC.double().cpu()
        diagonal = moments_CC.diagonal()
        root_CC = torch.linalg.cholesky(
            moments_CC + torch.diag((_DAMPING * diagonal.mean()).clamp(min=1e-30).expand_as(diagonal))
        )
        self._left_RK, values_K, _ = torch.linalg.svd(self._weight_RC @ root_CC, full_matrices=False)
        # What each rank adds to the variance of the outputs.
        self.energy_K = values_K.square()

    def rank_for(self, energy: float) -> int:
        """The smallest rank that keeps this share of the variance of the outputs."""
        kept_K = self.energy_K.cumsum(0) / self.energy_K.sum()
        return int((kept_K < energy).sum()) + 1

    def factors(self, rank: int) -> tuple[Tensor, Tensor]:
        """The matrix (K, R) that makes the first factor of the weight, and the second factor (R, K).

        Of each of the K products of a column and a row, both have the same length.
        """
        left_RK = self._left_RK[:, :rank]
        lengths_K = (left_RK.t() @ self._weight_RC).norm(dim=1).clamp(min=1e-12).sqrt()
        return left_RK.t() / lengths_K.unsqueeze(1), left_RK * lengths_K


def rank_for_share(rows: int, columns: int, share: float, multiple: int) -> int:
    """The rank, a multiple, whose factors have nearest to this share of the parameters of a matrix."""
    return max(1, round(share * rows * columns / (rows + columns) / multiple)) * multiple


class Factorize(Technique):
    """Replaces matrices by products of two, once, at its start; both factors are then trained, pruned, quantized."""

    name = "factorize"
    Settings = FactorizeSettings
    effects = ("removes parts", "splits matrices")
    # Of heads and units that go anyway nothing needs to be kept.
    after = ("removes parts",)

    settings: FactorizeSettings

    def __init__(self, settings: FactorizeSettings) -> None:
        super().__init__(settings)
        self._factors: dict[str, tuple[Tensor, Tensor]] = {}
        self._done: dict[str, float] = {}

    def check(self, config: Root) -> None:
        settings = self.settings
        if settings.end != 1.0:
            raise UserError(
                f"technique.factorize.end={settings.end:g}: factors stay factors, so only technique.factorize.start "
                "says when it acts"
            )
        if settings.energy is not None and settings.parameters != FactorizeSettings.parameters:
            raise UserError("technique.factorize chooses ranks by energy or by parameters: name one")

    def needs_whole_weights(self) -> str | None:
        return "makes matrices products of two while it trains"

    def when(self, hook: str) -> str:
        return f"at {self.settings.start:.0%}"

    def chosen(self, model: Transformer) -> dict[str, tuple[Tensor, int]]:
        """The matrices that become products, by the name of their layer, with the smallest rank that they can have.

        Raises `UserError` where ``skip`` names no tensor, or where no product is smaller than its matrix.
        """
        settings = self.settings
        found = {}
        for name, weight in select_weights(model, settings.skip, "technique.factorize.skip", embeddings=False).items():
            rows, columns = weight.shape
            rank = settings.multiple
            if settings.energy is None:
                rank = rank_for_share(rows, columns, settings.parameters, settings.multiple)
            # An architecture records the ranks of blocks, and of no convolution.
            is_of_block = not name.startswith("convolution.")
            if is_of_block and _is_smaller(rank, rows, columns) and not name.endswith(_FACTORS):
                found[name.removesuffix(".weight")] = (weight, rank)
        if not found:
            raise UserError(
                "technique.factorize finds no matrix that is not a product already and larger than one with ranks that "
                f"are multiples of {settings.multiple}: leave it out, or name a smaller technique.factorize.multiple"
            )
        return found

    def reduced(self, architecture: Architecture) -> Architecture:
        with torch.device("meta"):
            model = Transformer(architecture)
        return factor_matrices(
            model,
            {
                name: (weight.new_empty(rank, len(weight)), weight.new_empty(len(weight), rank))
                for name, (weight, rank) in self.chosen(model).items()
            },
        ).architecture

    def reduction(self, before: Architecture, after: Architecture) -> str:
        ranks = [rank for shape in (*after.encoder, *after.decoder) for _, rank in shape.ranks]
        if self.settings.energy is not None:
            return (
                f"makes up to {len(ranks)} matrices products of two, with ranks that keep {self.settings.energy:.0%} "
                f"of the variance of their outputs, in multiples of {self.settings.multiple}"
            )
        span = f"{min(ranks)}" if min(ranks) == max(ranks) else f"{min(ranks)} to {max(ranks)}"
        whole, rest = count_parameters(before), count_parameters(after)
        return f"makes {len(ranks)} matrices products of rank {span}: {whole - rest:,} of {whole:,} parameters go"

    def plan(self, model: Transformer) -> list[str]:
        factors = {name for name, _ in model.named_parameters() if name.endswith(_FACTORS)}
        return [left_alone(model, factors).removeprefix("; ")]

    # --- hooks ----------------------------------------------------------------------------------------

    @torch.no_grad()
    def calibrate(
        self,
        model: Transformer,
        progress: float,
        calibration: Calibration,
        masked: Callable[[str, Tensor], Tensor],
    ) -> None:
        if self._done or progress < self.settings.start:
            return
        settings = self.settings
        chosen = {f"{name}.weight": rank for name, (_, rank) in self.chosen(model).items()}
        lost = whole = 0.0
        before = after = 0
        ranks = []
        calibration.request(settings.calibration)
        weights = {name: weight.detach() for name, weight in model.named_parameters()}
        seen = {name: value for name, weight in weights.items() if (value := masked(name, weight)) is not weight}
        kept = {name: weights[name].clone() for name in seen}
        for name, value in seen.items():
            weights[name].copy_(value)
        for name, moments in in_order(calibration.inputs(chosen)):
            weight = weights[name]
            low = LowRank(weight, moments if settings.weighted else torch.eye(weight.shape[1]))
            rank = chosen[name]
            if settings.energy is not None:
                rank = -(-low.rank_for(settings.energy) // settings.multiple) * settings.multiple
                if not _is_smaller(rank, *weight.shape):
                    continue
            first, second = low.factors(rank)
            whole_RC = weight.clone()
            kept.setdefault(name, whole_RC)
            self._factors[name.removesuffix(".weight")] = (first, second)
            # Layers behind it are fitted to the inputs that it gives from now on.
            weight.copy_(second @ (first @ weight.double().cpu()))
            error, size = output_error(whole_RC, weight, moments)
            lost, whole = lost + error, whole + size
            ranks.append(rank)
            before, after = before + weight.numel(), after + rank * sum(weight.shape)
        for name, own in kept.items():
            weights[name].copy_(own)
        self._done = {
            "matrices": float(len(ranks)),
            "rank": sum(ranks) / max(1, len(ranks)),
            "parameters_share": after / max(1, before),
            "parameters_removed": float(before - after),
            "output_error": sqrt(lost / whole) if whole else 0.0,
        }

    def rewire(self, model: Transformer, progress: float) -> Rewiring | None:
        if not self._factors:
            return None
        rewiring = factor_matrices(model, self._factors)
        self._factors = {}
        return rewiring

    def settled(self) -> bool:
        return bool(self._done)

    def storage(self) -> Storage | None:
        return Storage(dtype=torch.float16 if self.settings.store == "fp16" else torch.float32)

    # --- proof and state ------------------------------------------------------------------------------

    def evidence(self) -> dict[str, float]:
        return dict(self._done)

    def acted(self) -> bool:
        return self._done.get("parameters_removed", 0.0) > 0

    def state_dict(self) -> dict[str, Any]:
        return {"done": self._done}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._done = dict(state["done"])


def _is_smaller(rank: int, rows: int, columns: int) -> bool:
    return rank * (rows + columns) < rows * columns
