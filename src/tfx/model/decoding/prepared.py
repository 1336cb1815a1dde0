"""A model as what the steps of decoding call: weights that are joined and laid out once, modules without the cost of
their calls.

Shapes: N rows, B sentences, S source positions, D model width, H query heads, G key/value heads, K head width, E width
of a projection.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import chain
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from tfx.model.attention import Attention
from tfx.model.layers import Block
from tfx.model.linear import Product, can_join
from tfx.model.transformer import Transformer

# Source positions of a batch from which it pays to build a kernel for one product with that many rows.
_MANY_POSITIONS = 1024
# Weights of a model up to which they are laid out a second time, as the kernels read them: 256 MB in fp32.
_MOST_COPIED = 1 << 26

Rows = Callable[[Tensor], Tensor]
"""A function of rows (N, …)."""


class Prepared:
    """What decoding reads of a model. It follows the modules, so layers on other kernels and pruned heads work.

    For inference only, and only until a weight or a module of the model changes: `prepared` knows.
    """

    def __init__(self, model: Transformer) -> None:
        make = _Maker(copies=sum(weight.numel() for weight in model.parameters()) <= _MOST_COPIED)
        # One number of rows for each number of source positions: oneDNN would build a kernel for each.
        reading = replace(make, fewest=_MANY_POSITIONS)
        self.blocks = [BlockParts(block, make) for block in model.decoder.blocks]  # type: ignore[arg-type]
        self.norm, self.project = make.bare(model.decoder.norm), make.bare(model.output)
        self.encoder: list[BlockParts] = []
        if model.encoder is not None:
            parts = [BlockParts(block, reading) for block in model.encoder.blocks]  # type: ignore[arg-type]
            self.encoder = parts * model.architecture.passes
            self.encoder_norm = make.bare(model.encoder.norm)
        self._table, self._scale = model.embedding, model.embedding_scale
        self._embedding_norm = None if model.embedding_norm is None else make.bare(model.embedding_norm)
        self._places_TD = _place_table(model)
        crossing = self._crossing = [block.cross for block in self.blocks if block.cross is not None]
        layers = list(chain.from_iterable((cross.attention.k, cross.attention.v) for cross in crossing))
        scales = list(chain.from_iterable((_key_scale(cross.attention), 1.0) for cross in crossing))
        self._source = reading.joined(layers, scales) if layers and can_join(layers) else None
        self._source_parts = [[reading.bare(part) for part in (c.attention.k, c.attention.v)] for c in crossing]

    def embed(self, tokens: Tensor, places: slice | Tensor, table: nn.Embedding | None = None) -> Tensor:
        """As `Transformer.embed`: embeddings (…, D) of tokens (…) at ``places``, which are as many or broadcast.

        ``table`` is the decoder's, unless given.
        """
        table = table or self._table
        x = table(tokens) if _is_watched(table) else torch.embedding(table.weight, tokens)
        if self._places_TD is not None:
            x = torch.add(self._places_TD[places], x, alpha=self._scale)
        elif self._scale != 1:
            x = x * self._scale
        return x if self._embedding_norm is None else self._embedding_norm(x)

    def source(self, memory_BSD: Tensor) -> list[Tensor]:
        """Of each block with cross-attention the keys, scaled, and the values of a source, (2, B, G, S, K)."""
        sentences, length, width = memory_BSD.shape
        memory_ND = memory_BSD.reshape(sentences * length, width)
        if self._source is None:
            joint = [torch.cat([part(memory_ND) for part in parts], 1) for parts in self._source_parts]
        else:
            widths = [2 * cross.attention.kv_heads * cross.attention.head_width for cross in self._crossing]
            joint = list(self._source(memory_ND).split(widths, 1))
        found = []
        for cross, kv_NE in zip(self._crossing, joint, strict=True):
            attention = cross.attention
            kv_BS2GK = kv_NE.view(sentences, length, 2, attention.kv_heads, attention.head_width)
            kv_2BGSK = kv_BS2GK.permute(2, 0, 3, 1, 4).contiguous()
            if attention.k_norm is not None:
                kv_2BGSK[0] = attention.k_norm(kv_2BGSK[0])
            if attention.k_norm is not None or self._source is None:
                kv_2BGSK[0] *= attention.head_width**-0.5
            found.append(kv_2BGSK)
        return found


class BlockParts:
    """The parts of a block, ready to be called for rows (N, D)."""

    def __init__(self, block: Block, make: _Maker) -> None:
        self.pre = block.pre
        self.own = OwnParts(block.attention, make)
        self.cross = None if block.cross is None else CrossParts(block.cross, make)
        self.own_norm, self.ffn_norm = make.bare(block.attention_norm), make.bare(block.ffn_norm)
        self.cross_norm = self.ffn_norm if block.cross_norm is None else make.bare(block.cross_norm)
        self._up, self._down = make.bare(block.ffn.up), make.bare(block.ffn.down)
        self._gate = None if block.ffn.gate is None else make.bare(block.ffn.gate)
        self._activation = block.ffn.activation

    def feed_forward(self, x_ND: Tensor) -> Tensor:
        """As `FeedForward`, without dropout."""
        up = self._up(x_ND)
        return self._down(self._activation(up) if self._gate is None else self._activation(self._gate(x_ND)) * up)


class OwnParts:
    """The projections of self-attention: ``qkv`` all of them as one product, or None where they cannot be joined.

    ``is_scaled``: the queries of ``qkv`` are scaled already.
    """

    def __init__(self, attention: Attention, make: _Maker) -> None:
        self.attention = attention
        layers = [attention.q, attention.k, attention.v]
        self.is_scaled = attention.q_norm is None  # else the norm would undo it
        scale = attention.head_width**-0.5 if self.is_scaled else 1.0
        self.qkv = make.joined(layers, [scale, 1.0, 1.0]) if can_join(layers) else None
        self.out = make.bare(attention.o)


class CrossParts:
    """The projections of the queries and the output of cross-attention.

    ``folds`` holds what is folded into keys and values of each head, (2 H, K, D), and ``q_bias`` (H, K, 1); None where
    the queries are normalised or something watches.
    """

    def __init__(self, attention: Attention, make: _Maker) -> None:
        self.attention = attention
        self.q, self.out = make.bare(attention.q), make.bare(attention.o)
        self.folds = self.q_bias = self.out_bias = None
        if attention.q_norm is not None or not can_join([attention.q, attention.o]):
            return
        self.width = attention.q.in_features
        shape = (attention.heads, attention.head_width, self.width)
        self.folds = torch.cat([attention.q.weight.view(shape), attention.o.weight.t().reshape(shape)])
        self.out_bias = attention.o.bias
        if attention.q.bias is not None:
            self.q_bias = attention.q.bias.view(*shape[:2], 1)


def _key_scale(attention: Attention) -> float:
    """By what the keys of a source are scaled as they are projected; a norm would undo it."""
    return attention.head_width**-0.5 if attention.k_norm is None else 1.0


@dataclass(frozen=True)
class _Maker:
    """Makes functions of modules. ``fewest`` and ``copies``: see `Product`."""

    copies: bool
    fewest: int = 1

    def bare(self, module: nn.Module) -> Rows:
        """What a module computes, without what its call costs: a fifth of a step of a small model."""
        if _is_watched(module):
            return module
        if type(module) is nn.Linear or can_join([module]):
            return Product(module.weight, module.bias, self.fewest, copies=self.copies)  # type: ignore[arg-type]
        if type(module) is nn.LayerNorm:
            shape, weight, bias, epsilon = module.normalized_shape, module.weight, module.bias, module.eps
            return lambda x: torch.layer_norm(x, shape, weight, bias, epsilon, False)
        return module.forward

    def joined(self, layers: Sequence[nn.Module], scales: Sequence[float]) -> Product:
        """Linear layers of one input, all of them with a bias or none, as one product, side by side, each times its
        scale.
        """

        def side_by_side(name: str) -> Tensor | None:
            parts: list[Any] = [getattr(layer, name) for layer in layers]
            if parts[0] is None:
                return None
            return torch.cat([part if scale == 1 else part * scale for part, scale in zip(parts, scales, strict=True)])

        weight = side_by_side("weight")
        assert weight is not None
        return Product(weight, side_by_side("bias"), self.fewest, copies=self.copies)


def _is_watched(module: nn.Module) -> bool:
    return bool(module._forward_hooks or module._forward_pre_hooks)


def _place_table(model: Transformer) -> Tensor | None:
    """What is added to the scaled embedding at each position (T, D): of the position and of token type 0."""
    table = model.sinusoids
    if model.position is not None:
        table = model.position.weight * model.embedding_scale
    if model.token_type is not None:
        kind_D = model.token_type.weight[0] * model.embedding_scale
        table = kind_D.expand(model.architecture.context, -1) if table is None else table + kind_D
    return table


# --- as long as nothing changes ------------------------------------------------------------------------

_known: WeakKeyDictionary[Transformer, tuple[Prepared, _Traces]] = WeakKeyDictionary()


def prepared(model: Transformer) -> Prepared:
    """The model prepared for decoding, anew where a weight or a module has changed since the last time."""
    known = _known.get(model)
    if known is not None and known[1].hold():
        return known[0]
    _known.pop(model, None)
    parts, traces = Prepared(model), _Traces(model)
    if traces.are_whole:
        _known[model] = parts, traces
    return parts


class _Traces:
    """Which modules and tensors a model has that `Prepared` has read, to see later whether they are the same."""

    def __init__(self, model: Transformer) -> None:
        # Dictionaries of modules, with a key and what was found there.
        self._found: list[tuple[dict[str, Any], str, Any]] = []
        self._hooks: list[dict[int, Any]] = []
        self._versions: list[tuple[Tensor, int]] = []
        # Tensors that inference mode made have no versions, so that a change would not be seen.
        self.are_whole = True
        for module in model.modules():
            self._note(module, chain(module._modules, module._parameters, module._buffers))

    def _note(self, module: nn.Module, names: Any) -> None:
        self._hooks += [module._forward_hooks, module._forward_pre_hooks]
        for name in names:
            for place in (module._modules, module._parameters, module._buffers):
                if name not in place:
                    continue
                value = place[name]
                self._found.append((place, name, value))
                if isinstance(value, Tensor):
                    self.are_whole = self.are_whole and not value.is_inference()
                    if self.are_whole:
                        self._versions.append((value, value._version))

    def hold(self) -> bool:
        """Whether all is as it was, and nothing watches."""
        return (
            all(place.get(name) is value for place, name, value in self._found)
            and all(tensor._version == version for tensor, version in self._versions)
            and not any(self._hooks)
        )
