"""Optimizers: Adam, AdamW, and Muon for matrices with AdamW for the rest."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

from tfx.config.schema import OptimizerConfig
from tfx.model.rewiring import ParameterMap
from tfx.model.roles import Role, parameter_roles
from tfx.training.muon import Muon

_DECAYED = (Role.EMBEDDING, Role.MATRIX, Role.HEAD)


class Optimizers:
    """One or two torch optimizers that step together, with a common learning-rate factor."""

    def __init__(self, parts: list[torch.optim.Optimizer]) -> None:
        self.parts = parts
        self._peaks = [[group["lr"] for group in part.param_groups] for part in parts]

    def step(self, factor: float) -> None:
        """One update, with every learning rate at ``factor`` times its peak."""
        for part, peaks in zip(self.parts, self._peaks, strict=True):
            for group, peak in zip(part.param_groups, peaks, strict=True):
                group["lr"] = peak * factor
            part.step()

    def zero_grad(self) -> None:
        """Clears the gradients."""
        for part in self.parts:
            part.zero_grad(set_to_none=True)

    def rewire(self, parameter_map: ParameterMap) -> None:
        """Carries parameters over to the smaller ones that replace them, with the remaining parts of their moments."""
        for part in self.parts:
            for group in part.param_groups:
                group["params"] = parameter_map.follow(group["params"])
            for old in list(part.state):
                moments = part.state.pop(old)
                for new in parameter_map.follow([old]):
                    part.state[new] = {
                        name: parameter_map.select(old, value)
                        if torch.is_tensor(value) and value.shape == old.shape
                        else value
                        for name, value in moments.items()
                    }

    def state_dict(self) -> list[dict[str, Any]]:
        """The moments of every optimizer by parameter number; learning rates are set at each step."""
        return [{str(number): moments for number, moments in part.state_dict()["state"].items()} for part in self.parts]

    def load_state_dict(self, states: list[dict[str, Any]]) -> None:
        """The inverse of `state_dict`, for the same parameters in the same order."""
        for part, state in zip(self.parts, states, strict=True):
            moments = {int(number): values for number, values in state.items()}
            part.load_state_dict({"state": moments, "param_groups": part.state_dict()["param_groups"]})


def build_optimizers(config: OptimizerConfig, model: nn.Module, device: torch.device) -> Optimizers:
    """Builds what ``config`` names for the parameters of ``model``.

    Weight decay acts on matrices and embeddings only, not on norms, biases and modules that a technique trains. Muon
    (Jordan 2024) takes the matrices of the blocks; embeddings and vectors go to AdamW. Its update is scaled to the RMS
    of AdamW's (Liu 2025, arXiv 2502.16982), so that the learning rates of both are comparable.
    """
    named = [(name, parameter) for name, parameter in model.named_parameters() if parameter.requires_grad]
    roles = parameter_roles(model)
    matrices = [parameter for name, parameter in named if roles[name] in _DECAYED]
    vectors = [parameter for name, parameter in named if roles[name] not in _DECAYED]
    hidden = [parameter for name, parameter in named if roles[name] is Role.MATRIX]
    betas = (config.betas[0], config.betas[1])
    fused = device.type in ("cpu", "cuda")

    def groups(decayed: Iterable[Tensor], plain: Iterable[Tensor]) -> list[dict[str, Any]]:
        sets = [(list(decayed), config.weight_decay), (list(plain), 0.0)]
        return [{"params": tensors, "weight_decay": decay} for tensors, decay in sets if tensors]

    if config.name == "muon" and hidden:
        taken = {id(parameter) for parameter in hidden}
        rest = [parameter for parameter in matrices if id(parameter) not in taken]
        return Optimizers(
            [
                Muon(
                    hidden,
                    lr=config.matrix_lr,
                    weight_decay=config.weight_decay,
                    momentum=config.momentum,
                    adjust_lr_fn="match_rms_adamw",
                ),
                torch.optim.AdamW(groups(rest, vectors), lr=config.lr, betas=betas, eps=config.eps, fused=fused),
            ]
        )
    kind = torch.optim.Adam if config.name == "adam" else torch.optim.AdamW
    return Optimizers([kind(groups(matrices, vectors), lr=config.lr, betas=betas, eps=config.eps, fused=fused)])
