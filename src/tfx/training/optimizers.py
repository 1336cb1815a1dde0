"""Optimizers: Adam, AdamW, and Muon for matrices with AdamW for the rest."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from tfx.config.schema import OptimizerConfig
from tfx.model.attention import Attention
from tfx.model.device import multiplies_bf16
from tfx.model.layers import FeedForward
from tfx.model.linear import Linear
from tfx.model.parameter_roles import MATRICES, Role, parameter_roles
from tfx.model.rewiring import ParameterMap
from tfx.model.transformer import Transformer
from tfx.training.muon import Muon

# What stands below the first block.
_BELOW = re.compile(r"(?:^|\.)(embedding|source_embedding|position|token_type|embedding_norm|convolution)\.")
# Muon's rate where the config names none, and the width up to which it holds. Above it the rate falls with the square
# root of the width: so an update of a matrix changes its outputs as much at each width (Yang 2023, arXiv 2310.17813).
_MATRIX_LR, _MATRIX_LR_WIDTH = 0.01, 128


class Optimizers:
    """One or two torch optimizers that step together, with a common learning-rate factor."""

    def __init__(self, parts: list[torch.optim.Optimizer]) -> None:
        self.parts = parts
        self._peaks = [[group["lr"] for group in part.param_groups] for part in parts]

    def step(self, factor: float | Tensor, refused: Tensor | None = None) -> None:
        """One update, with every learning rate at ``factor`` times its peak; none where ``refused`` is 1.

        On a device that is not waited for, both are its numbers. Raises `torch.OutOfMemoryError` if the update does not
        fit even without what torch keeps in reserve.
        """
        for part, peaks in zip(self.parts, self._peaks, strict=True):
            if isinstance(part, torch.optim.Muon):
                self._step_muon(part, peaks, factor, refused)
                continue
            # The fused kernels then leave weights and moments as they are, as for `torch.amp.GradScaler`.
            part.found_inf = refused  # type: ignore[attr-defined]
            _set_rates(part, peaks, factor)
            _with_reserve(part.step)

    def _step_muon(
        self, part: torch.optim.Muon, peaks: list[float], factor: float | Tensor, refused: Tensor | None
    ) -> None:
        """Muon's update, which is linear in the learning rate: torch's reads it on the host."""
        if refused is None:
            _set_rates(part, peaks, factor)
            part.step()
            return
        self._allocate_muon(part)
        weights = [weight for group in part.param_groups for weight in group["params"] if weight.grad is not None]
        if not weights:
            return  # a process without rows of a batch, which steps by itself
        changed = [*(weight.detach() for weight in weights), *(part.state[w]["momentum_buffer"] for w in weights)]
        before = [torch.empty_like(value) for value in changed]
        torch._foreach_copy_(before, changed)  # in few calls: one for each would take a small model long
        by_device = torch.is_tensor(factor)
        _set_rates(part, peaks, 1.0 if by_device else factor)
        tries = 0

        def update() -> None:
            nonlocal tries
            tries += 1
            if tries > 1:
                torch._foreach_copy_(changed, before)
            part.step()

        _with_reserve(update)
        is_refused = refused > 0
        for value, old in zip(changed, before, strict=True):
            torch.where(is_refused, old, value, out=value)
        if by_device:
            updated, old_ones = changed[: len(weights)], before[: len(weights)]
            # Not `_foreach_lerp_`: it reads its weight on the host, or takes one for each element.
            torch._foreach_sub_(updated, old_ones)
            torch._foreach_mul_(updated, factor)
            torch._foreach_add_(updated, old_ones)

    @torch.no_grad()
    def allocate(self) -> None:
        """Makes the moments of all parameters that have none yet, which else the first step does."""
        for part in self.parts:
            if isinstance(part, torch.optim.Muon):
                self._allocate_muon(part)
                continue
            fresh = [p for group in part.param_groups for p in group["params"] if not part.state.get(p)]
            if not fresh:
                continue
            # A step that is refused changes nothing, and reads no gradient: the weights stand in for theirs.
            for parameter in fresh:
                parameter.grad = parameter.detach()
            part.found_inf = torch.ones((), device=fresh[0].device)  # type: ignore[attr-defined]
            part.step()
            for parameter in fresh:
                parameter.grad = None

    def moments(self) -> list[Tensor]:
        """The moments of all parameters, each in its parameter's form: in one order wherever the model is the same.

        A parameter that took no step yet has zeros.
        """
        self.allocate()
        return [
            value
            for part in self.parts
            for group in part.param_groups
            for parameter in group["params"]
            for name, value in sorted(part.state[parameter].items())
            if name != "step"
        ]

    @staticmethod
    def _allocate_muon(part: torch.optim.Muon) -> None:
        for group in part.param_groups:
            for parameter in group["params"]:
                if "momentum_buffer" not in part.state[parameter]:
                    part.state[parameter]["momentum_buffer"] = torch.zeros_like(parameter)

    def zero_grad(self) -> None:
        """Clears the gradients."""
        for part in self.parts:
            part.zero_grad(set_to_none=True)

    def rewire(self, parameter_map: ParameterMap) -> None:
        """Carries parameters over to the smaller ones that replace them, with the remaining parts of their moments.

        Factors of a matrix begin without moments.
        """
        for part in self.parts:
            for group in part.param_groups:
                group["params"] = parameter_map.follow(group["params"])
            for old in list(part.state):
                moments = part.state.pop(old)
                for new, origin in parameter_map.elements(old):
                    part.state[new] = {
                        name: origin.select(value) if torch.is_tensor(value) and value.shape == old.shape else value
                        for name, value in moments.items()
                    }

    def regroup(self, fresh: Optimizers) -> None:
        """Takes the groups of optimizers that were built for the model as it is now, with their learning rates.

        A layer that goes leaves others nearer to the outputs, and a resumed run knows no other model.
        """
        for part, new in zip(self.parts, fresh.parts, strict=True):
            part.param_groups = new.param_groups
        self._peaks = fresh._peaks

    def state_dict(self) -> list[dict[str, Any]]:
        """The moments of every optimizer by parameter number; learning rates are set at each step."""
        return [{str(number): moments for number, moments in part.state_dict()["state"].items()} for part in self.parts]

    def load_state_dict(self, states: list[dict[str, Any]]) -> None:
        """The inverse of `state_dict`, for the same parameters in the same order."""
        for part, state in zip(self.parts, states, strict=True):
            moments = {int(number): values for number, values in state.items()}
            part.load_state_dict({"state": moments, "param_groups": part.state_dict()["param_groups"]})


def _set_rates(part: torch.optim.Optimizer, peaks: list[float], factor: float | Tensor) -> None:
    for group, peak in zip(part.param_groups, peaks, strict=True):
        group["lr"] = peak * factor


def _with_reserve(update: Callable[[], Any]) -> None:
    """An update that changes nothing before it has its memory; once more, without torch's reserve, if that lacks."""
    try:
        update()
        return
    except torch.OutOfMemoryError:
        pass
    # Outside of the handler, which would keep what the update holds alive.
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    try:
        update()
    except torch.OutOfMemoryError as error:
        raise torch.OutOfMemoryError(
            "out of memory while the optimizer updates the weights, where smaller batches do not help: choose a "
            "smaller model, or optimizer=adamw"
        ) from error


