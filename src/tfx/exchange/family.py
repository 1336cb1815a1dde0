"""A family of models of `transformers`: its config.json and the names of its tensors, both ways."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from tfx.exchange.fields import Fields
from tfx.exchange.weights import Place
from tfx.model.architecture import Architecture, BlockShape

# Their names of activations, and ours. Of several, the first is written.
ACTIVATIONS = {
    "relu": "relu",
    "gelu": "gelu",
    "gelu_new": "gelu_tanh",
    "gelu_pytorch_tanh": "gelu_tanh",
    "silu": "silu",
    "swish": "silu",
    "relu2": "relu2",
}
GATED_ACTIVATIONS = {"silu": "swiglu", "gelu": "geglu", "gelu_pytorch_tanh": "geglu_tanh", "gelu_new": "geglu_tanh"}


@dataclass(frozen=True)
class Family:
    """One ``model_type`` of `transformers`.

    ``read`` gives the architecture of a config.json, and raises `UserError` for a field that it does not support;
    ``write`` gives the fields of one for an architecture. What is written says ``fit(architecture)``: the same function
    in the terms of their class, with biases of zero where there were none. Where that differs from what `read` makes of
    the fields, the class cannot say it. ``places`` maps the tensors of an architecture as it is, biases of zero
    included, and ``tables`` computes what their files hold beside the weights. ``prefix`` may be missing before the
    names of a file. Names that match one of ``unused`` are of tables that are computed here; those of ``left_out`` of
    parts that have no place here, and without which the rest works.
    """

    model_type: str
    class_name: str
    kind: str
    read: Callable[[Fields, Sequence[str]], Architecture]
    write: Callable[[Architecture], dict[str, Any]]
    fit: Callable[[Architecture], Architecture]
    places: Callable[[Architecture], list[Place]]
    prefix: str = ""
    unused: tuple[str, ...] = ()
    left_out: tuple[str, ...] = ()
    tables: Callable[[Architecture], dict[str, Tensor]] = lambda architecture: {}


def name_in_theirs(ours: str, choices: dict[str, str]) -> str:
    """The other library's name of an activation; ours where it has none, which its reader then refuses."""
    return next((theirs for theirs, name in choices.items() if name == ours), ours)


def uniform(shapes: Sequence[BlockShape]) -> BlockShape:
    """The shape of the first block: a class of theirs has one for all of them."""
    return shapes[0]


def plain(heads: int, ffn: int, kv_heads: int | None = None, *, crosses: bool = False) -> BlockShape:
    """The shape of a block."""
    groups = kv_heads or heads
    return BlockShape(heads, groups, heads if crosses else 0, groups if crosses else 0, ffn)


def same_names(pairs: dict[str, str]) -> list[Place]:
    """Places of modules that differ in nothing but their names: ours to theirs."""
    return [
        Place(f"{ours}.{kind}", f"{theirs}.{kind}") for ours, theirs in pairs.items() for kind in ("weight", "bias")
    ]
