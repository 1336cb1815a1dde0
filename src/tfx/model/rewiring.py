"""Removing heads, feed-forward units or layers of a model for good, by one map of indices.

The same map applies to weights, optimizer moments, averages and masks.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from tfx.model.architecture import Architecture, BlockShape
from tfx.model.transformer import Transformer, count_parameters


@dataclass(frozen=True)
class Origin:
    """Where a tensor of the smaller model comes from: a tensor of the larger one, and the indices to keep.

    ``rows`` and ``columns`` index its first and second dimension; None keeps all.
    """

    name: str
    rows: Tensor | None = None
    columns: Tensor | None = None

    def select(self, value: Tensor) -> Tensor:
        """The kept part of the larger model's tensor, or of any tensor of the same shape."""
        if self.rows is not None:
            value = value.index_select(0, self.rows.to(value.device))
        if self.columns is not None:
            value = value.index_select(1, self.columns.to(value.device))
        return value


class ParameterMap:
    """Maps each old parameter of a rewired model to its smaller one and that one's origin, or to None if removed."""

    def __init__(self, parts: Mapping[Tensor, tuple[nn.Parameter, Origin] | None]) -> None:
        self._parts = parts

    def follow(self, parameters: Iterable[Tensor]) -> list[Tensor]:
        """The parameters that replace these; any that never belonged to the model (a projection) stay."""
        found = ((parameter, self._parts.get(parameter)) for parameter in parameters)
        return [old if new is None else new[0] for old, new in found if new is not None or old not in self._parts]

    def select(self, old: Tensor, value: Tensor) -> Tensor:
        """The kept part of a tensor with the shape of an old parameter, such as a moment or an average."""
        part = self._parts.get(old)
        return value if part is None else part[1].select(value)