def layer_shares(names: Sequence[str], decay: float) -> dict[str, float]:
    """The share of the learning rate that each parameter has: less by ``decay`` for each layer below the outputs.

    The last block of a stack is one layer below them, and embeddings are below the first (Clark 2020, arXiv
    2003.10555).
    """
    places = {name: re.search(r"(?:^|\.)(encoder|decoder)\.blocks\.(\d+)\.", name) for name in names}
    heights = dict.fromkeys(("encoder", "decoder"), 0)
    for found in places.values():
        if found is not None:
            heights[found[1]] = max(heights[found[1]], int(found[2]) + 1)
    shares = {}
    for name, found in places.items():
        below = 0
        if found is not None:
            below = heights[found[1]] - int(found[2])
        elif _BELOW.search(name):
            below = max(heights.values()) + 1
        shares[name] = decay**below
    return shares


def matrix_rate(config: OptimizerConfig, width: int) -> float:
    """Muon's peak learning rate of the matrices of a model of this width."""
    if config.matrix_lr is not None:
        return config.matrix_lr
    return _MATRIX_LR * math.sqrt(_MATRIX_LR_WIDTH / max(width, _MATRIX_LR_WIDTH))


def unit_matrices(model: nn.Module) -> list[Tensor]:
    """The matrices whose rows make the units of heads and of feed-forward layers, which ``matrix_block`` divides.

    The matrices that read these units (o and down) are not among them: with these in blocks as well, training ended 0.1
    nats higher at the same rate (docs/RESULTS.md).
    """
    layers: list[nn.Module | None] = []
    for module in model.modules():
        if isinstance(module, Attention):
            layers += [module.q, module.k, module.v]
        elif isinstance(module, FeedForward):
            layers += [module.up, module.gate]
    return [layer.weight for layer in layers if isinstance(layer, Linear)]


