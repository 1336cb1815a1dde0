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


def _attend(q_RHQK: Tensor, keys: Tensor, values: Tensor, groups: int, biases: Sequence[Tensor]) -> Tensor:
    """Attention from the queries of each row, scaled, to its keys (R G, K, P) and values (R G, P, K); (N, H K).

    A bias is added to the scores and broadcasts to (R, G, J, Q, P). All queries of a row are one product for each of
    its key/value heads: hypotheses that share their keys cost little more than one.
    """
    rows, heads, queries, width = q_RHQK.shape
    if not groups:
        return q_RHQK.new_empty(rows * queries, 0)
    joint = heads // groups
    q = q_RHQK.reshape(rows * groups, joint * queries, width)
    if biases and rows == joint == 1:
        scores = torch.baddbmm(biases[0].view(-1, *biases[0].shape[-2:]), q, keys)
        biases = biases[1:]
    else:
        scores = torch.bmm(q, keys)
    for bias in biases:
        scores.view(rows, groups, joint, queries, -1).add_(bias)
    mixed = torch.bmm(scores.softmax(-1), values)
    return mixed.view(rows, heads, queries, width).transpose(1, 2).reshape(rows * queries, heads * width)


class OwnAttention:
    """Self-attention of one block. Each call appends Q places to every row of its cache."""

    def __init__(self, attention: Attention, places: int) -> None:
        """``places`` is how many the cache has at first."""
        self.attention = attention
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
        self._cache: Tensor | None = None  # (2, R, G, places, K)

    def __call__(self, x_ND: Tensor, rows: int, start: int, biases: Sequence[Tensor], rotary: Rotary | None) -> Tensor:
        """Attends from N = R Q new queries to all places, their own included, and returns (N, D).

        ``start`` is the number of places before. ``rotary`` holds cosines and sines of the new positions, which
        broadcast to (R, Q, heads, K).
        """
        end = start + len(x_ND) // rows
        q_RHQK, kv = self._projected(x_ND, rows, rotary)
        cache = self._cache
        if cache is None or cache.shape[3] < end:
            cache = self._grown(end, kv)
        if rows < cache.shape[1]:
            cache = cache[:, :rows]
        cache[:, :, :, start:end] = kv
        keys, values = cache[:, :, :, :end].flatten(1, 2).unbind(0)
        return self._out(_attend(q_RHQK, keys.mT, values, cache.shape[2], biases))

    def _projected(self, x_ND: Tensor, rows: int, rotary: Rotary | None) -> tuple[Tensor, Tensor]:
        """Queries (R, H, Q, K), scaled, and keys and values (2, R, G, Q, K)."""
        attention = self.attention
        heads, groups, width = attention.heads, attention.kv_heads, attention.head_width
        queries = len(x_ND) // rows
        if self._qkv is not None:
            q, kv = self._qkv(x_ND).split([heads * width, 2 * groups * width], 1)
            q_RQHK, kv_RQ2GK = q.view(rows, queries, heads, width), kv.view(rows, queries, 2, groups, width)
            if attention.q_norm is None and rotary is None:
                return q_RQHK.transpose(1, 2), kv_RQ2GK.permute(2, 0, 3, 1, 4)
            k_RQGK, v_RQGK = kv_RQ2GK.unbind(2)
        else:
            q_RQHK = attention.q(x_ND).view(rows, queries, heads, width)
            k_RQGK, v_RQGK = (layer(x_ND).view(rows, queries, groups, width) for layer in (attention.k, attention.v))
        if attention.q_norm is not None and attention.k_norm is not None:
            q_RQHK, k_RQGK = attention.q_norm(q_RQHK), attention.k_norm(k_RQGK)
        if rotary is not None:
            q_RQHK, k_RQGK = rotate(torch.cat([q_RQHK, k_RQGK], 2), *rotary).split([heads, groups], 2)
        if self._qkv is None or attention.q_norm is not None:
            q_RQHK = q_RQHK * self._scale
        return q_RQHK.transpose(1, 2), torch.stack([k_RQGK, v_RQGK]).transpose(2, 3)

    def _grown(self, end: int, like: Tensor) -> Tensor:
        """The cache with memory for ``end`` places; it grows by doubling."""
        old = self._cache
        most = max(end, self._places if old is None else 2 * old.shape[3])
        cache = like.new_empty(*like.shape[:3], most, like.shape[4])
        if old is not None:
            cache[:, :, :, : old.shape[3]] = old[:, : cache.shape[1]]
        self._cache = cache
        return cache

    def select(self, rows: Tensor) -> None:
        """Keeps these rows, in this order."""
        if self._cache is not None:
            self._cache = self._cache.index_select(1, rows)

    def move(self, rows: Tensor, places: Tensor) -> None:
        """Copies rows over others, in place."""
        if self._cache is not None:
            self._cache[:, places] = self._cache[:, rows]


class CrossAttention:
    """Attention of one block to the source, whose keys and values are projected once."""

    def __init__(self, attention: Attention, memory_BSD: Tensor) -> None:
        self.attention = attention
        sentences, length, width = memory_BSD.shape
        shape = (sentences, length, attention.kv_heads, attention.head_width)
        memory_ND = memory_BSD.reshape(sentences * length, width)
        k_BSGK, v_BSGK = (bare(layer)(memory_ND).view(shape) for layer in (attention.k, attention.v))
        if attention.k_norm is not None:
            k_BSGK = attention.k_norm(k_BSGK)
        # The scale of the scores is that of the keys.
        k_BSGK = k_BSGK * attention.head_width**-0.5
        self._cache = torch.stack([part.transpose(1, 2) for part in (k_BSGK, v_BSGK)])  # (2, B, G, S, K)
        self._q, self._out = bare(attention.q), bare(attention.o)
        self._view(sentences)

    def _view(self, sentences: int) -> None:
        keys, values = self._cache[:, :sentences].flatten(1, 2).unbind(0)
        self._sentences, self._keys, self._values = sentences, keys.mT, values

    def __call__(self, x_ND: Tensor, sentences: int, biases: Sequence[Tensor]) -> Tensor:
        """Attends from the hypotheses of each sentence to its source; returns (N, D)."""
        attention = self.attention
        if sentences != self._sentences:
            self._view(sentences)
        q_BQHK = self._q(x_ND).view(sentences, len(x_ND) // sentences, attention.heads, attention.head_width)
        if attention.q_norm is not None:
            q_BQHK = attention.q_norm(q_BQHK)
        return self._out(_attend(q_BQHK.transpose(1, 2), self._keys, self._values, attention.kv_heads, biases))

    def move(self, rows: Tensor, places: Tensor) -> None:
        """Copies sentences over others, in place."""
        self._cache[:, places] = self._cache[:, rows]
