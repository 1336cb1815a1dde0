"""Removal of whole parts: heads, feed-forward units and layers, chosen by the weights around them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from tfx.config.schema import setting
from tfx.errors import UserError
from tfx.model.architecture import Architecture, BlockShape
from tfx.model.attention import Attention
from tfx.model.layers import FeedForward
from tfx.model.linear import Factored, Linear
from tfx.model.rewiring import BlockPlan, Rewiring, rewire_blocks, whole_block
from tfx.model.transformer import Transformer
from tfx.techniques.prune.depth import layers_by_rule

# The numbers of the layers that stay, by stack.
Layers = Mapping[str, Sequence[int]]


@dataclass
class StructureSettings:
    """Settings for whole parts to remove; the model becomes smaller."""

    heads: float = setting(
        0.0,
        "share of the heads of each attention that is removed (with grouped queries: of its groups)",
        minimum=0,
        below=1,
        paper="Michel 2019, arXiv 1905.10650",
    )
    ffn: float = setting(0.0, "share of the feed-forward units of each block that is removed", minimum=0, below=1)
    encoder_layers: int | None = setting(
        None,
        "encoder layers kept; null: all",
        minimum=1,
        paper="Fan 2020, arXiv 1909.11556; Sajjad 2023, arXiv 2004.03844",
    )
    decoder_layers: int | None = setting(None, "decoder layers kept; null: all", minimum=1)
    layers_by: str = setting(
        "spaced",
        "which layers stay: evenly spaced ones, the first and the last among them; all but every n-th, as with "
        "LayerDrop; or those without which the loss on validation data is highest, found one by one",
        choices=("spaced", "every_other", "loss"),
        paper="Sajjad 2023, arXiv 2004.03844; Fan 2020, arXiv 1909.11556",
    )
    layers_at: str = setting(
        "start",
        "when layers go: at technique.prune.start, or once training is over (train with model.layer_dropout then)",
        choices=("start", "end"),
    )
    vocabulary: bool = setting(
        False, "remove tokens that the training split never uses, with their embeddings, before the first step"
    )

    @property
    def removes_layers(self) -> bool:
        """Whether layers go."""
        return self.encoder_layers is not None or self.decoder_layers is not None

    @property
    def removes_inner(self) -> bool:
        """Whether heads or units go."""
        return self.heads > 0 or self.ffn > 0

    @property
    def layers_alone(self) -> StructureSettings:
        """These settings without heads and units."""
        return replace(self, heads=0.0, ffn=0.0)

    @property
    def inner_alone(self) -> StructureSettings:
        """These settings without layers."""
        return replace(self, encoder_layers=None, decoder_layers=None)


# Gives the score of each weight of a named matrix.
WeightScores = Callable[[str, Tensor], Tensor]


def plan_structure(
    model: Transformer,
    settings: StructureSettings,
    scores: WeightScores | None = None,
    layers: Layers | None = None,
) -> Rewiring:
    """What stays: units and heads with the largest weights around them, and ``layers`` (None: as the settings say).

    A unit counts the norm of its row of ``up`` (and ``gate``) times that of its column of ``down``; a head
    the norm of its rows of ``v`` times that of its columns of ``o``. With ``scores`` of weights both count the sum over
    all their weights in matrices, as blocks do in Lagunas 2021 (arXiv 2109.04838). At least one of each stays.
    """
    plans: dict[str, list[BlockPlan]] = {"encoder": [], "decoder": []}
    for stack, numbers in (layers or kept_layers(model.architecture, settings)).items():
        for number in numbers:
            block = getattr(model, stack).blocks[number]
            whole = whole_block(number, getattr(model.architecture, stack)[number])
            prefix = f"{stack}.blocks.{number}"
            plans[stack].append(
                BlockPlan(
                    number,
                    heads=_largest(_head_scores(block.attention, f"{prefix}.attention", scores), settings.heads),
                    cross_heads=whole.cross_heads
                    if block.cross is None
                    else _largest(_head_scores(block.cross, f"{prefix}.cross", scores), settings.heads),
                    units=_largest(_unit_scores(block.ffn, f"{prefix}.ffn", scores), settings.ffn),
                )
            )
    return rewire_blocks(model, plans["encoder"], plans["decoder"])


def reduced_architecture(architecture: Architecture, settings: StructureSettings) -> Architecture:
    """The architecture that `plan_structure` leaves, whatever the weights.

    Raises `UserError` for more layers than the model has, and for a share so small that it removes nothing.
    """
    shapes: dict[str, tuple[BlockShape, ...]] = {}
    taken = {"heads": 0, "ffn": 0}
    for stack, numbers in kept_layers(architecture, settings).items():
        blocks = [getattr(architecture, stack)[number] for number in numbers]
        smaller = [
            shape.keeping(
                _left(shape.kv_heads, settings.heads),
                _left(shape.cross_kv_heads, settings.heads),
                _left(shape.ffn, settings.ffn),
            )
            for shape in blocks
        ]
        for before, after in zip(blocks, smaller, strict=True):
            taken["heads"] += before.heads + before.cross_heads - after.heads - after.cross_heads
            taken["ffn"] += before.ffn - after.ffn
        shapes[stack] = tuple(smaller)
    for name, count in taken.items():
        share = getattr(settings, name)
        if share and not count:
            what = "heads of any attention" if name == "heads" else "units of any feed-forward layer"
            raise UserError(
                f"technique.prune.structure.{name}={share:g} rounds to none of the {what} (one always stays): "
                "name a larger share, or leave it out"
            )
    return replace(architecture, encoder=shapes["encoder"], decoder=shapes["decoder"])


def kept_layers(architecture: Architecture, settings: StructureSettings) -> dict[str, list[int]]:
    """The numbers of the layers that stay, by stack; by loss, as many. Raises `UserError` for more than there are."""
    kept = {}
    for stack in ("encoder", "decoder"):
        name, layers = f"{stack}_layers", len(getattr(architecture, stack))
        count = layers if getattr(settings, name) is None else getattr(settings, name)
        if count > layers:
            raise UserError(f"technique.prune.structure.{name}={count} is more than the model's {layers}")
        kept[stack] = layers_by_rule(settings.layers_by, count, layers, f"technique.prune.structure.{name}")
    return kept


def _head_scores(attention: Attention, name: str, scores: WeightScores | None) -> Tensor:
    """One score for each key/value head with the query heads that it serves."""
    groups = attention.kv_heads
    if scores is not None:
        parts = [_facing(f"{name}.{layer}", getattr(attention, layer), scores) for layer in "qkv"]
        parts.append(_facing(f"{name}.o", attention.o, scores, is_input=True).t())
        return torch.stack([part.reshape(groups, -1).sum(1) for part in parts]).sum(0)
    return attention.v.weight.reshape(groups, -1).norm(dim=1) * attention.o.weight.t().reshape(groups, -1).norm(dim=1)


def _unit_scores(ffn: FeedForward, name: str, scores: WeightScores | None) -> Tensor:
    """One score for each unit."""
    ups = {"up": ffn.up} if ffn.gate is None else {"up": ffn.up, "gate": ffn.gate}
    if scores is None:
        return torch.stack([ffn.down.weight.norm(dim=0), *(up.weight.norm(dim=1) for up in ups.values())]).prod(0)
    down = _facing(f"{name}.down", ffn.down, scores, is_input=True).sum(0)
    return torch.stack([down, *(_facing(f"{name}.{key}", up, scores).sum(1) for key, up in ups.items())]).sum(0)


def _facing(name: str, layer: nn.Module, scores: WeightScores, *, is_input: bool = False) -> Tensor:
    """The scores of a layer's matrix: of a product, of the matrix that has its outputs, or its inputs."""
    if isinstance(layer, Factored):
        name, layer = (f"{name}.first", layer.first) if is_input else (f"{name}.second", layer.second)
    assert isinstance(layer, Linear)
    return scores(f"{name}.weight", layer.weight)


def _largest(scores: Tensor, removed: float) -> Tensor:
    """The indices, in order, of what stays when this share with the smallest scores is removed."""
    return scores.detach().float().cpu().topk(_left(scores.numel(), removed)).indices.sort().values


def _left(count: int, removed: float) -> int:
    """How many stay when this share is removed: at least one, if there is one."""
    return max(min(1, count), count - round(removed * count))
