"""The attention of one decoder block step by step, with keys and values in memory that is taken once.

Shapes: R rows, Q new queries of each row, N = R Q, P places of a cache so far, D model width, H query heads, G
key/value heads, J = H / G, K head width, S source positions.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from tfx.model.attention import Attention
from tfx.model.linear import Product, can_join
from tfx.model.positions import rotate

Rotary = tuple[Tensor, Tensor]


def bare(module: nn.Module) -> Callable[[Tensor], Tensor]:
    """What a module computes, without what its call costs: a fifth of a step of a small model."""
    if module._forward_hooks or module._forward_pre_hooks:
        return module
    if type(module) is nn.Linear or can_join([module]):
        return Product(module.weight, module.bias)  # type: ignore[arg-type]
    return module.forward


def _attend(q_NHK: Tensor, keys: Tensor, values: Tensor, groups: int, biases: Sequence[Tensor]) -> Tensor:
    """Attention from the queries of each row, scaled, to its keys and values, (R G, P, K) each; returns (N, H K).

    A bias is added to the scores and broadcasts to (R, G, J, Q, P). All queries of a row are one product for each of
    its heads: hypotheses that share their keys cost little more than one.
    """
    if not groups:
        return q_NHK.flatten(1)
    rows, joint = keys.shape[0] // groups, q_NHK.shape[1] // groups
    places, width = keys.shape[1:]
    queries = len(q_NHK) // rows
    if joint == 1:
        q = q_NHK.view(rows, queries, groups, width).transpose(1, 2)
    else:
        q = q_NHK.view(rows, queries, groups, joint, width).permute(0, 2, 3, 1, 4)
    scores = torch.bmm(q.reshape(rows * groups, joint * queries, width), keys.mT)
    for bias in biases:
        scores.view(rows, groups, joint, queries, places).add_(bias)
    mixed = torch.bmm(scores.softmax(-1), values)
    if joint == 1:
        mixed = mixed.view(rows, groups, queries, width).transpose(1, 2)
    else:
        mixed = mixed.view(rows, groups, joint, queries, width).permute(0, 3, 1, 2, 4)
    return mixed.reshape(rows * queries, groups * joint * width)


class OwnAttention:
    """Self-attention of one block. Each call appends Q places to every row of its cache."""

    def __init__(self, attention: Attention, places: int) -> None:
        """``places`` is how many the cache has at first."""
        self.attention = attention
        self._cache: Tensor | None = None  # (2, R G, places, K)
        self._places = places
        self._scale = attention.head_width**-0.5
        layers = [attention.q, attention.k, attention.v]
        self._qkv: Callable[[Tensor], Tensor] | None = None
        if can_join(layers):
            weight = torch.cat([layer.weight for layer in layers])
            bias = None if attention.q.bias is None else torch.cat([layer.bias for layer in layers])
            if attention.q_norm is None:  # else the norm would undo it
                for part in (weight, bias):
                    if part is not None:
                        part[: attention.heads * attention.head_width] *= self._scale
            self._qkv = Product(weight, bias)
        self._out = bare(attention.o)

    def __call__(self, x_ND: Tensor, rows: int, start: int, biases: Sequence[Tensor], rotary: Rotary | None) -> Tensor:
        """Attends from N = R Q new queries to all places, their own included, and returns (N, D).

        ``start`` is the number of places before. ``rotary`` holds cosines and sines of the new positions, which
        broadcast to (R, Q, heads, K).
        """
        groups, count = self.attention.kv_heads, len(x_ND)
        end = start + count // rows
        q_NHK, k_NGK, v_NGK = self._projected(x_ND, rows, rotary)
        cache = self._reserved(rows * groups, end, k_NGK)
        if groups:
            here = cache[:, : rows * groups, start:end].view(2, rows, groups, end - start, -1)
            here[0] = k_NGK.view(rows, end - start, groups, -1).transpose(1, 2)
            here[1] = v_NGK.view(rows, end - start, groups, -1).transpose(1, 2)
        keys, values = cache[:, : rows * groups, :end].unbind(0)
        return self._out(_attend(q_NHK, keys, values, groups, biases))

    def _projected(self, x_ND: Tensor, rows: int, rotary: Rotary | None) -> tuple[Tensor, Tensor, Tensor]:
        """Queries (N, H, K), scaled, keys and values (N, G, K)."""
        attention = self.attention
        heads, groups, width = attention.heads, attention.kv_heads, attention.head_width
        queries = len(x_ND) // rows
        if self._qkv is not None:
            qkv = self._qkv(x_ND).view(len(x_ND), heads + 2 * groups, width)
            qk, v = qkv[:, : heads + groups], qkv[:, heads + groups :]
            if rotary is not None and attention.q_norm is None:
                qk = rotate(qk.view(rows, queries, heads + groups, width), *rotary).flatten(0, 1)
            q, k = qk[:, :heads], qk[:, heads:]
            if attention.q_norm is None:
                return q, k, v
        else:
            q = attention.q(x_ND).view(len(x_ND), heads, width)
            k, v = (layer(x_ND).view(len(x_ND), groups, width) for layer in (attention.k, attention.v))
        if attention.q_norm is not None and attention.k_norm is not None:
            q, k = attention.q_norm(q), attention.k_norm(k)
        if rotary is not None:
            q, k = (rotate(part.reshape(rows, queries, *part.shape[1:]), *rotary).flatten(0, 1) for part in (q, k))
        return q * self._scale, k, v

    def _reserved(self, rows: int, end: int, like: Tensor) -> Tensor:
        """The cache, with memory for ``end`` places; it grows by doubling."""
        cache = self._cache
        if cache is None:
            cache = like.new_empty(2, rows, max(end, self._places), like.shape[2])
        elif cache.shape[2] < end:
            grown = like.new_empty(2, rows, max(end, 2 * cache.shape[2]), like.shape[2])
            grown[:, :, : cache.shape[2]] = cache[:, :rows]
            cache = grown
        self._cache = cache
        return cache

    def select(self, rows: Tensor) -> None:
        """Keeps these rows, in this order."""
        groups = self.attention.kv_heads
        if self._cache is not None and groups:
            self._cache = self._cache.unflatten(1, (-1, groups)).index_select(1, rows).flatten(1, 2)

    def move(self, rows: Tensor, places: Tensor) -> None:
        """Copies rows over others, in place."""
        _move(self._cache, self.attention.kv_heads, rows, places)


class CrossAttention:
    """Attention of one block to the source, whose keys and values are projected once."""

    def __init__(self, attention: Attention, memory_BSD: Tensor) -> None:
        self.attention = attention
        sentences, length, width = memory_BSD.shape
        groups, head_width = attention.kv_heads, attention.head_width
        memory_ND = memory_BSD.reshape(sentences * length, width)
        keys, values = (
            layer(memory_ND).view(len(memory_ND), groups, head_width) for layer in (attention.k, attention.v)
        )
        if attention.k_norm is not None:
            keys = attention.k_norm(keys)
        # (2, B G, S, K)
        self._cache = memory_BSD.new_empty(2, sentences * groups, length, head_width, dtype=keys.dtype)
        for part, new in zip(self._cache, (keys, values), strict=True):
            if groups:
                part.view(sentences, groups, length, head_width).copy_(
                    new.view(sentences, length, groups, head_width).transpose(1, 2)
                )
        self._q, self._out = bare(attention.q), bare(attention.o)
        # The scale of the scores.
        self._cache[0] *= head_width**-0.5

    def __call__(self, x_ND: Tensor, sentences: int, biases: Sequence[Tensor]) -> Tensor:
        """Attends from the hypotheses of each sentence to its source; returns (N, D)."""
        attention = self.attention
        q_NHK = self._q(x_ND).view(len(x_ND), attention.heads, attention.head_width)
        if attention.q_norm is not None:
            q_NHK = attention.q_norm(q_NHK)
        keys, values = self._cache[:, : sentences * attention.kv_heads].unbind(0)
        return self._out(_attend(q_NHK, keys, values, attention.kv_heads, biases))

    def move(self, rows: Tensor, places: Tensor) -> None:
        """Copies sentences over others, in place."""
        _move(self._cache, self.attention.kv_heads, rows, places)


def _move(cache: Tensor | None, groups: int, rows: Tensor, places: Tensor) -> None:
    if cache is not None and groups:
        by_row = cache.unflatten(1, (-1, groups))
        by_row[:, places] = by_row[:, rows]
