"""Floating-point operations of a model, counted from its shapes (a multiply-add is two)."""

from __future__ import annotations

from tfx.model.architecture import Architecture


def forward_flops(architecture: Architecture, rows: int, source_length: int, target_length: int) -> float:
    """FLOPs of the matrix products of one teacher-forced forward pass, padding included.

    Attention scores and their product with the values are counted over the full rectangle, as they are
    computed; softmax, norms and embeddings are left out. A training step costs three times as much.
    """
    width, head = architecture.width, architecture.head_width
    projections = 3 if architecture.activation == "swiglu" else 2

    def attention(heads: int, kv_heads: int, queries: int, keys: int) -> float:
        linear = 2 * width * heads * head * queries + 2 * width * kv_heads * head * keys
        return 2.0 * linear + 4.0 * heads * head * queries * keys

    total = 0.0
    for shape in architecture.encoder:
        total += attention(shape.heads, shape.kv_heads, source_length, source_length)
        total += 2.0 * projections * width * shape.ffn * source_length
    for shape in architecture.decoder:
        total += attention(shape.heads, shape.kv_heads, target_length, target_length)
        if shape.cross_heads:
            total += attention(shape.cross_heads, shape.cross_kv_heads, target_length, source_length)
        total += 2.0 * projections * width * shape.ffn * target_length
    total += 2.0 * width * architecture.vocab_size * target_length
    return total * rows
