"""GPT-2 (Radford 2019): pre-norm, learned positions, one matrix for queries, keys and values."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from tfx.exchange.family import ACTIVATIONS, Family, name_in_theirs, plain, same_names, uniform
from tfx.exchange.fields import Fields
from tfx.exchange.weights import Place
from tfx.model.architecture import Architecture


def _read(fields: Fields, names: Sequence[str]) -> Architecture:
    width, heads = fields.number("n_embd", "hidden_size"), fields.number("n_head", "num_attention_heads")
    shape = plain(heads, fields.take("n_inner", 4 * width))
    fields.must("scale_attn_weights", True)
    fields.must("scale_attn_by_inverse_layer_idx", False)
    fields.must("add_cross_attention", False)
    fields.skip("n_ctx", "reorder_and_upcast_attn", *(f"summary_{name}" for name in _SUMMARY))
    return Architecture(
        family="lm",
        vocab_size=fields.number("vocab_size"),
        width=width,
        head_width=width // heads,
        context=fields.number("n_positions", "max_position_embeddings"),
        encoder=(),
        decoder=(shape,) * fields.number("n_layer", "num_hidden_layers"),
        positions="learned",
        norm_position="pre",
        norm="layernorm",
        norm_eps=fields.take("layer_norm_epsilon", 1e-5),
        activation=fields.choose("activation_function", ACTIVATIONS, "gelu_new"),
        qk_norm=False,
        bias=True,
        tied_embeddings="output" if fields.take("tie_word_embeddings", True) else "none",
        embedding_scale=False,
    )


_SUMMARY = ("type", "use_proj", "activation", "proj_to_labels", "first_dropout")


def _write(architecture: Architecture) -> dict[str, Any]:
    shape = uniform(architecture.decoder)
    return {
        "vocab_size": architecture.vocab_size,
        "n_positions": architecture.context,
        "n_embd": architecture.width,
        "n_layer": len(architecture.decoder),
        "n_head": shape.heads,
        "n_inner": shape.ffn,
        "activation_function": name_in_theirs(architecture.activation, ACTIVATIONS),
        "layer_norm_epsilon": architecture.epsilon,
        "tie_word_embeddings": architecture.tied_embeddings in ("all", "output"),
    }


def fit_language_model(architecture: Architecture) -> Architecture:
    """The architecture as the classes of language models say it: unscaled embeddings, tied to the output or not."""
    tied = "output" if architecture.tied_embeddings in ("all", "output") else "none"
    return replace(architecture, embedding_scale=False, tied_embeddings=tied, norm_eps=architecture.epsilon)


def _fit(architecture: Architecture) -> Architecture:
    return replace(fit_language_model(architecture), bias=True, attention_bias=None, ffn_bias=None)


def scaled_embeddings(architecture: Architecture) -> tuple[float, float]:
    """What our embeddings, and the last norm, are of theirs, where their class has no scale.

    Embeddings that are scaled here are stored scaled there; where they are the output's too, the last norm, and with
    it every logit, is divided by the same.
    """
    if not architecture.embedding_scale:
        return 1.0, 1.0
    scale = math.sqrt(architecture.width)
    return 1.0 / scale, scale if architecture.tied_embeddings in ("all", "output") else 1.0


def _places(architecture: Architecture) -> list[Place]:
    scale, last = scaled_embeddings(architecture)
    places = [
        Place("embedding.weight", "transformer.wte.weight", scale=scale),
        Place("position.weight", "transformer.wpe.weight", scale=scale),
        Place("decoder.norm.weight", "transformer.ln_f.weight", scale=last),
        Place("decoder.norm.bias", "transformer.ln_f.bias", scale=last),
    ]
    if architecture.tied_embeddings in ("none", "inputs"):
        places.append(Place("output.weight", "lm_head.weight"))
    for number in range(len(architecture.decoder)):
        ours, theirs = f"decoder.blocks.{number}", f"transformer.h.{number}"
        places += same_names({f"{ours}.attention_norm": f"{theirs}.ln_1", f"{ours}.ffn_norm": f"{theirs}.ln_2"})
        for part, name in enumerate(("q", "k", "v")):
            places += _dense(f"{ours}.attention.{name}", f"{theirs}.attn.c_attn", (part, 3))
        places += _dense(f"{ours}.attention.o", f"{theirs}.attn.c_proj")
        places += _dense(f"{ours}.ffn.up", f"{theirs}.mlp.c_fc")
        places += _dense(f"{ours}.ffn.down", f"{theirs}.mlp.c_proj")
    return places


def _dense(ours: str, theirs: str, part: tuple[int, int] | None = None) -> list[Place]:
    """A linear layer, whose matrix GPT-2 stores as inputs by outputs."""
    return [
        Place(f"{ours}.weight", f"{theirs}.weight", transposed=True, part=part),
        Place(f"{ours}.bias", f"{theirs}.bias", part=part),
    ]


GPT2 = Family(
    "gpt2",
    "GPT2LMHeadModel",
    "lm",
    _read,
    _write,
    _fit,
    _places,
    prefix="transformer.",
    unused=(r".*\.attn\.(masked_)?bias",),
)
