"""Making a model smaller for good: heads, feed-forward units and layers go, or matrices become products of two.

What goes is one map of indices, for weights, optimizer moments, averages and masks alike. Factors are a linear map of
the matrix, for weights and averages; whatever has a value for each element of the matrix ends with it.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from tfx.model.architecture import Architecture, BlockShape
from tfx.model.linear import Factored
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


@dataclass(frozen=True)
class Factor:
    """One of two matrices that replace another: ``values`` times it, or with ``is_second`` the values themselves."""

    name: str
    values: Tensor
    is_second: bool

    def select(self, value: Tensor) -> Tensor:
        """The factor of the larger model's matrix, or of an average of it."""
        values = self.values.to(value.device, value.dtype)
        return values.clone() if self.is_second else values @ value


_WHOLE = Origin("")


class ParameterMap:
    """Maps each old parameter of a rewired model to what replaces it, with the origins: nothing if it is removed."""

    def __init__(self, parts: Mapping[Tensor, Sequence[tuple[nn.Parameter, Origin | Factor]]]) -> None:
        self._parts = parts

    def follow(self, parameters: Iterable[Tensor]) -> list[Tensor]:
        """The parameters that replace these; any that never belonged to the model (a projection) stay."""
        return [new for old in parameters for new, _ in self._parts.get(old, [(old, _WHOLE)])]

    def select(self, old: Tensor, value: Tensor) -> list[Tensor]:
        """What becomes of an average of an old parameter, for each that replaces it."""
        return [origin.select(value) for _, origin in self._parts.get(old, [(old, _WHOLE)])]

    def elements(self, old: Tensor) -> list[tuple[Tensor, Origin]]:
        """The parameters that consist of elements of an old one; what is known of these is carried by the origin."""
        return [(new, origin) for new, origin in self._parts.get(old, [(old, _WHOLE)]) if isinstance(origin, Origin)]


