"""How the source of a decoding is read.

Shapes: B sentences, S source positions, D model width.
"""

from __future__ import annotations

from torch import Tensor

from tfx.model.decoding.caches import OwnAttention
from tfx.model.decoding.prepared import prepared
from tfx.model.transformer import Transformer

# Positions of a sentence up to which attention by two products is faster than torch's fused kernel.
_SHORT = 64


def read_source(model: Transformer, source_BS: Tensor, source_mask_BS: Tensor | None) -> Tensor:
    """As `Transformer.encode`, the memory (B, S, D): for a short sentence alone without the cost of calling modules."""
    sentences, length = source_BS.shape
    has_biases = source_mask_BS is not None or model.architecture.positions in ("alibi", "relative")
    if sentences > 1 or length > _SHORT or has_biases:
        return model.encode(source_BS, source_mask_BS)
    parts = prepared(model)
    x_SD = parts.embed(source_BS[0], slice(0, length), model.source_embedding)
    rotary = None
    if model.rotary_cos is not None and model.rotary_sin is not None:
        rotary = model.rotary_cos[:length].unsqueeze(-2), model.rotary_sin[:length].unsqueeze(-2)
    for block in parts.encoder:
        own = OwnAttention(block.own, length)
        if block.pre:
            x_SD = x_SD + own(block.own_norm(x_SD), 1, 0, (), rotary)
            x_SD = x_SD + block.feed_forward(block.ffn_norm(x_SD))
        else:
            x_SD = block.own_norm(x_SD + own(x_SD, 1, 0, (), rotary))
            x_SD = block.ffn_norm(x_SD + block.feed_forward(x_SD))
    return parts.encoder_norm(x_SD).unsqueeze(0)
