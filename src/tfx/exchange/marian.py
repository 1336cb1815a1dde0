"""Marian (Junczys-Dowmunt 2018) and Pegasus (Zhang 2020): encoder-decoders with sinusoidal positions.

They differ in where the norms are: after each sub-layer (Marian), or before it (Pegasus). Both have the sines in the
first half of the columns and the cosines in the second, where we have them in turn. No layer of a Transformer
depends on the order of its width, so the columns of every weight are put in the other order: the same function.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor

from tfx.exchange.family import ACTIVATIONS, Family, name_in_theirs, plain, same_names, uniform
from tfx.exchange.fields import Fields
from tfx.exchange.weights import Place, in_order
from tfx.model.architecture import Architecture
from tfx.model.positions import sinusoidal_table

# Of the embeddings of source, target and output, which are one: by (source and target, target and output).
_TIED = {(True, True): "all", (False, True): "output", (True, False): "inputs", (False, False): "none"}
# Fields of converted Marian files that say what every model of the class is.
_FIXED = {
    "add_bias_logits": False,
    "add_final_layer_norm": None,
    "extra_pos_embeddings": None,
    "normalize_before": None,
    "normalize_embedding": False,
    "static_position_embeddings": True,
    "is_encoder_decoder": True,
}


def _read(norm_position: str, fields: Fields, names: Sequence[str]) -> Architecture:
    width, heads = fields.number("d_model"), fields.number("encoder_attention_heads")
    vocabulary = fields.number("vocab_size")
    fields.must("decoder_attention_heads", heads)
    fields.must("decoder_vocab_size", vocabulary)
    for name, value in _FIXED.items():
        fields.must(name, value) if value is not None else fields.must(name, norm_position == "pre")
    encoder = plain(heads, fields.number("encoder_ffn_dim"))
    decoder = plain(heads, fields.number("decoder_ffn_dim"), crosses=True)
    shares = norm_position == "pre" or fields.take("share_encoder_decoder_embeddings", True)
    return Architecture(
        family="seq2seq",
        vocab_size=vocabulary,
        width=width,
        head_width=width // heads,
        context=fields.take("max_position_embeddings", 1024),
        encoder=(encoder,) * fields.number("encoder_layers"),
        decoder=(decoder,) * fields.number("decoder_layers"),
        positions="sinusoidal",
        norm_position=norm_position,
        norm="layernorm",
        norm_eps=1e-5,
        activation=fields.choose("activation_function", ACTIVATIONS, "gelu"),
        qk_norm=False,
        bias=True,
        output_bias="final_logits_bias" in names,
        tied_embeddings=_TIED[shares, fields.take("tie_word_embeddings", True)],
        embedding_scale=fields.take("scale_embedding", False),
    )


def _write(norm_position: str, architecture: Architecture) -> dict[str, Any]:
    encoder, decoder = uniform(architecture.encoder), uniform(architecture.decoder)
    shares, ties = next(key for key, value in _TIED.items() if value == architecture.tied_embeddings)
    found = {
        "vocab_size": architecture.vocab_size,
        "d_model": architecture.width,
        "encoder_layers": len(architecture.encoder),
        "decoder_layers": len(architecture.decoder),
        "encoder_attention_heads": encoder.heads,
        "decoder_attention_heads": decoder.heads,
        "encoder_ffn_dim": encoder.ffn,
        "decoder_ffn_dim": decoder.ffn,
        "activation_function": name_in_theirs(architecture.activation, ACTIVATIONS),
        "max_position_embeddings": architecture.context,
        "scale_embedding": architecture.embedding_scale,
        "tie_word_embeddings": ties,
        "is_encoder_decoder": True,
    }
    if norm_position == "post":
        found["share_encoder_decoder_embeddings"] = shares
    return found


def _fit(architecture: Architecture) -> Architecture:
    return replace(
        architecture,
        norm_eps=architecture.epsilon,
        bias=True,
        attention_bias=None,
        ffn_bias=None,
        output_bias=True,
    )


def _tables(architecture: Architecture) -> dict[str, Tensor]:
    """The sines in the first half of the columns, the cosines in the second."""
    table = sinusoidal_table(architecture.context, architecture.width)
    halves = torch.cat([table[:, 0::2], table[:, 1::2]], dim=1)
    return {f"model.{stack}.embed_positions.weight": halves.clone() for stack in ("encoder", "decoder")}


def _places(architecture: Architecture) -> list[Place]:
    shared = architecture.tied_embeddings in ("all", "inputs")
    places = [Place("embedding.weight", "model.shared.weight" if shared else "model.decoder.embed_tokens.weight")]
    if not shared:
        places.append(Place("source_embedding.weight", "model.encoder.embed_tokens.weight"))
    if architecture.tied_embeddings in ("none", "inputs"):
        places.append(Place("output.weight", "lm_head.weight"))
    if architecture.output_bias:
        places.append(Place("output.bias", "final_logits_bias", is_row=True))
    for stack in ("encoder", "decoder"):
        if architecture.norm_position == "pre":
            places += same_names({f"{stack}.norm": f"model.{stack}.layer_norm"})
        for number in range(len(getattr(architecture, stack))):
            ours, theirs = f"{stack}.blocks.{number}", f"model.{stack}.layers.{number}"
            modules = dict(_COMMON)
            if stack == "decoder":
                modules |= {name.replace("attention", "cross"): _crossing(other) for name, other in _ATTENTION.items()}
            places += same_names({f"{ours}.{name}": f"{theirs}.{other}" for name, other in modules.items()})
    # The place among theirs of each of our columns.
    return in_order(places, torch.arange(architecture.width).view(2, -1).t().flatten())


_ATTENTION = {
    **{f"attention.{name}": f"self_attn.{name}_proj" for name in "qkv"},
    "attention.o": "self_attn.out_proj",
    "attention_norm": "self_attn_layer_norm",
}
_COMMON = {**_ATTENTION, "ffn.up": "fc1", "ffn.down": "fc2", "ffn_norm": "final_layer_norm"}


def _crossing(name: str) -> str:
    return name.replace("self_attn", "encoder_attn")


# A bias of the logits that is zero is no part of the architecture.
_UNUSED = (r"model\.(en|de)coder\.embed_positions\.weight", "final_logits_bias")
MARIAN = Family(
    "marian",
    "MarianMTModel",
    "seq2seq",
    partial(_read, "post"),
    partial(_write, "post"),
    _fit,
    _places,
    unused=_UNUSED,
    tables=_tables,
)
PEGASUS = Family(
    "pegasus",
    "PegasusForConditionalGeneration",
    "seq2seq",
    partial(_read, "pre"),
    partial(_write, "pre"),
    _fit,
    _places,
    unused=_UNUSED,
    tables=_tables,
)
