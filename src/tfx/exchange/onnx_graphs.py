"""A model as the functions that an ONNX file holds: caches come in and go out, and all sizes but widths are free.

Attention is written out, because its lengths, the offset of the first position among them, are inputs here.

Shapes: B rows, T new positions, P positions in the cache, S source positions, H query heads, G key/value heads, K head
width, V vocabulary.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from tfx.model.attention import Attention
from tfx.model.layers import Block
from tfx.model.positions import alibi_bias, distances, relative_buckets, rotate
from tfx.model.transformer import Transformer

Rotary = tuple[Tensor, Tensor] | None


class Encoder(nn.Module):
    """``input_ids`` and ``attention_mask`` (B, S) to hidden states (B, S, D).

    With ``projects``, to the keys and values (B, G, S, K) of each block of the decoder instead, in turn: a decoder
    reads nothing else of a source, and each step would project it anew.
    """

    def __init__(self, model: Transformer, *, projects: bool) -> None:
        super().__init__()
        self.model, self.projects = model, projects

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> tuple[Tensor, ...]:
        memory_BSD = _encode(self.model, input_ids, attention_mask, None)
        if not self.projects:
            return (memory_BSD,)
        found: list[Tensor] = []
        for block in self.model.decoder.blocks:
            if isinstance(block.cross, Attention):
                found += _keys_and_values(block.cross, memory_BSD, None)
        return tuple(found)


class Classifier(nn.Module):
    """``input_ids`` and ``attention_mask`` (B, S) to ``logits`` (B, C) of labels, or a number (B, 1) in its own unit.

    ``token_type_ids`` (B, S) are 1 on the second text of a pair, None for models of single texts.
    """

    def __init__(self, model: Transformer) -> None:
        super().__init__()
        self.model = model

    def forward(
        self, input_ids: Tensor, attention_mask: Tensor, token_type_ids: Tensor | None = None
    ) -> tuple[Tensor, ...]:
        model, outputs = self.model, self.model.architecture.outputs
        assert model.pooling is not None
        assert outputs is not None
        states_BSD = _encode(model, input_ids, attention_mask, token_type_ids)
        found_BC = model.project(model.pooling(states_BSD, attention_mask != 0))
        return (found_BC * outputs.scale + outputs.offset if outputs.predicts == "number" else found_BC,)


class Decoder(nn.Module):
    """New tokens ``input_ids`` (B, T) to logits (B, T, V), then the cache of each block, longer by them.

    ``mask`` is 1 on what may be seen: of an encoder-decoder the source (B, S), else what the cache and the new tokens
    hold (B, P + T), where ``position_ids`` (B, T) say where a text stands whose row begins with padding. ``past`` are
    keys and values (B, G, P, K) of each block in turn, and ``source`` those of the `Encoder`.
    """

    def __init__(self, model: Transformer) -> None:
        super().__init__()
        self.model = model

    def forward(
        self,
        input_ids: Tensor,
        mask: Tensor,
        position_ids: Tensor | None,
        past: list[Tensor],
        source: list[Tensor],
    ) -> tuple[Tensor, ...]:
        model, length = self.model, input_ids.shape[1]
        before = past[0].shape[2] if past else 0
        keys = before + length
        visible_B11S = mask[:, None, None, :] != 0
        if position_ids is None:
            positions = torch.arange(before, keys, device=input_ids.device)
            own_visible = None
        else:
            positions, own_visible = position_ids, visible_B11S
        x_BTD = _embed(model, input_ids, model.embedding, positions)
        bias = _Bias(model, own_visible, length, keys, is_causal=True)
        rotary = _angles(model, positions)
        present: list[Tensor] = []
        crossing = iter(source)
        for index, block in enumerate(model.decoder.blocks):
            assert isinstance(block, Block)
            cross = (next(crossing), next(crossing), visible_B11S) if block.cross is not None else None
            x_BTD, *grown = _run_block(block, x_BTD, bias, rotary, (past[2 * index], past[2 * index + 1]), cross)
            present += grown
        return (model.project(model.decoder.norm(x_BTD)), *present)


class _Bias:
    """What self-attention adds to its scores: of each block its own, where its heads have slopes or tables."""

    def __init__(self, model: Transformer, visible: Tensor | None, queries: int, keys: int, *, is_causal: bool) -> None:
        self._distance_TS = distances(queries, keys, keys - queries, model.embedding.weight.device)
        self._bucket_TS = None
        if model.architecture.positions == "relative":
            self._bucket_TS = relative_buckets(self._distance_TS, model.architecture, is_causal=is_causal)
        if is_causal:
            earlier_TS = self._distance_TS <= 0
            visible = earlier_TS if visible is None else visible & earlier_TS
        assert visible is not None
        self._hidden = _hidden(visible)

    def of(self, attention: Attention) -> Tensor:
        """Broadcasts to (B, H, T, S)."""
        if attention.slopes is not None:
            return self._hidden + alibi_bias(attention.slopes, self._distance_TS)
        if self._bucket_TS is not None and attention.relative_bias is not None:
            return self._hidden + attention.relative_bias[self._bucket_TS].permute(2, 0, 1).unsqueeze(0)
        return self._hidden


def _hidden(visible: Tensor) -> Tensor:
    """0 where something is visible. Elsewhere a number, not infinity, which would make a row that sees nothing NaN."""
    return torch.where(visible, 0.0, -1e9)


def _encode(model: Transformer, input_ids: Tensor, attention_mask: Tensor, types: Tensor | None) -> Tensor:
    """The states (B, S, D) behind the last block; ``types`` are those of the tokens, None if all are 0."""
    assert model.encoder is not None
    length = input_ids.shape[1]
    visible_B11S = attention_mask[:, None, None, :] != 0
    positions_S = torch.arange(length, device=input_ids.device)
    x_BSD = _embed(model, input_ids, model.source_embedding, positions_S, types)
    if model.convolution is not None:
        x_BSD = model.convolution(x_BSD, attention_mask != 0)
    bias = _Bias(model, visible_B11S, length, length, is_causal=False)
    rotary = _angles(model, positions_S)
    for block in model.encoder.blocks:
        assert isinstance(block, Block)
        x_BSD = _run_block(block, x_BSD, bias, rotary, None, None)[0]
    return model.encoder.norm(x_BSD)


def _embed(
    model: Transformer, tokens: Tensor, table: nn.Embedding, positions: Tensor, types: Tensor | None = None
) -> Tensor:
    x_BTD = table(tokens) * model.embedding_scale
    if model.sinusoids is not None:
        x_BTD = x_BTD + model.sinusoids[positions]
    elif model.position is not None:
        x_BTD = x_BTD + model.position(positions) * model.embedding_scale
    if model.token_type is not None:
        kinds = model.token_type.weight[0] if types is None else model.token_type(types)
        x_BTD = x_BTD + kinds * model.embedding_scale
    return x_BTD if model.embedding_norm is None else model.embedding_norm(x_BTD)


def _angles(model: Transformer, positions: Tensor) -> Rotary:
    """Cosines and sines of positions (T,), or of each row's own (B, 1, T, K)."""
    if model.rotary_cos is None or model.rotary_sin is None:
        return None
    found = model.rotary_cos[positions], model.rotary_sin[positions]
    return found if positions.dim() == 1 else (found[0].unsqueeze(1), found[1].unsqueeze(1))


