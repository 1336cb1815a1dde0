"""The attention of one decoder block step by step, with keys and values in memory that is taken once.

Shapes: R rows, Q new queries of each row, N = R Q, P places of a cache so far, D model width, H query heads, G key/value
heads, J = H / G, K head width, S source positions.
"""

from __future__ import annotations

import torch
from torch import Tensor

from tfx.model.attention import Attention
from tfx.model.linear import can_join, inference_product
from tfx.model.positions import rotate

Rotary = tuple[Tensor, Tensor]


def attend(attention: Attention, q_NHK: Tensor, keys: Tensor, values: Tensor, biases: tuple[Tensor, ...]) -> Tensor:
    """Attention from the queries of each row to the row's keys and values, (R, G, P, K) each; returns (N, H K).

    A bias is added to the scores and broadcasts to (R, G, J, Q, P). All queries of a row are one product for each of
    its heads: hypotheses that share their keys cost little more than one.
    """
    rows, groups, places, width = keys.shape
    if not groups:
        return q_NHK.flatten(1)
    joint = attention.heads // groups
    q = q_NHK.view(rows, -1, groups, joint, width).permute(0, 2, 3, 1, 4)
    queries = q.shape[3]
    q = q.reshape(rows * groups, joint * queries, width)
    scores = torch.bmm(q, keys.flatten(0, 1).mT).mul_(width**-0.5)
    for bias in biases:
        scores.view(rows, groups, joint, queries, places).add_(bias)
    mixed = torch.bmm(scores.softmax(-1), values.flatten(0, 1))
    mixed = mixed.view(rows, groups, joint, queries, width).permute(0, 3, 1, 2, 4)
    return mixed.reshape(rows * queries, groups * joint * width)


class OwnAttention:
    """Self-attention of one block. Each call appends Q places to every row of its cache."""

    def __init__(self, attention: Attention) -> None:
        self.attention = attention
        self._cache: Tensor | None = None  # (2, R, G, places, K)
        layers = [attention.q, attention.k, attention.v]
        self._joined: tuple[Tensor, Tensor | None] | None = None
        if can_join(layers):
            bias = None if attention.q.bias is None else torch.cat([layer.bias for layer in layers])
            self._joined = torch.cat([layer.weight for layer in layers]), bias

    def __call__(
        self, x_ND: Tensor, rows: int, start: int, biases: tuple[Tensor, ...], rotary: Rotary | None
    ) -> Tensor:
        """Attends from N = R Q new queries to all places, their own included, and returns (N, D).

        ``start`` is the number of places before. ``rotary`` holds cosines and sines of the new positions, which
        broadcast to (R, Q, heads, K).
        """
        attention = self.attention
        end = start + x_ND.shape[0] // rows
        q_NHK, k_NGK, v_NGK = self._projected(x_ND, rows, rotary)
        cache = self._reserved(rows, end, k_NGK)
        for part, new in zip(cache, (k_NGK, v_NGK), strict=True):
            part[:rows, :, start:end] = new.view(rows, end - start, *new.shape[1:]).transpose(1, 2)
        keys, values = cache[:, :rows, :, :end].unbind(0)
        return attention.o(attend(attention, q_NHK, keys, values, biases))

    def _projected(self, x_ND: Tensor, rows: int, rotary: Rotary | None) -> tuple[Tensor, Tensor, Tensor]:
        """Queries (N, H, K), keys and values (N, G, K)."""
        attention = self.attention
        heads, groups = attention.heads, attention.kv_heads
        sizes = [heads, groups, groups]
        if self._joined is not None:
            qkv = inference_product(x_ND, *self._joined).view(len(x_ND), sum(sizes), attention.head_width)
            q, k, v = qkv.split(sizes, 1)
        else:
            parts = [layer(x_ND) for layer in (attention.q, attention.k, attention.v)]
            q, k, v = (p.view(len(x_ND), n, attention.head_width) for p, n in zip(parts, sizes, strict=True))
        if attention.q_norm is not None and attention.k_norm is not None:
            q, k = attention.q_norm(q), attention.k_norm(k)
        if rotary is not None:
            q, k = (rotate(part.reshape(rows, -1, *part.shape[1:]), *rotary).flatten(0, 1) for part in (q, k))
        return q, k, v

    def _reserved(self, rows: int, end: int, like: Tensor) -> Tensor:
        """The cache, with memory for ``end`` places; it grows by doubling."""
        old = self._cache
        if old is None or old.shape[3] < end:
            most = max(end, 32) if old is None else max(end, 2 * old.shape[3])
            self._cache = like.new_empty(2, rows, like.shape[1], most, like.shape[2])
            if old is not None:
                self._cache[:, :, :, : old.shape[3]] = old[:, :rows]
        assert self._cache is not None
        return self._cache

    def select(self, rows: Tensor) -> None:
        """Keeps these rows, in this order."""
        if self._cache is not None:
            self._cache = self._cache.index_select(1, rows)

    def move(self, rows: Tensor, places: Tensor) -> None:
        """Copies rows over others, in place."""
        if self._cache is not None:
            self._cache[:, places] = self._cache[:, rows]

    def forget(self, places: int) -> None:
        """Drops the first places of all rows."""
        if self._cache is not None:
            self._cache = self._cache[:, :, :, places:]


class CrossAttention:
    """Attention of one block to the source, whose keys and values are projected once."""

    def __init__(self, attention: Attention, memory_BSD: Tensor) -> None:
        self.attention = attention
        shape = (*memory_BSD.shape[:2], attention.kv_heads, attention.head_width)
        keys, values = attention.k(memory_BSD).view(shape), attention.v(memory_BSD).view(shape)
        if attention.k_norm is not None:
            keys = attention.k_norm(keys)
        self._cache = torch.stack([keys, values]).transpose(2, 3).contiguous()  # (2, B, G, S, K)

    def __call__(self, x_ND: Tensor, sentences: int, biases: tuple[Tensor, ...]) -> Tensor:
        """Attends from the hypotheses of each sentence to its source; returns (N, D)."""
        attention = self.attention
        q_NHK = attention.q(x_ND).view(len(x_ND), attention.heads, attention.head_width)
        if attention.q_norm is not None:
            q_NHK = attention.q_norm(q_NHK)
        keys, values = self._cache[:, :sentences].unbind(0)
        return attention.o(attend(attention, q_NHK, keys, values, biases))

    def move(self, rows: Tensor, places: Tensor) -> None:
        """Copies sentences over others, in place."""
        self._cache[:, places] = self._cache[:, rows]
