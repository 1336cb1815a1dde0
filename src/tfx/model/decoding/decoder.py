"""A model that is run step by step over one batch, with the keys and values of what it has read.

Shapes: B sentences, K hypotheses of each, N = B K, R rows of the caches, Q new queries of a row, P places of a cache, D
model width, S source positions.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from tfx.model.attention import Attention
from tfx.model.decoding.caches import CrossAttention, FoldedCross, OwnAttention, Rotary, cross_attention
from tfx.model.decoding.prepared import BlockParts, prepared
from tfx.model.positions import alibi_bias, relative_buckets
from tfx.model.transformer import Transformer

# The most hypotheses that share one row of a cache. Each sees the places of its ancestors through a mask, so nothing
# is copied when hypotheses are reordered, but scores are computed for the places of all.
MOST_SHARING = 16
# Positions that memory is taken for at first.
_FIRST_POSITIONS = 32
# The floats of a processor's vector: over fewer source positions torch's softmax takes ten times as long.
_LEAST_POSITIONS = 16
# Tokens of each prompt that are read at once: scores of all at once would be the largest tensor.
_READ_AT_ONCE = 256


class Decoder:
    """The decoder of a model with its state after some steps of one batch.

    Made once for a batch: it projects the source for every block. A step computes one position of every hypothesis;
    ``reorder`` says which hypotheses go on, ``keep`` which sentences. The weights are read through the modules of the
    model, so layers on other kernels and pruned heads work as they are. For inference only.
    """

    def __init__(
        self,
        model: Transformer,
        sentences: int,
        hypotheses: int = 1,
        memory_BSD: Tensor | None = None,
        source_mask_BS: Tensor | None = None,
    ) -> None:
        """``source_mask`` is True on real tokens, None if all are real; a language model has no memory."""
        self.model = model
        self.sentences, self.hypotheses = sentences, hypotheses
        self._sharing = hypotheses if hypotheses <= MOST_SHARING else 1
        self.length = 0
        self._parts = prepared(model)
        weight = model.embedding.weight
        self.device, self._dtype = weight.device, weight.dtype
        if memory_BSD is not None and self.is_near and memory_BSD.shape[1] < _LEAST_POSITIONS:
            memory_BSD, source_mask_BS = _widened(memory_BSD, source_mask_BS)
        self._source_bias_B11S: Tensor | None = None
        if source_mask_BS is not None and memory_BSD is not None:
            self._source_bias_B11S = self._hiding(~source_mask_BS)[:, None, None]
        # A block that runs several times has keys and values of its own for each; those of the source are the same.
        passes = model.architecture.passes
        sources = iter([] if memory_BSD is None else self._parts.source(memory_BSD) * passes)
        self._blocks: list[tuple[BlockParts, OwnAttention, CrossAttention | FoldedCross | None]] = []
        for parts in self._parts.blocks * passes:
            own = OwnAttention(parts.own, _FIRST_POSITIONS * self._sharing)
            cross = None
            if parts.cross is not None and memory_BSD is not None:
                cross = cross_attention(parts.cross, next(sources), self._source_bias_B11S)
            self._blocks.append((parts, own, cross))
        # Which places a hypothesis sees, as a bias, (B, K, places K): of each position that of its own ancestor.
        self._ancestors_BKP: Tensor | None = None
        # The first place of each row that holds a token; None: all are 0.
        self._first_R: Tensor | None = None

    @property
    def is_near(self) -> bool:
        """Whether the host can look at results without waiting for a device."""
        return self.device.type == "cpu"

    # --- steps ----------------------------------------------------------------------------------------

    def step(self, token_N: Tensor) -> Tensor:
        """Appends a token to every hypothesis; returns the hidden states (N, D) behind it."""
        place: slice | Tensor = slice(self.length, self.length + 1)
        angles = self._angles(place)
        if self._first_R is not None:
            place = self.length - self._first_R
            angles = self._angles(place.unsqueeze(1))
        hidden_ND = self._run(self._parts.embed(token_N, place), 1, angles, self._visible_to_step())
        self.length += 1
        return hidden_ND

    def read(self, token_RT: Tensor, first_R: Tensor | None = None) -> Tensor:
        """Reads the prompts of a batch without hypotheses; returns the hidden states (R, D) behind them.

        A shorter prompt is padded on its left: ``first`` is the place of its first token.
        """
        self._first_R = first_R
        rows = token_RT.shape[0]
        hidden_ND = token_RT.new_empty(0)
        for token_RQ in token_RT.split(_READ_AT_ONCE, 1):
            length, end = token_RQ.shape[1], self.length + token_RQ.shape[1]
            place_P = torch.arange(end, device=self.device)
            query_Q1 = place_P[self.length :].unsqueeze(1)
            hidden_RQP = (place_P > query_Q1).unsqueeze(0)
            places: slice | Tensor = slice(self.length, end)
            if first_R is not None:
                places = (place_P[self.length :] - first_R.unsqueeze(1)).clamp(min=0)
                # What is before a prompt sees itself, for a softmax over nothing is not a number.
                hidden_RQP = hidden_RQP | ((place_P < first_R.view(-1, 1, 1)) & (place_P != query_Q1))
            bias = self._hiding(hidden_RQP)[:, None]
            x_ND = self._parts.embed(token_RQ, places).flatten(0, 1)
            hidden_ND = self._run(x_ND, length, self._angles(places), (bias,))
            self.length = end
        return hidden_ND.view(rows, -1, hidden_ND.shape[1])[:, -1]

    def _run(self, x_ND: Tensor, queries: int, rotary: Rotary | None, visible: tuple[Tensor, ...]) -> Tensor:
        rows = self.sentences * (self.hypotheses // self._sharing)
        start = self.length * self._sharing
        cross_biases = () if self._source_bias_B11S is None else (self._source_bias_B11S,)
        buckets_QP = distance_QP = None
        if self.model.architecture.positions in ("alibi", "relative"):
            distance_QP = self._distances(queries)
            if self.model.architecture.positions == "relative":
                buckets_QP = relative_buckets(distance_QP, self.model.architecture, is_causal=True)
        for parts, own, cross in self._blocks:
            biases = visible
            if distance_QP is not None:
                biases = (*visible, _by_head(own.attention, distance_QP, buckets_QP))
            if parts.pre:
                x_ND = x_ND + own(parts.own_norm(x_ND), rows, start, biases, rotary)
                if cross is not None:
                    x_ND = cross(parts.cross_norm(x_ND), x_ND, self.sentences, cross_biases)
                x_ND = x_ND + parts.feed_forward(parts.ffn_norm(x_ND))
            else:
                x_ND = parts.own_norm(x_ND + own(x_ND, rows, start, biases, rotary))
                if cross is not None:
                    x_ND = parts.cross_norm(cross(x_ND, x_ND, self.sentences, cross_biases))
                x_ND = parts.ffn_norm(x_ND + parts.feed_forward(x_ND))
        return self._parts.norm(x_ND)

    def logits(self, hidden_ND: Tensor) -> Tensor:
        """The logits (N, V) of hidden states, in fp32 and in memory of their own."""
        return self._parts.project(hidden_ND).float()

    # --- what a position sees -------------------------------------------------------------------------

    def _visible_to_step(self) -> tuple[Tensor, ...]:
        """The biases that hide places from the queries of a step."""
        if self._first_R is not None:
            place_P = torch.arange(self.length + 1, device=self.device)
            return (self._hiding(place_P < self._first_R.unsqueeze(1))[:, None, None],)
        if self._sharing == 1:
            return ()
        end = (self.length + 1) * self._sharing
        seen = self._ancestors_BKP
        if seen is None or seen.shape[2] < end:
            room = max(_FIRST_POSITIONS * self._sharing, 2 * (0 if seen is None else seen.shape[2]))
            self._ancestors_BKP = torch.full(
                (self.sentences, self.hypotheses, room), -torch.inf, dtype=self._dtype, device=self.device
            )
            if seen is not None:
                self._ancestors_BKP[:, :, : seen.shape[2]] = seen
            seen = self._ancestors_BKP
        seen[:, :, end - self._sharing : end].diagonal(dim1=1, dim2=2).zero_()
        return (seen[:, None, :, :end],)

    def _distances(self, queries: int) -> Tensor:
        """The position of each place minus that of each query, (Q, P); one row if the queries are hypotheses."""
        key_P = torch.arange(self.length + queries, device=self.device)
        if self._sharing > 1:
            key_P = key_P.repeat_interleave(self._sharing)
        query_Q1 = torch.arange(self.length, self.length + queries, device=self.device).unsqueeze(1)
        return key_P - query_Q1

    def _hiding(self, hidden: Tensor) -> Tensor:
        """A bias of minus infinity where ``hidden`` is True."""
        return torch.zeros(hidden.shape, dtype=self._dtype, device=self.device).masked_fill_(hidden, -torch.inf)

    def _angles(self, places: slice | Tensor) -> Rotary | None:
        cos, sin = self.model.rotary_cos, self.model.rotary_sin
        if cos is None or sin is None:
            return None
        return cos[places].unsqueeze(-2), sin[places].unsqueeze(-2)

    # --- which hypotheses and sentences go on ---------------------------------------------------------

    def reorder(self, parent_N: Tensor) -> None:
        """Hypothesis i of all goes on from hypothesis ``parent[i]``, which is one of the same sentence."""
        if self._sharing == 1:
            for _, own, _ in self._blocks:
                own.select(parent_N)
        elif self._ancestors_BKP is not None:
            flat = self._ancestors_BKP.flatten(0, 1)
            self._ancestors_BKP = flat.index_select(0, parent_N).view(-1, *self._ancestors_BKP.shape[1:])

    def keep(self, going: list[int]) -> Tensor:
        """Keeps these sentences, which are listed in rising order; returns the order that they have from now on.

        The last ones take the places of those that leave, so that no more than these are copied.
        """
        count = len(going)
        order = list(range(count))
        gaps = sorted(set(order).difference(going))
        for gap, sentence in zip(gaps, going[count - len(gaps) :], strict=True):
            order[gap] = sentence
        order_B = torch.tensor(order, device=self.device)
        if gaps:
            gap_b = torch.tensor(gaps, device=self.device)
            moved_b = order_B[gap_b]
            if self._source_bias_B11S is not None:
                self._source_bias_B11S[gap_b] = self._source_bias_B11S[moved_b]
            per_sentence = self.hypotheses // self._sharing
            gap_r, moved_r = (_rows_of(b, per_sentence) for b in (gap_b, moved_b))
            for _, own, cross in self._blocks:
                own.move(moved_r, gap_r)
                if cross is not None:
                    cross.move(moved_b, gap_b)
            if self._ancestors_BKP is not None:
                self._ancestors_BKP[gap_b] = self._ancestors_BKP[moved_b]
            if self._first_R is not None:
                self._first_R[gap_b] = self._first_R[moved_b]
        self.sentences = count
        if self._source_bias_B11S is not None:
            self._source_bias_B11S = self._source_bias_B11S[:count]
        if self._ancestors_BKP is not None:
            self._ancestors_BKP = self._ancestors_BKP[:count]
        if self._first_R is not None:
            self._first_R = self._first_R[:count]
        return order_B


def _widened(memory_BSD: Tensor, mask_BS: Tensor | None) -> tuple[Tensor, Tensor]:
    """A short source with positions that are hidden behind it."""
    sentences, length, _ = memory_BSD.shape
    more = _LEAST_POSITIONS - length
    if mask_BS is None:
        mask_BS = torch.ones(sentences, length, dtype=torch.bool, device=memory_BSD.device)
    return functional.pad(memory_BSD, (0, 0, 0, more)), functional.pad(mask_BS, (0, more))


def _rows_of(sentences_b: Tensor, each: int) -> Tensor:
    if each == 1:
        return sentences_b
    return (sentences_b.unsqueeze(1) * each + torch.arange(each, device=sentences_b.device)).flatten()


def _by_head(attention: Attention, distance_QP: Tensor, bucket_QP: Tensor | None) -> Tensor:
    """The bias of ALiBi or of relative positions, (1, H, Q, P)."""
    if bucket_QP is not None and attention.relative_bias is not None:
        return attention.relative_bias[bucket_QP].permute(2, 0, 1).unsqueeze(0)
    assert attention.slopes is not None
    return alibi_bias(attention.slopes, distance_QP)
