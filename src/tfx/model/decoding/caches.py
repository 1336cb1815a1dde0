"""The attention of one decoder block step by step, with keys and values in memory that is taken once.

Shapes: R rows, Q new queries of each row, N = R Q, P places of a cache so far, D model width, H query heads, G
key/value heads, J = H / G, K head width, S source positions.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from tfx.model.decoding.prepared import CrossParts, OwnParts
from tfx.model.positions import rotate

Rotary = tuple[Tensor, Tensor]

# Scores of a hypothesis up to which folded keys and values are small enough to pay, in model widths.
_MOST_SCORES = 2


def _attend(q_RHQK: Tensor, keys: Tensor, values: Tensor, groups: int, biases: Sequence[Tensor]) -> Tensor:
    """Attention from the queries of each row, scaled, to its keys (R G, K, P) and values (R G, P, K); (N, H K).

    A bias is added to the scores and broadcasts to (R, H, Q, P). All queries of a row are one product for each of
    its key/value heads: hypotheses that share their keys cost little more than one.
    """
    rows, heads, queries, width = q_RHQK.shape
    if not groups:
        return q_RHQK.new_empty(rows * queries, 0)
    if rows == 1 and heads == groups and len(biases) == 1:
        scores = torch.baddbmm(biases[0].squeeze(0), q_RHQK.squeeze(0), keys)
        return torch.bmm(scores.softmax(-1), values).transpose(0, 1).reshape(queries, heads * width)
    scores = torch.bmm(q_RHQK.reshape(rows * groups, heads // groups * queries, width), keys)
    for bias in biases:
        scores.view(rows, heads, queries, -1).add_(bias)
    mixed = torch.bmm(scores.softmax(-1), values)
    return mixed.view(rows, heads, queries, width).transpose(1, 2).reshape(rows * queries, heads * width)


class _Memory:
    """Keys and values (2, R, G, places, K), and how `_attend` reads those of the first rows."""

    def __init__(self, both: Tensor) -> None:
        self.both = both
        self.show(both.shape[1])

    def show(self, rows: int) -> None:
        """Chooses the rows that are seen."""
        self.seen = self.both[:, :rows]
        keys, self.values = self.seen.flatten(1, 2).unbind(0)
        self.rows, self.keys = rows, keys.mT

    def move(self, rows: Tensor, places: Tensor) -> None:
        """Copies rows over others, in place."""
        self.both[:, places] = self.both[:, rows]


class OwnAttention:
    """Self-attention of one block. Each call appends Q places to every row of its cache."""

    def __init__(self, parts: OwnParts, places: int) -> None:
        """``places`` is how many the cache has at first."""
        self.attention = parts.attention
        self._qkv, self._out, self._is_scaled = parts.qkv, parts.out, parts.is_scaled
        self._places = places
        self._memory: _Memory | None = None

    def __call__(self, x_ND: Tensor, rows: int, start: int, biases: Sequence[Tensor], rotary: Rotary | None) -> Tensor:
        """Attends from N = R Q new queries to all places, their own included, and returns (N, D).

        ``start`` is the number of places before. ``rotary`` holds cosines and sines of the new positions, which
        broadcast to (R, Q, heads, K).
        """
        queries = x_ND.shape[0] // rows
        end = start + queries
        q_RHQK, kv = self._projected(x_ND, rows, queries, rotary)
        memory = self._memory
        if memory is None or memory.both.shape[3] < end:
            memory = self._grown(end, kv)
        if memory.rows != rows:
            memory.show(rows)
        memory.seen.narrow(3, start, queries).copy_(kv)
        keys, values = memory.keys.narrow(2, 0, end), memory.values.narrow(1, 0, end)
        return self._out(_attend(q_RHQK, keys, values, self.attention.kv_heads, biases))

    def _projected(self, x_ND: Tensor, rows: int, queries: int, rotary: Rotary | None) -> tuple[Tensor, Tensor]:
        """Queries (R, H, Q, K), scaled, and keys and values (2, R, G, Q, K)."""
        attention = self.attention
        heads, groups, width = attention.heads, attention.kv_heads, attention.head_width
        if self._qkv is not None:
            q, kv = torch.split_with_sizes(self._qkv(x_ND), (heads * width, 2 * groups * width), 1)
            q_RQHK, kv_RQ2GK = q.view(rows, queries, heads, width), kv.view(rows, queries, 2, groups, width)
            if rotary is None and attention.q_norm is None:
                return q_RQHK.transpose(1, 2), kv_RQ2GK.permute(2, 0, 3, 1, 4)
            k_RQGK, v_RQGK = kv_RQ2GK.unbind(2)
        else:
            q_RQHK = attention.q(x_ND).view(rows, queries, heads, width)
            k_RQGK, v_RQGK = (layer(x_ND).view(rows, queries, groups, width) for layer in (attention.k, attention.v))
        if attention.q_norm is not None and attention.k_norm is not None:
            q_RQHK, k_RQGK = attention.q_norm(q_RQHK), attention.k_norm(k_RQGK)
        if rotary is not None:
            q_RQHK, k_RQGK = rotate(torch.cat([q_RQHK, k_RQGK], 2), *rotary).split([heads, groups], 2)
        if self._qkv is None or not self._is_scaled:
            q_RQHK = q_RQHK * width**-0.5
        return q_RQHK.transpose(1, 2), torch.stack([k_RQGK, v_RQGK]).transpose(2, 3)

    def _grown(self, end: int, like: Tensor) -> _Memory:
        """The cache with memory for ``end`` places; it grows by doubling."""
        old = None if self._memory is None else self._memory.both
        most = max(end, self._places if old is None else 2 * old.shape[3])
        both = like.new_empty(*like.shape[:3], most, like.shape[4])
        if old is not None:
            both[:, :, :, : old.shape[3]] = old[:, : both.shape[1]]
        self._memory = _Memory(both)
        return self._memory

    def select(self, rows: Tensor) -> None:
        """Keeps these rows, in this order."""
        if self._memory is not None:
            self._memory = _Memory(self._memory.both.index_select(1, rows))

    def move(self, rows: Tensor, places: Tensor) -> None:
        """Copies rows over others, in place."""
        if self._memory is not None:
            self._memory.move(rows, places)


class CrossAttention:
    """Attention of one block to the source, whose keys and values are projected once."""

    def __init__(self, parts: CrossParts, source: Tensor) -> None:
        """``source`` holds keys, scaled, and values, (2, B, G, S, K)."""
        self._attention, self._q, self._out = parts.attention, parts.q, parts.out
        self._memory = _Memory(source)

    def __call__(self, x_ND: Tensor, onto_ND: Tensor, sentences: int, biases: Sequence[Tensor]) -> Tensor:
        """Adds what the hypotheses of each sentence attend to in its source; returns (N, D)."""
        attention, memory = self._attention, self._memory
        if memory.rows != sentences:
            memory.show(sentences)
        q_BQHK = self._q(x_ND).view(sentences, -1, attention.heads, attention.head_width)
        if attention.q_norm is not None:
            q_BQHK = attention.q_norm(q_BQHK)
        found = _attend(q_BQHK.transpose(1, 2), memory.keys, memory.values, attention.kv_heads, biases)
        return onto_ND + self._out(found)

    def move(self, rows: Tensor, places: Tensor) -> None:
        """Copies sentences over others, in place."""
        self._memory.move(rows, places)


class FoldedCross:
    """`CrossAttention` to one sentence, with the projections of queries and outputs folded into its keys and values.

    The scores of all heads are then one product of the hypotheses, and the output is another.
    """

    def __init__(self, parts: CrossParts, source: Tensor, bias_11S: Tensor | None) -> None:
        """``source`` holds keys, scaled, and values, (2, 1, G, S, K); ``bias`` is added to the scores."""
        attention, folds = parts.attention, parts.folds
        assert folds is not None
        heads, length = attention.heads, source.shape[3]
        if attention.kv_heads < heads:
            source = source.repeat_interleave(heads // attention.kv_heads, 2)
        both = source.view(2 * heads, length, attention.head_width)
        folded = torch.bmm(both, folds).view(2, heads * length, -1)
        self._shape = (-1, heads, length)
        self._keys, self._values = folded[0].t(), folded[1]
        if parts.out_bias is not None:  # the weights of each head sum to 1
            self._values += parts.out_bias / heads
        offset_H1S = None if parts.q_bias is None else torch.bmm(both[:heads], parts.q_bias).mT
        if bias_11S is not None:
            offset_H1S = bias_11S.expand(heads, -1, -1) if offset_H1S is None else offset_H1S + bias_11S
        self._offset = None if offset_H1S is None else offset_H1S.reshape(-1)

    def __call__(self, x_ND: Tensor, onto_ND: Tensor, sentences: int, biases: Sequence[Tensor]) -> Tensor:
        """As `CrossAttention`; ``biases`` are folded in already."""
        if self._offset is None:
            scores = torch.mm(x_ND, self._keys)
        else:
            scores = torch.addmm(self._offset, x_ND, self._keys)
        weights = scores.view(self._shape).softmax(-1).view_as(scores)
        return torch.addmm(onto_ND, weights, self._values)

    def move(self, rows: Tensor, places: Tensor) -> None:
        """Nothing moves: there is one sentence."""


def cross_attention(parts: CrossParts, source: Tensor, bias_B11S: Tensor | None) -> CrossAttention | FoldedCross:
    """The cheaper of the two for keys, scaled, and values (2, B, G, S, K), and the bias of the scores."""
    scores = parts.attention.heads * source.shape[3]
    if source.shape[1] == 1 and parts.folds is not None and scores <= _MOST_SCORES * parts.width:
        return FoldedCross(parts, source, None if bias_B11S is None else bias_B11S[0])
    return CrossAttention(parts, source)
