"""Floating-point operations of a model, counted from its shapes; a multiply-add counts as two."""

from __future__ import annotations

from tfx.model.architecture import Architecture, BlockShape
from tfx.model.convolution import HIDDEN
from tfx.model.decoding.decoder import MOST_SHARING


def forward_flops(architecture: Architecture, rows: int, source_length: int, target_length: int) -> float:
    """FLOPs of the matrix products in one teacher-forced forward pass, padding included.

    Attention scores and their product with the values count over the full rectangle, masked entries too,
    as they are computed. Softmax, norms and embeddings do not count. A training step costs three times as much.
    """
    attended = target_length * target_length
    decoder = _decoder_flops(architecture, target_length, attended, source_length)
    encoder = _encoder_flops(architecture, source_length) + _memory_flops(architecture, source_length)
    return rows * (encoder + decoder + _label_flops(architecture))


def decoding_flops(architecture: Architecture, source_length: int, target_length: int, hypotheses: int) -> float:
    """FLOPs of the matrix products in decoding one source with caches: ``target_length`` steps of all hypotheses.

    Hypotheses that share their keys have scores for those of all, most of them masked. So it is among other sources; a
    source alone takes more products, in fewer calls, and one of less than 16 tokens is padded.
    """
    sharing = hypotheses if hypotheses <= MOST_SHARING else 1
    attended = sharing * target_length * (target_length + 1) // 2
    once = _encoder_flops(architecture, source_length) + _memory_flops(architecture, source_length)
    return once + hypotheses * _decoder_flops(architecture, target_length, attended, source_length)


def _encoder_flops(architecture: Architecture, length: int) -> float:
    width, head = architecture.width, architecture.head_width
    total = 0.0
    if architecture.convolution:
        inputs = (_projections(architecture) - 1) * architecture.convolution
        total += 2.0 * (inputs + 1) * width * HIDDEN * width * length
    for shape in architecture.passes * architecture.encoder:
        total += 4.0 * width * (shape.heads + shape.kv_heads) * head * length
        total += 4.0 * shape.heads * head * length * length
        total += 2.0 * _projections(architecture) * width * shape.ffn * length
        total -= _saved(architecture, shape, length, of_memory=False)
    return total


def _memory_flops(architecture: Architecture, source_length: int) -> float:
    """The keys and values that every decoder layer computes from the encoder's output."""
    width, head = architecture.width, architecture.head_width
    return sum(
        4.0 * width * shape.cross_kv_heads * head * source_length
        - _saved(architecture, shape, source_length, of_memory=True)
        for shape in architecture.passes * architecture.decoder
    )


def _label_flops(architecture: Architecture) -> float:
    """What stands between the encoder of a classifier and its labels, once a text."""
    if architecture.outputs is None:
        return 0.0
    width = architecture.width
    heads = 1 + len(architecture.exits)
    return 2.0 * width * (architecture.outputs.count + width * architecture.pooler) * heads


def _decoder_flops(architecture: Architecture, length: int, attended: int, source_length: int) -> float:
    """``attended`` is the number of (query, key) pairs of self-attention."""
    width, head = architecture.width, architecture.head_width
    total = 2.0 * width * architecture.vocab_size * length
    for shape in architecture.passes * architecture.decoder:
        total += 4.0 * width * (shape.heads + shape.kv_heads) * head * length + 4.0 * shape.heads * head * attended
        total += 4.0 * shape.cross_heads * head * (width * length + length * source_length)
        total += 2.0 * _projections(architecture) * width * shape.ffn * length
        total -= _saved(architecture, shape, length, of_memory=False)
    return total


def _saved(architecture: Architecture, shape: BlockShape, length: int, *, of_memory: bool) -> float:
    """What matrices that are products of two save at ``length`` positions: those of the memory, or all others."""
    sizes = architecture.matrices(shape)
    return sum(
        2.0 * length * (sizes[name][0] * sizes[name][1] - rank * sum(sizes[name]))
        for name, rank in shape.ranks
        if (name in ("cross.k", "cross.v")) == of_memory
    )


def _projections(architecture: Architecture) -> int:
    return 3 if architecture.is_gated else 2
