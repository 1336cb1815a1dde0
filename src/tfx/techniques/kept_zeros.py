"""Keeps the zeros of the model that a run starts from, so that a pruned model stays pruned."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from tfx.compression.checkpoint import Storage
from tfx.config.schema import Root
from tfx.model.parameter_roles import MATRICES, parameter_roles
from tfx.model.rewiring import Rewiring
from tfx.model.transformer import Transformer
from tfx.techniques.contract import Technique, TechniqueSettings


def zero_share(model: Transformer) -> float:
    """The share of the weights of embeddings and matrices that is exactly 0."""
    roles = parameter_roles(model)
    weights = [parameter for name, parameter in model.named_parameters() if roles[name] in MATRICES]
    return sum(int((weight == 0).sum()) for weight in weights) / max(1, sum(weight.numel() for weight in weights))


class KeepZeros(Technique):
    """A mask on the weights that are 0 before the first step (``trainer.keep_zeros``)."""

    name = "keep_zeros"
    Settings = TechniqueSettings
    effects = ("zeroes weights",)

    def __init__(self, settings: Any) -> None:
        super().__init__(settings)
        self.masks: dict[str, Tensor] = {}

    def acts_before_training(self) -> bool:
        return True

    def when(self, hook: str) -> str:
        return "all of training, and in the file" if hook == "mask" else super().when(hook)

    def needs_whole_weights(self) -> str | None:
        return None

    @torch.no_grad()
    def prepare_model(self, model: Transformer, config: Root) -> nn.Module | None:
        roles = parameter_roles(model)
        matrices = {name: weight for name, weight in model.named_parameters() if roles[name] in MATRICES}
        self.masks = {name: weight != 0 for name, weight in matrices.items() if bool((weight == 0).any())}
        return None

    def rewired(self, rewiring: Rewiring) -> None:
        self.masks = rewiring.carry(self.masks)

    def mask(self, name: str, weight: Tensor) -> Tensor | None:
        mask = self.masks.get(name)
        return None if mask is None else mask.to(weight.device)

    def keeps_zeros(self, share: float) -> bool:
        return True

    def storage(self) -> Storage | None:
        return Storage(dtype=torch.float32)

    def evidence(self) -> dict[str, float]:
        kept = sum(int((~mask).sum()) for mask in self.masks.values())
        return {"zeros_kept": float(kept), "sparsity": kept / max(1, sum(mask.numel() for mask in self.masks.values()))}

    def state_dict(self) -> dict[str, Any]:
        return {"masks": self.masks}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.masks = dict(state["masks"])
