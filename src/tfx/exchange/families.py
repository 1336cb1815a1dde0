"""All families of models that come in."""

from __future__ import annotations

from tfx.exchange.bert import BERT, ROBERTA
from tfx.exchange.family import Family
from tfx.exchange.gpt2 import GPT2
from tfx.exchange.llama import LLAMA
from tfx.exchange.marian import MARIAN, PEGASUS
from tfx.exchange.t5 import MT5, T5

FAMILIES: dict[str, Family] = {
    family.model_type: family for family in (GPT2, LLAMA, MARIAN, PEGASUS, T5, MT5, BERT, ROBERTA)
}
