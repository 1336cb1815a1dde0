"""BERT (Devlin 2019, arXiv 1810.04805), MiniLM and RoBERTa (Liu 2019, arXiv 1907.11692): encoders.

BERT also with the layer for labels of its class for sequences.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from typing import Any

from tfx.exchange.family import ACTIVATIONS, Family, name_in_theirs, plain, same_names, uniform
from tfx.exchange.fields import Fields
from tfx.exchange.labels import PROBLEMS, config_of_labels
from tfx.exchange.weights import Place
from tfx.model.architecture import Architecture, Outputs


def _read(skipped: int, fields: Fields, names: Sequence[str]) -> Architecture:
    width, heads = fields.number("hidden_size"), fields.number("num_attention_heads")
    shape = plain(heads, fields.number("intermediate_size"))
    fields.must("position_embedding_type", "absolute")
    fields.must("is_decoder", False)
    fields.must("add_cross_attention", False)
    if skipped:
        fields.must("pad_token_id", skipped - 1)
    fields.skip("tie_word_embeddings")
    return Architecture(
        family="encoder",
        vocab_size=fields.number("vocab_size"),
        width=width,
        head_width=width // heads,
        context=fields.number("max_position_embeddings") - skipped,
        encoder=(shape,) * fields.number("num_hidden_layers"),
        decoder=(),
        positions="learned",
        norm_position="post",
        norm="layernorm",
        norm_eps=fields.take("layer_norm_eps", 1e-12),
        activation=fields.choose("hidden_act", ACTIVATIONS, "gelu"),
        qk_norm=False,
        bias=True,
        tied_embeddings="all",
        embedding_scale=False,
        embedding_norm=True,
        token_types=fields.take("type_vocab_size", 2),
    )


def _write(skipped: int, architecture: Architecture) -> dict[str, Any]:
    shape = uniform(architecture.encoder)
    return {
        "vocab_size": architecture.vocab_size,
        "hidden_size": architecture.width,
        "num_hidden_layers": len(architecture.encoder),
        "num_attention_heads": shape.heads,
        "intermediate_size": shape.ffn,
        "hidden_act": name_in_theirs(architecture.activation, ACTIVATIONS),
        "max_position_embeddings": architecture.context + skipped,
        "type_vocab_size": architecture.token_types,
        "layer_norm_eps": architecture.epsilon,
    }


def _read_classifier(skipped: int, fields: Fields, names: Sequence[str]) -> Architecture:
    """The class with a pooler on the first token and a layer for labels."""
    found = fields.take("id2label", {"0": "LABEL_0", "1": "LABEL_1"})
    labels = tuple(str(found[key]) for key in sorted(found, key=int))
    problem = fields.take("problem_type", "regression" if len(labels) == 1 else "single_label_classification")
    predicts = {theirs: ours for ours, theirs in PROBLEMS.items()}.get(problem)
    if predicts is None:
        raise fields.refused("problem_type", f"supported are {', '.join(PROBLEMS.values())}")
    return replace(
        _read(skipped, fields, names),
        family="classification",
        pooling="first",
        pooler=True,
        outputs=Outputs(predicts, () if predicts == "number" else labels),
    )


def _write_classifier(skipped: int, architecture: Architecture) -> dict[str, Any]:
    outputs = architecture.outputs
    assert outputs is not None
    return {**_write(skipped, architecture), **config_of_labels(outputs)}


def _fit_classifier(architecture: Architecture) -> Architecture:
    """Their class knows no scale of numbers, which its last layer has, and neither pairs nor windows."""
    outputs = architecture.outputs
    assert outputs is not None
    return replace(_fit(architecture), outputs=Outputs(outputs.predicts, outputs.labels))


def _classifier_places(prefix: str, skipped: int, architecture: Architecture) -> list[Place]:
    names = {"pooling.dense": f"{prefix}pooler.dense", "output": "classifier"}
    return [*_places(prefix, skipped, architecture), *same_names(names)]


def _fit(architecture: Architecture) -> Architecture:
    return replace(architecture, norm_eps=architecture.epsilon, bias=True, attention_bias=None, ffn_bias=None)


def _places(prefix: str, skipped: int, architecture: Architecture) -> list[Place]:
    places = [
        Place("embedding.weight", f"{prefix}embeddings.word_embeddings.weight"),
        # RoBERTa numbers positions from the number behind that of its padding token.
        Place("position.weight", f"{prefix}embeddings.position_embeddings.weight", skipped=skipped),
        Place("token_type.weight", f"{prefix}embeddings.token_type_embeddings.weight"),
        *same_names({"embedding_norm": f"{prefix}embeddings.LayerNorm"}),
    ]
    for number in range(len(architecture.encoder)):
        ours, theirs = f"encoder.blocks.{number}", f"{prefix}encoder.layer.{number}"
        places += same_names({f"{ours}.{name}": f"{theirs}.{other}" for name, other in _MODULES.items()})
    return places


_MODULES = {
    "attention.q": "attention.self.query",
    "attention.k": "attention.self.key",
    "attention.v": "attention.self.value",
    "attention.o": "attention.output.dense",
    "attention_norm": "attention.output.LayerNorm",
    "ffn.up": "intermediate.dense",
    "ffn.down": "output.dense",
    "ffn_norm": "output.LayerNorm",
}


def _family(model_type: str, class_name: str, *, skipped: int) -> Family:
    prefix = f"{model_type}."
    return Family(
        model_type,
        class_name,
        "encoder",
        partial(_read, skipped),
        partial(_write, skipped),
        _fit,
        partial(_places, prefix, skipped),
        prefix=prefix,
        unused=(r".*embeddings\.position_ids",),
        # What stands on the encoder for its first task.
        left_out=(r".*pooler\..*", r"cls\..*", r"classifier\..*", r"lm_head\..*"),
    )


BERT_CLASSIFIER = Family(
    "bert",
    "BertForSequenceClassification",
    "classification",
    partial(_read_classifier, 0),
    partial(_write_classifier, 0),
    _fit_classifier,
    partial(_classifier_places, "bert.", 0),
    prefix="bert.",
    unused=(r".*embeddings\.position_ids",),
)
BERT = _family("bert", "BertModel", skipped=0)
ROBERTA = _family("roberta", "RobertaModel", skipped=2)
