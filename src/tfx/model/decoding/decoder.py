"""A model that is run step by step over one batch, with the keys and values of what it has read.

Shapes: B sentences, K hypotheses of each, N = B K, R rows of the caches, Q new queries of a row, P places of a cache, D
model width, S source positions.
"""

from __future__ import annotations

import torch
from torch import Tensor

from tfx.model.decoding.caches import CrossAttention, OwnAttention, Rotary
from tfx.model.layers import Block
from tfx.model.positions import alibi_bias, relative_buckets
from tfx.model.transformer import Transformer

# The most hypotheses that share one row of a cache. Each sees the places of its ancestors through a mask, so nothing
# is copied when hypotheses are reordered, but scores are computed for the places of all.
MOST_SHARING = 16
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
        blocks: list[Block] = list(model.decoder.blocks)  # type: ignore[arg-type]
        self._own = [OwnAttention(block.attention) for block in blocks]
        self._cross = [
            CrossAttention(block.cross, memory_BSD) if block.cross is not None and memory_BSD is not None else None
            for block in blocks
        ]
        self._blocks = list(zip(blocks, self._own, self._cross, strict=True))
        weight = model.embedding.weight
        self.device, self._dtype = weight.device, weight.dtype
        self._source_bias_B111S: Tensor | None = None
        if source_mask_BS is not None and memory_BSD is not None:
            self._source_bias_B111S = self._hiding(~source_mask_BS)[:, None, None, None]
        # Which places a hypothesis sees, as a bias, (B, K, places K): of each position that of its own ancestor.
        self._ancestors_BKP: Tensor | None = None
        # The first place of each row that holds a token; None: all are 0.
        self._first_R: Tensor | None = None

    # --- steps ----------------------------------------------------------------------------------------

    def step(self, token_N: Tensor) -> Tensor:
        """Appends a token to every hypothesis; returns the hidden states (N, D) behind it."""
        places = slice(self.length, self.length + 1)
        if self._first_R is None:
            x_N1D = self.model.embed(token_N.unsqueeze(1), self.model.embedding, places)
            rotary = self._angles(places)
        else:
            position_N1 = (self.length - self._first_R).unsqueeze(1)
            x_N1D = self.model.embed(token_N.unsqueeze(1), self.model.embedding, position_N1)
            rotary = self._angles(position_N1)
        hidden_ND = self._run(x_N1D.squeeze(1), 1, rotary, self._visible_to_step())
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
            bias = self._hiding(hidden_RQP)[:, None, None]
            x_ND = self.model.embed(token_RQ, self.model.embedding, places).flatten(0, 1)
            hidden_ND = self._run(x_ND, length, self._angles(places), (bias,))
            self.length = end
        return hidden_ND.view(rows, -1, hidden_ND.shape[1])[:, -1]

    def _run(self, x_ND: Tensor, queries: int, rotary: Rotary | None, visible: tuple[Tensor, ...]) -> Tensor:
        rows = self.sentences * (self.hypotheses // self._sharing)
        start = self.length * self._sharing
        cross_biases = () if self._source_bias_B111S is None else (self._source_bias_B111S,)
        buckets_QP = distance_QP = None
        if self.model.architecture.positions in ("alibi", "relative"):
            distance_QP = self._distances(queries)
            if self.model.architecture.positions == "relative":
                buckets_QP = relative_buckets(distance_QP, self.model.architecture, is_causal=True)
        for block, own, cross in self._blocks:
            biases = visible
            if distance_QP is not None:
                biases = (*visible, _by_head(own, distance_QP, buckets_QP))
            pre = block.pre
            mixed = own(block.attention_norm(x_ND) if pre else x_ND, rows, start, biases, rotary)
            x_ND = x_ND + mixed if pre else block.attention_norm(x_ND + mixed)
            if cross is not None and block.cross_norm is not None:
                mixed = cross(block.cross_norm(x_ND) if pre else x_ND, self.sentences, cross_biases)
                x_ND = x_ND + mixed if pre else block.cross_norm(x_ND + mixed)
            mixed = block.ffn(block.ffn_norm(x_ND) if pre else x_ND)
            x_ND = x_ND + mixed if pre else block.ffn_norm(x_ND + mixed)
        return self.model.decoder.norm(x_ND)  # type: ignore[no-any-return]

    # --- what a position sees -------------------------------------------------------------------------

    def _visible_to_step(self) -> tuple[Tensor, ...]:
        """The biases that hide places from the queries of a step."""
        if self._first_R is not None:
            place_P = torch.arange(self.length + 1, device=self.device)
            return (self._hiding(place_P < self._first_R.unsqueeze(1))[:, None, None, None],)
        if self._sharing == 1:
            return ()
        end = (self.length + 1) * self._sharing
        seen = self._ancestors_BKP
        if seen is None or seen.shape[2] < end:
            room = max(32 * self._sharing, 2 * (0 if seen is None else seen.shape[2]))
            self._ancestors_BKP = torch.full(
                (self.sentences, self.hypotheses, room), -torch.inf, dtype=self._dtype, device=self.device
            )
            if seen is not None:
                self._ancestors_BKP[:, :, : seen.shape[2]] = seen
            seen = self._ancestors_BKP
        seen[:, :, end - self._sharing : end].diagonal(dim1=1, dim2=2).zero_()
        return (seen[:, None, None, :, :end],)

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
            for own in self._own:
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
            for cross in self._cross:
                if cross is not None:
                    cross.move(moved_b, gap_b)
            if self._source_bias_B111S is not None:
                self._source_bias_B111S[gap_b] = self._source_bias_B111S[moved_b]
            per_sentence = self.hypotheses // self._sharing
            gap_r, moved_r = (_rows_of(b, per_sentence) for b in (gap_b, moved_b))
            for own in self._own:
                own.move(moved_r, gap_r)
            if self._ancestors_BKP is not None:
                self._ancestors_BKP[gap_b] = self._ancestors_BKP[moved_b]
            if self._first_R is not None:
                self._first_R[gap_b] = self._first_R[moved_b]
        self.sentences = count
        if self._source_bias_B111S is not None:
            self._source_bias_B111S = self._source_bias_B111S[:count]
        if self._ancestors_BKP is not None:
            self._ancestors_BKP = self._ancestors_BKP[:count]
        if self._first_R is not None:
            self._first_R = self._first_R[:count]
        return order_B


def _rows_of(sentences_b: Tensor, each: int) -> Tensor:
    if each == 1:
        return sentences_b
    return (sentences_b.unsqueeze(1) * each + torch.arange(each, device=sentences_b.device)).flatten()


def _by_head(own: OwnAttention, distance_QP: Tensor, bucket_QP: Tensor | None) -> Tensor:
    """The bias of ALiBi or of relative positions, (G, J, Q, P)."""
    attention = own.attention
    if bucket_QP is not None and attention.relative_bias is not None:
        bias_HQP = attention.relative_bias[bucket_QP].permute(2, 0, 1)
    else:
        assert attention.slopes is not None
        bias_HQP = alibi_bias(attention.slopes, distance_QP)[0]
    return bias_HQP.view(attention.kv_heads, -1, *bias_HQP.shape[1:])
