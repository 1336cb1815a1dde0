"""Mixup of embeddings (Guo 2019, arXiv 1905.08941; Zhang 2018, arXiv 1710.09412)."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from tfx.config.schema import setting
from tfx.model.batch import Batch
from tfx.model.device import carried
from tfx.record.seeds import derive_seed
from tfx.techniques.contract import Instant, Mean, Technique, TechniqueSettings


@dataclass
class MixupSettings(TechniqueSettings):
    """Settings of `Mixup`."""

    alpha: float = setting(
        0.1,
        "the share of the first example is drawn from Beta(alpha, alpha); a small alpha mixes little",
        above=0,
        maximum=100,
    )
    share: float = setting(0.25, "share of the examples that are mixed with another one", minimum=0, maximum=1)


class Mixup(Technique):
    """Trains on convex combinations of two examples' embeddings, and the same combination of their losses.

    Text to text: source and decoder-input embeddings are mixed with one lambda per example. Padding
    adds nothing. Partners are examples of the same batch, which has similar lengths.
    """

    name = "mixup"
    Settings = MixupSettings
    effects = ("mixes examples",)
    after = ("permutes tokens",)

    def __init__(self, settings: MixupSettings) -> None:
        super().__init__(settings)
        self._share = Mean()
        self._weight = Mean()

    def transform_batch(self, batch: Batch, moment: Instant) -> Batch:
        rows = batch.target_in_BT.shape[0]
        if not self.active(moment.progress) or rows < 2 or self.settings.share == 0:
            return batch
        device = batch.target_in_BT.device
        # Drawn by numpy: torch's Beta takes no generator.
        rng = np.random.Generator(np.random.PCG64(derive_seed(moment.seed, "mixup", moment.step, moment.batch)))
        weight = rng.beta(self.settings.alpha, self.settings.alpha, size=rows)
        # The larger part is the example itself, so that an unmixed one has weight 1.
        weight = np.maximum(weight, 1.0 - weight)
        mixed = rng.random(rows) < self.settings.share
        weight[~mixed] = 1.0
        # A random cycle: nobody is their own partner.
        cycle = rng.permutation(rows)
        partner = np.empty(rows, dtype=np.int64)
        partner[cycle] = np.roll(cycle, 1)
        self._share.add(float(mixed.sum()), float(rows))
        self._weight.add(float(weight[mixed].sum()), float(mixed.sum()))
        weight_B = torch.from_numpy(weight.astype(np.float32))
        return batch.mixed(carried(torch.from_numpy(partner), device), carried(weight_B, device))

    def evidence(self) -> dict[str, float]:
        return {"examples_mixed": self._share.value, "mean_lambda": self._weight.value}

    def acted(self) -> bool:
        return self._share.value > 0

    def state_dict(self) -> dict[str, object]:
        return {"share": self._share.state(), "weight": self._weight.state()}

    def load_state_dict(self, state: dict[str, object]) -> None:
        self._share.restore(state["share"])  # type: ignore[arg-type]
        self._weight.restore(state["weight"])  # type: ignore[arg-type]