@dataclass(frozen=True)
class Rewiring:
    """The smaller architecture, and the origin of each tensor by its name there."""

    architecture: Architecture
    origins: dict[str, Origin]

    def carry(self, values: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Turns values named as in the larger model into the kept values, named as in the smaller one."""
        return {
            name: origin.select(values[origin.name]) for name, origin in self.origins.items() if origin.name in values
        }

    def apply(self, model: Transformer) -> ParameterMap:
        """Makes the model smaller in place; returns the map of its parameters."""
        before = dict(model.named_parameters())
        reshape(model, self.architecture, self.carry(model.state_dict()))
        origins = {before[self.origins[name].name]: (new, self.origins[name]) for name, new in model.named_parameters()}
        return ParameterMap({old: origins.get(old) for old in before.values()})


def reshape(model: Transformer, architecture: Architecture, state: Mapping[str, Tensor]) -> None:
    """Gives a model another architecture and these weights in place; its dropout rates and mode stay."""
    other = Transformer(architecture, model.rates).to(model.embedding.weight.device)
    other.load_state_dict(state)
    other.set_checkpointing(model.decoder.checkpointing)
    other.train(model.training)
    for name, child in other._modules.items():  # lists tied modules under each of their names
        setattr(model, name, child)
    model.architecture = architecture


def removed_parts(before: Architecture, after: Architecture) -> str:
    """Describes the removed parts in words: ``4 of 16 heads, 1 of 2 encoder layers, ...``."""
    found = []
    sums = []
    for architecture in (before, after):
        blocks = (*architecture.encoder, *architecture.decoder)
        sums.append(
            {
                "heads": sum(shape.heads + shape.cross_heads for shape in blocks),
                "feed-forward units": sum(shape.ffn for shape in blocks),
                "encoder layers": len(architecture.encoder),
                "decoder layers": len(architecture.decoder),
                "parameters": count_parameters(architecture),
            }
        )
    for what, count in sums[0].items():
        if gone := count - sums[1][what]:
            found.append(f"{gone:,} of {count:,} {what}")
    return ", ".join(found)


@dataclass(frozen=True)
class BlockPlan:
    """What to keep of one block: its number in the larger model, and the indices of its heads and units to keep.

    ``heads`` and ``cross_heads`` index groups: a key/value head with the query heads that it serves.
    """

    number: int
    heads: Tensor
    cross_heads: Tensor
    units: Tensor


def whole_block(number: int, shape: BlockShape) -> BlockPlan:
    """The plan that keeps a whole block."""
    return BlockPlan(number, torch.arange(shape.kv_heads), torch.arange(shape.cross_kv_heads), torch.arange(shape.ffn))


def evenly_spaced(kept: int, layers: int) -> list[int]:
    """Numbers of ``kept`` evenly spaced layers, with the first and the last; if only one is kept, the last."""
    if kept == 1:
        return [layers - 1]
    return [round(i * (layers - 1) / (kept - 1)) for i in range(kept)]


def rewire_blocks(model: Transformer, encoder: list[BlockPlan], decoder: list[BlockPlan]) -> Rewiring:
    """The rewiring that keeps what the plans of both stacks list."""
    architecture = model.architecture
    origins = {
        name: Origin(name) for name in model.state_dict() if not name.startswith(("encoder.blocks.", "decoder.blocks."))
    }
    shapes: dict[str, tuple[BlockShape, ...]] = {}
    for stack, plans in (("encoder", encoder), ("decoder", decoder)):
        blocks = getattr(architecture, stack)
        kept = []
        for position, plan in enumerate(plans):
            shape = blocks[plan.number]
            kept.append(shape.keeping(len(plan.heads), len(plan.cross_heads), len(plan.units)))
            module = getattr(model, stack).blocks[plan.number]
            prefix, old = f"{stack}.blocks.{position}.", f"{stack}.blocks.{plan.number}."
            origins |= {prefix + name: Origin(old + name, *selection) for name, selection in _kept(module, plan)}
        shapes[stack] = tuple(kept)
    return Rewiring(replace(architecture, encoder=shapes["encoder"], decoder=shapes["decoder"]), origins)


def keep_tokens(model: Transformer, ids: Sequence[int]) -> Rewiring:
    """The rewiring that keeps only these tokens: their rows of the embeddings, and of an output layer for tokens."""
    rows = torch.tensor(ids)
    vocabulary = ["embedding.weight", "source_embedding.weight"]
    if model.architecture.outputs is None:
        vocabulary += ["output.weight", "output.bias"]
    origins = {name: Origin(name, rows if name in vocabulary else None) for name in model.state_dict()}
    return Rewiring(replace(model.architecture, vocab_size=len(ids)), origins)


def _kept(block: nn.Module, plan: BlockPlan) -> Iterator[tuple[str, tuple[Tensor | None, Tensor | None]]]:
    """The rows and columns to keep of each tensor in a block, with the tensor's name inside the block."""
    for name in block.state_dict():
        part, _, rest = name.partition(".")
        if part == "ffn":
            if rest.startswith("down"):
                yield name, (None, plan.units if rest.endswith("weight") else None)
            else:
                yield name, (plan.units, None)
        elif part in ("attention", "cross"):
            attention = getattr(block, part)
            groups = plan.heads if part == "attention" else plan.cross_heads
            serves = attention.heads // attention.kv_heads
            queries = _spread(groups, serves)
            if rest == "relative_bias":
                yield name, (None, queries)
            elif rest == "slopes":
                yield name, (queries, None)
            elif rest.startswith("q."):
                yield name, (_spread(queries, attention.head_width), None)
            elif rest.startswith(("k.", "v.")):
                yield name, (_spread(groups, attention.head_width), None)
            elif rest == "o.weight":
                yield name, (None, _spread(queries, attention.head_width))
            else:
                yield name, (None, None)
        else:
            yield name, (None, None)


def _spread(indices: Tensor, width: int) -> Tensor:
    """Turns indices of groups of ``width`` into the indices of their members."""
    return (indices.unsqueeze(1) * width + torch.arange(width)).flatten()
