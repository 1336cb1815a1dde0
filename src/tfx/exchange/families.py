"""All families of models that come in."""

from __future__ import annotations

from collections.abc import Sequence

from tfx.exchange.bert import BERT, BERT_CLASSIFIER, ROBERTA
from tfx.exchange.family import Family
from tfx.exchange.gpt2 import GPT2
from tfx.exchange.llama import LLAMA
from tfx.exchange.marian import MARIAN, PEGASUS
from tfx.exchange.t5 import MT5, T5

FAMILIES: dict[str, Family] = {
    family.model_type: family for family in (GPT2, LLAMA, MARIAN, PEGASUS, T5, MT5, BERT, ROBERTA)
}

# Families of a class of its own (``architectures`` in config.json), which another family has the ``model_type`` of.
BY_CLASS: dict[str, Family] = {family.class_name: family for family in (BERT_CLASSIFIER,)}


def family_of(model_type: str, classes: Sequence[str]) -> Family | None:
    """The family of a folder, by the names of its classes or else its type; None for one that is not known."""
    return next((BY_CLASS[name] for name in classes if name in BY_CLASS), None) or FAMILIES.get(model_type)