@dataclass(frozen=True)
class Rewiring:
    """The smaller architecture, and the origin of each tensor by its name there."""

    architecture: Architecture
    origins: Mapping[str, Origin | Factor]

    def carry(self, values: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Turns values of elements, named as in the larger model, into the kept values, named as in the smaller one."""
        return self._carry(values, {n: origin for n, origin in self.origins.items() if isinstance(origin, Origin)})

    def carry_weights(self, weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Turns weights of the larger model, or averages of them, into those of the smaller one."""
        return self._carry(weights, self.origins)

    @staticmethod
    def _carry(values: Mapping[str, Tensor], origins: Mapping[str, Origin | Factor]) -> dict[str, Tensor]:
        return {name: origin.select(values[origin.name]) for name, origin in origins.items() if origin.name in values}

    def apply(self, model: Transformer) -> ParameterMap:
        """Makes the model smaller in place; returns the map of its parameters."""
        before = dict(model.named_parameters())
        reshape(model, self.architecture, self.carry_weights(model.state_dict()))
        parts: dict[Tensor, list[tuple[nn.Parameter, Origin | Factor]]] = {old: [] for old in before.values()}
        for name, new in model.named_parameters():
            parts[before[self.origins[name].name]].append((new, self.origins[name]))
        return ParameterMap(parts)


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
    others = [name for name in model.state_dict() if not name.startswith(("encoder.blocks.", "decoder.blocks."))]
    exits = _exits_after([plan.number for plan in encoder], architecture.exits)
    origins: dict[str, Origin | Factor] = {name: Origin(name) for name in others if not name.startswith("exits.")}
    for place, depth in enumerate(exits.values()):
        head = f"exits.{architecture.exits.index(depth)}."
        names = [name.removeprefix(head) for name in others if name.startswith(head)]
        origins |= {f"exits.{place}.{name}": Origin(head + name) for name in names}
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
    smaller = replace(architecture, encoder=shapes["encoder"], decoder=shapes["decoder"], exits=tuple(exits))
    return Rewiring(smaller, origins)


def _exits_after(kept: Sequence[int], exits: Sequence[int]) -> dict[int, int]:
    """By its depth among the ``kept`` blocks, the exit that stays there: of several the deepest, at the ends none."""
    found = {sum(number < depth for number in kept): depth for depth in exits}
    return {depth: old for depth, old in sorted(found.items()) if 0 < depth < len(kept)}


def keep_tokens(model: Transformer, ids: Sequence[int]) -> Rewiring:
    """The rewiring that keeps only these tokens: their rows of the embeddings, and of an output layer for tokens."""
    rows = torch.tensor(ids)
    vocabulary = ["embedding.weight", "source_embedding.weight"]
    if model.architecture.outputs is None:
        vocabulary += ["output.weight", "output.bias"]
    origins = {name: Origin(name, rows if name in vocabulary else None) for name in model.state_dict()}
    return Rewiring(replace(model.architecture, vocab_size=len(ids)), origins)


def factor_matrices(model: Transformer, factors: Mapping[str, tuple[Tensor, Tensor]]) -> Rewiring:
    """The rewiring that makes each named linear layer of a block (``encoder.blocks.0.ffn.up``) a product.

    Its factors are two matrices: W1 is the first of them, (rank, outputs), times the layer's own, and W2 is the second,
    (outputs, rank).
    """
    origins: dict[str, Origin | Factor] = {}
    for name in model.state_dict():
        layer, _, leaf = name.rpartition(".")
        if layer not in factors:
            origins[name] = Origin(name)
        elif leaf == "weight":
            first, second = factors[layer]
            origins[f"{layer}.first.weight"] = Factor(name, first, is_second=False)
            origins[f"{layer}.second.weight"] = Factor(name, second, is_second=True)
        else:
            origins[f"{layer}.second.{leaf}"] = Origin(name)
    shapes: dict[str, tuple[BlockShape, ...]] = {}
    for stack in ("encoder", "decoder"):
        kept = []
        for number, shape in enumerate(getattr(model.architecture, stack)):
            prefix = f"{stack}.blocks.{number}."
            ranks = [
                (layer.removeprefix(prefix), len(first))
                for layer, (first, _) in factors.items()
                if layer.startswith(prefix)
            ]
            kept.append(replace(shape, ranks=(*shape.ranks, *ranks)))
        shapes[stack] = tuple(kept)
    return Rewiring(replace(model.architecture, encoder=shapes["encoder"], decoder=shapes["decoder"]), origins)


def multiplied(model: Transformer) -> Transformer:
    """The model with each product of two matrices as one; the same model if it has none."""
    architecture = model.architecture
    if not any(shape.ranks for shape in (*architecture.encoder, *architecture.decoder)):
        return model
    layers = {name: layer for name, layer in model.named_modules() if isinstance(layer, Factored)}
    state = {
        name: value.detach()
        for name, value in model.state_dict(keep_vars=True).items()
        if not any(name.startswith(f"{layer}.") for layer in layers)
    }
    for name, layer in layers.items():
        state[f"{name}.weight"] = layer.weight.detach()
        if layer.bias is not None:
            state[f"{name}.bias"] = layer.bias.detach()
    encoder, decoder = (
        tuple(replace(shape, ranks=()) for shape in stack) for stack in (architecture.encoder, architecture.decoder)
    )
    whole = replace(architecture, encoder=encoder, decoder=decoder)
    return Transformer.holding(whole, state, model.rates).train(model.training)


def unrolled(model: Transformer) -> tuple[Transformer, dict[str, str]]:
    """The model with a block for each layer, and for the name of each of its tensors that in ``model``.

    The same model if no block runs more than once. Blocks that were one share their memory.
    """
    architecture = model.architecture
    state = {name: value.detach() for name, value in model.state_dict(keep_vars=True).items()}
    if architecture.passes == 1:
        return model, {name: name for name in state}
    origins = {}
    for name in state:
        stack, is_block, rest = name.partition(".blocks.")
        if not is_block:
            origins[name] = name
            continue
        number, _, leaf = rest.partition(".")
        count = len(getattr(architecture, stack))
        for turn in range(architecture.passes):
            origins[f"{stack}.blocks.{int(number) + turn * count}.{leaf}"] = name
    encoder, decoder = (architecture.passes * stack for stack in (architecture.encoder, architecture.decoder))
    whole = replace(architecture, encoder=encoder, decoder=decoder, passes=1)
    held = {name: state[origin] for name, origin in origins.items()}
    return Transformer.holding(whole, held, model.rates).train(model.training), origins


def _kept(block: nn.Module, plan: BlockPlan) -> Iterator[tuple[str, tuple[Tensor | None, Tensor | None]]]:
    """The rows and columns to keep of each tensor in a block, with the tensor's name inside the block."""
    for name in block.state_dict():
        part, _, rest = name.partition(".")
        layer, _, leaf = rest.partition(".")
        # Of a product, the second matrix has the outputs and the first one the inputs.
        has_outputs, has_inputs = not leaf.startswith("first."), leaf in ("weight", "first.weight")
        if part == "ffn":
            if layer == "down":
                yield name, (None, plan.units if has_inputs else None)
            else:
                yield name, (plan.units if has_outputs else None, None)
        elif part in ("attention", "cross"):
            attention = getattr(block, part)
            groups = plan.heads if part == "attention" else plan.cross_heads
            serves = attention.heads // attention.kv_heads
            queries = _spread(groups, serves)
            if rest == "relative_bias":
                yield name, (None, queries)
            elif rest == "slopes":
                yield name, (queries, None)
            elif layer == "q" and has_outputs:
                yield name, (_spread(queries, attention.head_width), None)
            elif layer in ("k", "v") and has_outputs:
                yield name, (_spread(groups, attention.head_width), None)
            elif layer == "o" and has_inputs:
                yield name, (None, _spread(queries, attention.head_width))
            else:
                yield name, (None, None)
        else:
            yield name, (None, None)


def _spread(indices: Tensor, width: int) -> Tensor:
    """Turns indices of groups of ``width`` into the indices of their members."""
    return (indices.unsqueeze(1) * width + torch.arange(width)).flatten()
