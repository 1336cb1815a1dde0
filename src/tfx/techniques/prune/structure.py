"""Whole parts that leave a model: heads, feed-forward units and layers, chosen by the weights around them."""

from __future__ import annotations

from dataclasses import dataclass, replace

from torch import Tensor

from tfx.config.schema import setting
from tfx.errors import UserError
from tfx.model.architecture import Architecture, BlockShape
from tfx.model.attention import Attention
from tfx.model.rewiring import BlockPlan, Rewiring, evenly_spaced, rewire_blocks, whole_block
from tfx.model.transformer import Transformer


@dataclass
class StructureSettings:
    """Parts that are removed whole; the model becomes a smaller one."""

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
        "encoder layers kept, evenly spaced; null: all",
        minimum=1,
        paper="Fan 2020, arXiv 1909.11556; Sajjad 2023, arXiv 2004.03844",
    )
    decoder_layers: int | None = setting(None, "decoder layers kept, evenly spaced; null: all", minimum=1)
    vocabulary: bool = setting(
        False, "remove tokens that the training split never uses, with their embeddings, before the first step"
    )


def plan_structure(model: Transformer, settings: StructureSettings) -> Rewiring:
    """What stays: units and heads with the largest weights around them, and evenly spaced layers.

    A unit counts the norm of its row of ``up`` (and ``gate``) times that of its column of ``down``; a head
    the norm of its rows of ``v`` times that of its columns of ``o``. At least one of each stays.
    """
    plans: dict[str, list[BlockPlan]] = {"encoder": [], "decoder": []}
    for stack, numbers in _kept_layers(model.architecture, settings).items():
        for number in numbers:
            block = getattr(model, stack).blocks[number]
            whole = whole_block(number, getattr(model.architecture, stack)[number])
            ffn = block.ffn
            unit = ffn.up.weight.norm(dim=1) * ffn.down.weight.norm(dim=0)
            if ffn.gate is not None:
                unit = unit * ffn.gate.weight.norm(dim=1)
            plans[stack].append(
                BlockPlan(
                    number,
                    heads=_largest(_head_scores(block.attention), settings.heads),
                    cross_heads=whole.cross_heads
                    if block.cross is None
                    else _largest(_head_scores(block.cross), settings.heads),
                    units=_largest(unit, settings.ffn),
                )
            )
    return rewire_blocks(model, plans["encoder"], plans["decoder"])


def reduced_architecture(architecture: Architecture, settings: StructureSettings) -> Architecture:
    """The architecture that `plan_structure` leaves, whatever the weights.

    Raises `UserError` for more layers than there are, and for a share so small that nothing goes.
    """
    shapes: dict[str, tuple[BlockShape, ...]] = {}
    taken = {"heads": 0, "ffn": 0}
    for stack, numbers in _kept_layers(architecture, settings).items():
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


def _kept_layers(architecture: Architecture, settings: StructureSettings) -> dict[str, list[int]]:
    """The numbers of the layers that stay, by stack. Raises `UserError` for more than there are."""
    kept = {}
    for stack in ("encoder", "decoder"):
        name, layers = f"{stack}_layers", len(getattr(architecture, stack))
        count = layers if getattr(settings, name) is None else getattr(settings, name)
        if count > layers:
            raise UserError(f"technique.prune.structure.{name}={count} is more than the model's {layers}")
        kept[stack] = evenly_spaced(count, layers)
    return kept


def _head_scores(attention: Attention) -> Tensor:
    """One score for each key/value head with the query heads that it serves."""
    groups = attention.kv_heads
    return attention.v.weight.reshape(groups, -1).norm(dim=1) * attention.o.weight.t().reshape(groups, -1).norm(dim=1)


def _largest(scores: Tensor, removed: float) -> Tensor:
    """The indices, in order, of what stays when this share with the smallest scores goes."""
    return scores.detach().float().cpu().topk(_left(scores.numel(), removed)).indices.sort().values


def _left(count: int, removed: float) -> int:
    """How many stay when this share goes: at least one, where there is one."""
    return max(min(1, count), count - round(removed * count))