def orthogonalised(model: nn.Module) -> list[Tensor]:
    """The matrices of the blocks, which Muon takes."""
    roles = parameter_roles(model)
    return [p for name, p in model.named_parameters() if p.requires_grad and roles[name] is Role.MATRIX]


def build_optimizers(config: OptimizerConfig, model: nn.Module, device: torch.device) -> Optimizers:
    """Builds what ``config`` names for the parameters of ``model``.

    Weight decay acts on matrices and embeddings only, not on norms, biases and modules that a technique trains. Muon
    (Jordan 2024) takes the matrices of the blocks; embeddings and vectors go to AdamW. Its update is scaled to the RMS
    of AdamW's (Liu 2025, arXiv 2502.16982), so that the learning rates of both are comparable. Its products are in
    bfloat16 where the device multiplies that in hardware, else in fp32.
    """
    named = [(name, parameter) for name, parameter in model.named_parameters() if parameter.requires_grad]
    roles = parameter_roles(model)
    transformer = next((part for part in model.modules() if isinstance(part, Transformer)), model)
    own = set(map(id, transformer.parameters()))
    matrices = [parameter for name, parameter in named if roles[name] in MATRICES and id(parameter) in own]
    decayed = set(map(id, matrices))
    vectors = [parameter for _, parameter in named if id(parameter) not in decayed]
    hidden = orthogonalised(model)
    betas = (config.betas[0], config.betas[1])
    fused = device.type != "mps"

    shares = layer_shares([name for name, _ in named], config.layer_decay)
    share_of = {id(parameter): shares[name] for name, parameter in named}

    def by_share(tensors: Iterable[Tensor], peak: float, **settings: float) -> list[dict[str, Any]]:
        """A group for each share of the learning rate: one where all layers learn alike."""
        found: dict[float, list[Tensor]] = {}
        for tensor in tensors:
            found.setdefault(share_of[id(tensor)], []).append(tensor)
        return [{"params": own, "lr": peak * share, **settings} for share, own in found.items()]

    def by_block(tensors: Sequence[Tensor], peak: float) -> list[dict[str, Any]]:
        """Groups of Muon: where the config names a block, the matrices that it divides have groups of their own."""
        if config.matrix_block is None:
            return by_share(tensors, peak)
        divided = {id(weight) for weight in unit_matrices(model)}
        in_blocks = [tensor for tensor in tensors if id(tensor) in divided]
        whole = [tensor for tensor in tensors if id(tensor) not in divided]
        return [*by_share(in_blocks, peak, block=config.matrix_block), *by_share(whole, peak)]

    def groups(decayed: Iterable[Tensor], plain: Iterable[Tensor]) -> list[dict[str, Any]]:
        sets = [(decayed, config.weight_decay), (plain, 0.0)]
        return [group for own, decay in sets for group in by_share(own, config.lr, weight_decay=decay)]

    if config.name == "muon" and hidden:
        assert isinstance(transformer, Transformer)
        rate = matrix_rate(config, transformer.architecture.width)
        taken = {id(parameter) for parameter in hidden}
        rest = [parameter for parameter in matrices if id(parameter) not in taken]
        return Optimizers(
            [
                Muon(
                    by_block(hidden, rate),
                    lr=rate,
                    weight_decay=config.weight_decay,
                    momentum=config.momentum,
                    adjust_lr_fn="match_rms_adamw",
                    products=torch.bfloat16 if multiplies_bf16(device) else torch.float32,
                ),
                torch.optim.AdamW(groups(rest, vectors), lr=config.lr, betas=betas, eps=config.eps, fused=fused),
            ]
        )
    kind = torch.optim.Adam if config.name == "adam" else torch.optim.AdamW
    return Optimizers([kind(groups(matrices, vectors), lr=config.lr, betas=betas, eps=config.eps, fused=fused)])
