"""A model for CTranslate2, through its own specifications, which say more than the classes of `transformers`."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from tfx.compression.checkpoint import LoadedModel
from tfx.errors import UserError
from tfx.exchange.target import Ids, Reopened, Target, refuse
from tfx.model.architecture import GATED, Architecture, BlockShape
from tfx.model.device import sums_int8_exactly
from tfx.model.layers import Block, BlockStack
from tfx.model.positions import sinusoidal_table
from tfx.record.files import write_text

_ACTIVATIONS = {"relu": "RELU", "gelu": "GELU", "gelu_tanh": "GELUTanh", "silu": "SWISH"}
_SPECIFIC = ("heads", "kv_heads")


def check(architecture: Architecture) -> None:
    """Raises `UserError` for a model that CTranslate2 has no place for."""
    activation = GATED.get(architecture.activation, architecture.activation)
    if activation not in _ACTIVATIONS:
        raise refuse("CTranslate2", "activation", architecture.activation, "relu")
    if architecture.family == "encoder":
        raise UserError("CTranslate2: an encoder alone is exported to transformers")
    if architecture.outputs is not None:
        raise UserError("CTranslate2 has no classifiers: export it --to onnx")
    if architecture.positions == "alibi" and architecture.is_seq2seq:
        raise refuse("CTranslate2", "positions", "alibi", "rotary")
    if architecture.norm_position == "post" and not architecture.is_seq2seq:
        raise refuse("CTranslate2", "norm_position", "post", "pre")
    # It has one epsilon for all norms, and norms no queries and keys in the attention to a source.
    if architecture.qk_norm and (architecture.epsilon != 1e-6 or architecture.is_seq2seq):
        raise refuse("CTranslate2", "qk_norm", True, False)
    if architecture.token_types:
        raise refuse("CTranslate2", "token_types", architecture.token_types, 0)
    for stack in (architecture.encoder, architecture.decoder):
        if len({(shape.heads, shape.kv_heads, shape.cross_heads, shape.cross_kv_heads) for shape in stack}) > 1:
            raise UserError(
                "CTranslate2 has no model whose blocks differ in heads: export a model without pruned heads, or with "
                "the same number pruned in every block"
            )
    if any(shape.cross_heads and _heads(shape) != _heads(shape, "cross_") for shape in architecture.decoder):
        raise UserError("CTranslate2 has no model whose cross-attention has other numbers of heads than self-attention")


def _heads(shape: BlockShape, prefix: str = "") -> tuple[int, ...]:
    return tuple(getattr(shape, prefix + name) for name in _SPECIFIC)


def write(loaded: LoadedModel, folder: Path, kind: str) -> None:
    """Writes model.bin, config.json and the vocabulary, and the tokenizer beside them."""
    from ctranslate2.specs import transformer_spec

    model, tokenizer = loaded.model, loaded.tokenizer
    architecture = model.architecture
    decoder = _stack(architecture, architecture.decoder, model.decoder, is_decoder=True)
    _embed(decoder, decoder.embeddings, loaded, model.embedding.weight)
    _linear(decoder.projection, model.output)
    if architecture.is_seq2seq:
        assert model.encoder is not None
        encoder = _stack(architecture, architecture.encoder, model.encoder, is_decoder=False)
        _embed(encoder, encoder.embeddings[0], loaded, model.source_embedding.weight)
        spec = transformer_spec.TransformerSpec(encoder, decoder)
    else:
        spec = transformer_spec.TransformerDecoderModelSpec(decoder)
    tokens = vocabulary(loaded)
    if architecture.is_seq2seq:
        spec.register_source_vocabulary(tokens)
        spec.register_target_vocabulary(tokens)
        spec.config.decoder_start_token = tokens[tokenizer.bos]
        spec.config.add_source_eos = False
    else:
        spec.register_vocabulary(tokens)
    spec.config.bos_token, spec.config.eos_token = tokens[tokenizer.bos], tokens[tokenizer.eos]
    spec.config.unk_token = tokens[tokenizer.unk] if tokenizer.unk >= 0 else tokens[tokenizer.eos]
    spec.config.layer_norm_epsilon = architecture.epsilon
    spec.validate()
    spec.optimize(quantization=None if kind == "float32" else kind)
    spec.save(str(folder))
    write_text(folder / "tokenizer.json", tokenizer.to_json())


def vocabulary(loaded: LoadedModel) -> list[str]:
    """The spelling of each id of the model; ids that the tokenizer lacks have one that no token has."""
    tokenizer = loaded.tokenizer
    count = loaded.model.architecture.vocab_size
    known = [tokenizer.token(index) if index < tokenizer.vocab_size else "?" for index in range(count)]
    seen: set[str] = set()
    found = []
    for index, token in enumerate(known):
        name = token if token not in seen and (token != "?" or tokenizer.decode([index]) == "?") else f"<id {index}>"
        seen.add(name)
        found.append(name)
    return found


def _stack(architecture: Architecture, shapes: Sequence[BlockShape], stack: BlockStack, *, is_decoder: bool) -> Any:
    from ctranslate2.specs import attention_spec, common_spec, transformer_spec

    first = shapes[0]
    settings: dict[str, Any] = {
        "pre_norm": architecture.norm_position == "pre",
        "activation": common_spec.Activation[_ACTIVATIONS[GATED.get(architecture.activation, architecture.activation)]],
        "layernorm_embedding": architecture.embedding_norm,
        "relative_attention_bias": architecture.positions == "relative",
        "ffn_glu": architecture.is_gated,
        "rms_norm": architecture.norm == "rmsnorm",
        "num_heads_kv": first.kv_heads if first.kv_heads != first.heads else None,
        "head_dim": architecture.head_width,
        "qk_norm": architecture.qk_norm,
    }
    if architecture.positions == "rotary":
        scaling = {"none": None, "linear": "Linear", "llama3": "Llama3"}[architecture.rotary_scaling]
        settings |= {
            "rotary_dim": 0,
            "rotary_interleave": False,
            "rotary_base": architecture.rotary_base,
            "rotary_scaling_type": None if scaling is None else attention_spec.RotaryScalingType[scaling],
            "rotary_scaling_factor": architecture.rotary_factor,
        }
    if is_decoder:
        settings |= {"with_encoder_attention": first.cross_heads > 0}
        settings |= {"alibi": True, "scale_alibi": False} if architecture.positions == "alibi" else {}
        spec = transformer_spec.TransformerDecoderSpec(len(shapes), first.heads, **settings)
    else:
        spec = transformer_spec.TransformerEncoderSpec(len(shapes), first.heads, **settings)
        if architecture.positions == "rotary":
            del spec.position_encodings
    if architecture.norm_position == "pre":
        _norm(spec.layer_norm, stack.norm)
    for layer, block in zip(spec.layer, stack.blocks, strict=True):
        assert isinstance(block, Block)
        _block(layer, block, architecture)
    return spec


def _block(layer: Any, block: Block, architecture: Architecture) -> None:
    own = layer.self_attention
    _norm(own.layer_norm, block.attention_norm)
    _fused(own.linear[0], block.attention.q, block.attention.k, block.attention.v)
    _linear(own.linear[1], block.attention.o)
    if architecture.positions == "relative":
        own.relative_attention_bias = _array(block.attention.relative_bias)
        own.relative_attention_max_distance = np.dtype("int32").type(architecture.relative_distance)
    if architecture.rotary_scaling == "llama3" and architecture.positions == "rotary":
        own.rotary_low_freq_factor = np.dtype("float32").type(architecture.rotary_low)
        own.rotary_high_freq_factor = np.dtype("float32").type(architecture.rotary_high)
        own.rotary_scaling_factor = np.dtype("float32").type(architecture.rotary_factor)
        own.original_max_position_embeddings = np.dtype("int32").type(architecture.rotary_context)
    attentions = [(own, block.attention)]
    if block.cross is not None:
        other = layer.attention
        _norm(other.layer_norm, block.cross_norm)
        _linear(other.linear[0], block.cross.q)
        _fused(other.linear[1], block.cross.k, block.cross.v)
        _linear(other.linear[2], block.cross.o)
        attentions.append((other, block.cross))
    for spec, attention in attentions:
        if attention.q_norm is not None:
            _norm(spec.q_norm, attention.q_norm)
            _norm(spec.k_norm, attention.k_norm)
    ffn = layer.ffn
    _norm(ffn.layer_norm, block.ffn_norm)
    if block.ffn.gate is None:
        _linear(ffn.linear_0, block.ffn.up)
    else:
        _linear(ffn.linear_0, block.ffn.gate)
        _linear(ffn.linear_0_noact, block.ffn.up)
    _linear(ffn.linear_1, block.ffn.down)


def _embed(stack: Any, table: Any, loaded: LoadedModel, weight: Tensor) -> None:
    model = loaded.model
    architecture = model.architecture
    scale = math.sqrt(architecture.width) if architecture.embedding_scale else 1.0
    table.weight = _array(weight)
    stack.scale_embeddings = scale
    if architecture.positions == "sinusoidal":
        stack.position_encodings.encodings = _array(sinusoidal_table(architecture.context, architecture.width))
    elif model.position is not None:
        stack.position_encodings.encodings = _array(model.position.weight * scale)
    if architecture.embedding_norm:
        _norm(stack.layernorm_embedding, model.embedding_norm)


def _array(tensor: Any) -> NDArray[np.float32]:
    # A copy: quantization there scales arrays in place, and these would be the model's own.
    array: NDArray[np.float32] = tensor.detach().float().cpu().contiguous().numpy().copy()
    return array


def _norm(spec: Any, norm: Any) -> None:
    spec.gamma = _array(norm.weight)
    if hasattr(spec, "beta"):
        spec.beta = np.zeros_like(spec.gamma) if norm.bias is None else _array(norm.bias)


def _linear(spec: Any, layer: Any) -> None:
    spec.weight = _array(layer.weight)
    if layer.bias is not None:
        spec.bias = _array(layer.bias)


def _fused(spec: Any, *layers: Any) -> None:
    spec.weight = np.concatenate([_array(layer.weight) for layer in layers])
    if layers[0].bias is not None:
        spec.bias = np.concatenate([_array(layer.bias) for layer in layers])


class InCTranslate2(Reopened):
    """A converted folder, run by CTranslate2 on one thread; int8 codes as floats where their sums would overflow."""

    def __init__(self, folder: Path, loaded: LoadedModel) -> None:
        import ctranslate2

        kind = ctranslate2.Translator if loaded.model.architecture.is_seq2seq else ctranslate2.Generator
        compute = "default" if sums_int8_exactly() else "float32"
        self._model: Any = kind(str(folder), device="cpu", compute_type=compute, inter_threads=1, intra_threads=1)
        self._is_seq2seq = loaded.model.architecture.is_seq2seq
        self._tokens = vocabulary(loaded)
        self._numbers = {token: index for index, token in enumerate(self._tokens)}
        self._never = [[self._tokens[index]] for index in loaded.tokenizer.never]

    def scores(self, sources: Sequence[Ids] | None, targets: Sequence[Ids]) -> list[list[float]]:
        words = self._words(targets)
        if sources is None:
            return [list(row.log_probs) for row in self._model.score_batch(words)]
        # It adds the end token itself.
        found = self._model.score_batch(self._words(sources), [row[:-1] for row in words])
        return [list(row.log_probs) for row in found]

    def greedy(self, inputs: Sequence[Ids], limits: Sequence[int]) -> list[list[int]]:
        found = []
        for words, limit in zip(self._words(inputs), limits, strict=True):
            if self._is_seq2seq:
                result = self._model.translate_batch(
                    [words],
                    beam_size=1,
                    max_decoding_length=limit,
                    min_decoding_length=0,
                    suppress_sequences=self._never or None,
                )[0]
                output = result.hypotheses[0]
            else:
                result = self._model.generate_batch(
                    [words], beam_size=1, max_length=limit, include_prompt_in_result=False
                )[0]
                output = result.sequences[0]
            found.append([self._numbers[word] for word in output])
        return found

    def beam(self, sources: Sequence[Ids], limit: int, width: int) -> list[list[int]]:
        found = self._model.translate_batch(
            self._words(sources),
            beam_size=width,
            length_penalty=0,
            max_decoding_length=limit,
            min_decoding_length=0,
            suppress_sequences=self._never or None,
        )
        return [[self._numbers[word] for word in result.hypotheses[0]] for result in found]

    def _words(self, rows: Sequence[Ids]) -> list[list[str]]:
        return [[self._tokens[index] for index in row] for row in rows]


def _note(kind: str) -> str | None:
    if not kind.startswith("int8") or sums_int8_exactly():
        return None
    return (
        "this processor has no VNNI, and CTranslate2's sums of int8 products overflow on it: the comparison is with "
        "compute_type='float32', which is right there too"
    )


CTRANSLATE2 = Target(
    "ctranslate2",
    "a fast decoder for CPU and GPU",
    ("ctranslate2",),
    ("float32", "int8", "int8_float32", "int16", "float16"),
    check,
    write,
    InCTranslate2,
    note=_note,
)