def _run_block(
    block: Block,
    x_BTD: Tensor,
    bias: _Bias,
    rotary: Rotary,
    past: tuple[Tensor, Tensor] | None,
    cross: tuple[Tensor, Tensor, Tensor] | None,
) -> list[Tensor]:
    """The output, and the keys and values of self-attention, those of ``past`` before them."""
    inner = block.attention_norm(x_BTD) if block.pre else x_BTD
    keys, values = _keys_and_values(block.attention, inner, rotary)
    if past is not None:
        keys, values = torch.cat([past[0], keys], 2), torch.cat([past[1], values], 2)
    x_BTD = x_BTD + _attend(block.attention, inner, rotary, keys, values, bias.of(block.attention))
    if not block.pre:
        x_BTD = block.attention_norm(x_BTD)
    if cross is not None and block.cross is not None and block.cross_norm is not None:
        inner = block.cross_norm(x_BTD) if block.pre else x_BTD
        x_BTD = x_BTD + _attend(block.cross, inner, None, cross[0], cross[1], _hidden(cross[2]))
        if not block.pre:
            x_BTD = block.cross_norm(x_BTD)
    x_BTD = x_BTD + block.ffn(block.ffn_norm(x_BTD) if block.pre else x_BTD)
    return [x_BTD if block.pre else block.ffn_norm(x_BTD), keys, values]


def _keys_and_values(attention: Attention, x_BSD: Tensor, rotary: Rotary) -> tuple[Tensor, Tensor]:
    keys = _by_head(attention.k(x_BSD), attention.kv_heads, attention.k_norm)
    values = _by_head(attention.v(x_BSD), attention.kv_heads, None)
    return (keys if rotary is None else rotate(keys, *rotary)), values


def _attend(attention: Attention, x_BTD: Tensor, rotary: Rotary, keys: Tensor, values: Tensor, added: Tensor) -> Tensor:
    queries = _by_head(attention.q(x_BTD), attention.heads, attention.q_norm)
    if rotary is not None:
        queries = rotate(queries, *rotary)
    if (group := attention.heads // attention.kv_heads) > 1:
        keys, values = keys.repeat_interleave(group, 1), values.repeat_interleave(group, 1)
    scores = queries @ keys.transpose(2, 3) * (1.0 / math.sqrt(attention.head_width)) + added
    out = scores.softmax(-1) @ values
    return attention.o(out.transpose(1, 2).flatten(2))


def _by_head(x_BTE: Tensor, heads: int, norm: nn.Module | None) -> Tensor:
    x_BTHK = x_BTE.unflatten(2, (heads, -1))
    return (x_BTHK if norm is None else norm(x_BTHK)).transpose(1, 2)
