"""Text in, text out, by the task of the model; and what settings of decoding mean."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from tfx.config.schema import EvaluationConfig
from tfx.data.tokenizer import SPACE, Tokenizer
from tfx.model.transformer import Transformer
from tfx.tasks import task_named
from tfx.tasks.contract import Prompts

# What each way to decode reads of the config.
_READS = {"greedy": (), "beam": ("beam", "length_penalty"), "sample": ("temperature", "top_k", "top_p")}


def decoding_method(config: EvaluationConfig) -> str:
    """How text to text is decoded with this config: greedy, beam or sample. A beam of one is greedy."""
    if config.method in ("auto", "beam"):
        return "beam" if config.beam > 1 else "greedy"
    return config.method


def describe_decoding(config: EvaluationConfig) -> str:
    """The same with the settings that matter to it: ``beam (beam=5, length_penalty=1)``."""
    method = decoding_method(config)
    values = {name: getattr(config, name) for name in _READS[method]}
    told = ", ".join(f"{name}={value:g}" for name, value in values.items() if value is not None)
    return f"{method} ({told})" if told else method


def ignored_settings(config: EvaluationConfig) -> dict[str, str]:
    """Settings of decoding that change nothing with this config, and why: text to text, or a model that samples."""
    method = decoding_method(config)
    ignored = {name: f"decoding is by {method}" for kind, names in _READS.items() if kind != method for name in names}
    if config.method in ("auto", "beam"):
        ignored.pop("beam", "")  # a beam of one is what makes this greedy
    if method != "sample":
        ignored["seed"] = f"decoding is by {method}"
    elif config.top_p == 1:
        ignored["top_p"] = "1 is the mass of all tokens"
    return ignored


def generate(
    model: Transformer,
    tokenizer: Tokenizer,
    texts: Sequence[str],
    config: EvaluationConfig,
    *,
    seed: int = 1,
    first: int = 0,
    note: Callable[[str], Any] = lambda message: None,
) -> list[str]:
    """One output for each text, in order: its transduction, or for a language model its continuation.

    ``first`` is the number of the first text among all that are decoded with this seed: each has random draws of its
    own. ``note`` hears in a line what is done to an input: a text longer than the model's context is cut, characters
    are not known, where there is no text a language model begins as the documents of its training did. Line ends
    inside an output become spaces where the model is text to text; a language model's continuation keeps them, and
    joins the text as it would stand in one. A text to text model makes nothing of an empty text.
    """
    model.eval()
    ids = tokenizer.encode(texts)
    prompts = Prompts(texts, ids, first, note)
    for row, own in enumerate(ids):
        if unknown := own.count(tokenizer.unk):
            prompts.say(row, f"{unknown:,} tokens of characters that the tokenizer does not know")
        if (signs := texts[row].count(SPACE)) and tokenizer.mistakes_sign:
            prompts.say(row, f"{signs:,} signs '{SPACE}' (U+2581), which the tokenizer takes for spaces")
    return task_named(model.architecture.family).generate(model, tokenizer, prompts, config, seed)
