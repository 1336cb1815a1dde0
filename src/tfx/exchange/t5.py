"""T5 (Raffel 2020, arXiv 1910.10683) and mT5 (Xue 2021): encoder-decoders with relative positions.

Their attention does not divide the scores by the square root of the head width: our matrix of queries is theirs times
that root. They have one table of relative positions for a stack, and we one for each block: all start from theirs.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from typing import Any

from tfx.exchange.family import Family, name_in_theirs, plain, uniform
from tfx.exchange.fields import Fields
from tfx.exchange.weights import Place
from tfx.model.architecture import Architecture

# `gated-gelu` is the approximate GELU, the exact one has no name of its own.
_ACTIVATIONS = {
    "relu": "relu",
    "gelu": "gelu",
    "gelu_new": "gelu_tanh",
    "silu": "silu",
    "gated-gelu": "geglu_tanh",
    "gated-gelu_new": "geglu_tanh",
    "gated-silu": "swiglu",
}


def _read(scales: bool, fields: Fields, names: Sequence[str]) -> Architecture:
    width, heads = fields.number("d_model"), fields.number("num_heads")
    encoder_layers = fields.number("num_layers")
    ffn = fields.number("d_ff")
    tied = fields.take("tie_word_embeddings", True)
    scaled = fields.take("scale_decoder_outputs", tied)
    fields.must("is_encoder_decoder", True)
    fields.skip("dense_act_fn", "is_gated_act", "output_past")
    return Architecture(
        family="seq2seq",
        vocab_size=fields.number("vocab_size"),
        width=width,
        head_width=fields.take("d_kv", 64),
        context=fields.take("n_positions", 512),
        encoder=(plain(heads, ffn),) * encoder_layers,
        decoder=(plain(heads, ffn, crosses=True),) * fields.take("num_decoder_layers", encoder_layers),
        positions="relative",
        relative_buckets=fields.take("relative_attention_num_buckets", 32),
        relative_distance=fields.take("relative_attention_max_distance", 128),
        norm_position="pre",
        norm="rmsnorm",
        norm_eps=fields.take("layer_norm_epsilon", 1e-6),
        activation=fields.choose("feed_forward_proj", _ACTIVATIONS, "relu" if scales else "gated-gelu"),
        qk_norm=False,
        bias=False,
        tied_embeddings="inputs" if "lm_head.weight" in names else "all",
        embedding_scale=scales and scaled,
    )


def _write(scales: bool, architecture: Architecture) -> dict[str, Any]:
    shape = uniform(architecture.encoder)
    found = {
        "vocab_size": architecture.vocab_size,
        "d_model": architecture.width,
        "d_kv": architecture.head_width,
        "d_ff": shape.ffn,
        "num_layers": len(architecture.encoder),
        "num_decoder_layers": len(architecture.decoder),
        "num_heads": shape.heads,
        "n_positions": architecture.context,
        "relative_attention_num_buckets": architecture.relative_buckets,
        "relative_attention_max_distance": architecture.relative_distance,
        "layer_norm_epsilon": architecture.epsilon,
        "feed_forward_proj": name_in_theirs(architecture.activation, _ACTIVATIONS),
        "is_encoder_decoder": True,
    }
    return found | ({"tie_word_embeddings": architecture.embedding_scale} if scales else {})


def _fit(architecture: Architecture) -> Architecture:
    return replace(architecture, norm_eps=architecture.epsilon)


def _places(architecture: Architecture) -> list[Place]:
    # Where the output is divided by the square root of the width, ours is too, by embeddings that are stored so.
    scale = architecture.width**-0.5 if architecture.embedding_scale else 1.0
    places = [Place("embedding.weight", "shared.weight", scale=scale)]
    if architecture.tied_embeddings == "inputs":
        places.append(Place("output.weight", "lm_head.weight", scale=scale))
    for stack in ("encoder", "decoder"):
        places.append(Place(f"{stack}.norm.weight", f"{stack}.final_layer_norm.weight"))
        for number in range(len(getattr(architecture, stack))):
            ours, theirs = f"{stack}.blocks.{number}", f"{stack}.block.{number}.layer"
            table = f"{stack}.block.0.layer.0.SelfAttention.relative_attention_bias.weight"
            places.append(Place(f"{ours}.attention.relative_bias", table))
            places += _attention(f"{ours}.attention", f"{theirs}.0.SelfAttention", architecture.head_width)
            places.append(Place(f"{ours}.attention_norm.weight", f"{theirs}.0.layer_norm.weight"))
            if stack == "decoder":
                places += _attention(f"{ours}.cross", f"{theirs}.1.EncDecAttention", architecture.head_width)
                places.append(Place(f"{ours}.cross_norm.weight", f"{theirs}.1.layer_norm.weight"))
            places += _ffn(ours, f"{theirs}.{2 if stack == 'decoder' else 1}", architecture.is_gated)
    return places


def _attention(ours: str, theirs: str, head_width: int) -> list[Place]:
    scales = {"q": math.sqrt(head_width), "k": 1.0, "v": 1.0, "o": 1.0}
    return [Place(f"{ours}.{name}.weight", f"{theirs}.{name}.weight", scale=scale) for name, scale in scales.items()]


def _ffn(ours: str, theirs: str, is_gated: bool) -> list[Place]:
    names = {"gate": "wi_0", "up": "wi_1", "down": "wo"} if is_gated else {"up": "wi", "down": "wo"}
    dense = f"{theirs}.DenseReluDense"
    places = [Place(f"{ours}.ffn.{name}.weight", f"{dense}.{other}.weight") for name, other in names.items()]
    return [*places, Place(f"{ours}.ffn_norm.weight", f"{theirs}.layer_norm.weight")]


_UNUSED = (
    r"(en|de)coder\.embed_tokens\.weight",
    r"decoder\.block\.0\.layer\.1\.EncDecAttention\.relative_attention_bias\.weight",
)


def _family(model_type: str, class_name: str, *, scales: bool) -> Family:
    """T5 divides the output by the square root of the width where it is the embedding; mT5 does not."""
    read, write = partial(_read, scales), partial(_write, scales)
    return Family(model_type, class_name, "seq2seq", read, write, _fit, _places, unused=_UNUSED)


T5 = _family("t5", "T5ForConditionalGeneration", scales=True)
MT5 = _family("mt5", "MT5ForConditionalGeneration", scales=False)
