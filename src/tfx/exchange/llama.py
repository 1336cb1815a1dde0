"""Llama (Touvron 2023, arXiv 2302.13971): rotary positions, grouped queries, RMSNorm, gated feed-forward layers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from tfx.exchange.family import GATED_ACTIVATIONS, Family, name_in_theirs, plain, uniform
from tfx.exchange.fields import Fields
from tfx.exchange.gpt2 import fit_language_model, scaled_embeddings
from tfx.exchange.weights import Place
from tfx.model.architecture import Architecture


def _read(fields: Fields, names: Sequence[str]) -> Architecture:
    width, heads = fields.number("hidden_size"), fields.number("num_attention_heads")
    attention_bias, ffn_bias = fields.take("attention_bias", False), fields.take("mlp_bias", False)
    shape = plain(heads, fields.number("intermediate_size"), fields.take("num_key_value_heads", heads))
    fields.must("pretraining_tp", 1)
    return Architecture(
        family="lm",
        vocab_size=fields.number("vocab_size"),
        width=width,
        head_width=fields.take("head_dim", width // heads),
        context=fields.take("max_position_embeddings", 2048),
        encoder=(),
        decoder=(shape,) * fields.number("num_hidden_layers"),
        positions="rotary",
        **_rotary(fields),
        norm_position="pre",
        norm="rmsnorm",
        norm_eps=fields.take("rms_norm_eps", 1e-6),
        activation=fields.choose("hidden_act", GATED_ACTIVATIONS, "silu"),
        qk_norm=False,
        bias=False,
        attention_bias=attention_bias,
        ffn_bias=ffn_bias,
        tied_embeddings="output" if fields.take("tie_word_embeddings", False) else "none",
        embedding_scale=False,
    )


def _rotary(fields: Fields) -> dict[str, Any]:
    """The settings of rotary positions: one field of theirs today, two in the files of earlier versions."""
    name = "rope_parameters" if fields.has("rope_parameters") else "rope_scaling"
    record: dict[str, Any] = fields.take(name, {})
    base = record.get("rope_theta", fields.take("rope_theta", 10000.0))
    kind = record.get("rope_type", record.get("type", "default"))
    found: dict[str, Any] = {"rotary_base": float(base)}
    known = {"rope_theta", "rope_type", "type"}
    if kind != "default":
        known |= {"factor"}
        found |= {"rotary_scaling": kind, "rotary_factor": float(record.get("factor", 1.0))}
    if kind == "llama3":
        values = {
            "rotary_low": "low_freq_factor",
            "rotary_high": "high_freq_factor",
            "rotary_context": "original_max_position_embeddings",
        }
        known |= set(values.values())
        found |= {ours: record[theirs] for ours, theirs in values.items() if theirs in record}
    if kind not in ("default", "linear", "llama3"):
        raise fields.refused(name, "of its types, default, linear and llama3 are")
    if others := sorted(record.keys() - known):
        raise fields.refused(name, f"tfx does not know its {others[0]}")
    return found


def _write(architecture: Architecture) -> dict[str, Any]:
    shape = uniform(architecture.decoder)
    rope: dict[str, Any] = {"rope_theta": architecture.rotary_base, "rope_type": "default"}
    if architecture.rotary_scaling != "none":
        rope |= {"rope_type": architecture.rotary_scaling, "factor": architecture.rotary_factor}
    if architecture.rotary_scaling == "llama3":
        rope |= {
            "low_freq_factor": architecture.rotary_low,
            "high_freq_factor": architecture.rotary_high,
            "original_max_position_embeddings": architecture.rotary_context,
        }
    return {
        "vocab_size": architecture.vocab_size,
        "hidden_size": architecture.width,
        "intermediate_size": shape.ffn,
        "num_hidden_layers": len(architecture.decoder),
        "num_attention_heads": shape.heads,
        "num_key_value_heads": shape.kv_heads,
        "head_dim": architecture.head_width,
        "hidden_act": name_in_theirs(architecture.activation, GATED_ACTIVATIONS),
        "max_position_embeddings": architecture.context,
        "rms_norm_eps": architecture.epsilon,
        "tie_word_embeddings": architecture.tied_embeddings in ("all", "output"),
        "rope_parameters": rope,
        "attention_bias": _biased(architecture, architecture.attention_bias),
        "mlp_bias": _biased(architecture, architecture.ffn_bias),
    }


def _biased(architecture: Architecture, own: bool | None) -> bool:
    return architecture.bias if own is None else own


def _fit(architecture: Architecture) -> Architecture:
    return replace(
        fit_language_model(architecture),
        bias=False,
        attention_bias=_biased(architecture, architecture.attention_bias),
        ffn_bias=_biased(architecture, architecture.ffn_bias),
    )


def _places(architecture: Architecture) -> list[Place]:
    scale, last = scaled_embeddings(architecture)
    places = [
        Place("embedding.weight", "model.embed_tokens.weight", scale=scale),
        Place("decoder.norm.weight", "model.norm.weight", scale=last),
    ]
    if architecture.tied_embeddings in ("none", "inputs"):
        places.append(Place("output.weight", "lm_head.weight"))
    for number in range(len(architecture.decoder)):
        ours, theirs = f"decoder.blocks.{number}", f"model.layers.{number}"
        places += [
            Place(f"{ours}.attention_norm.weight", f"{theirs}.input_layernorm.weight"),
            Place(f"{ours}.ffn_norm.weight", f"{theirs}.post_attention_layernorm.weight"),
        ]
        for kind, present in (("attention", architecture.attention_bias), ("ffn", architecture.ffn_bias)):
            kinds = ("weight", "bias") if _biased(architecture, present) else ("weight",)
            places += [
                Place(f"{ours}.{kind}.{name}.{what}", f"{theirs}.{_MODULES[kind]}.{name}_proj.{what}")
                for name in _PARTS[kind]
                for what in kinds
            ]
    return places


_MODULES = {"attention": "self_attn", "ffn": "mlp"}
_PARTS = {"attention": ("q", "k", "v", "o"), "ffn": ("gate", "up", "down")}

LLAMA = Family(
    "llama",
    "LlamaForCausalLM",
    "lm",
    _read,
    _write,
    _fit,
    _places,
    prefix="model.",
    unused=(r".*rotary_emb\.inv_freq",),
)
