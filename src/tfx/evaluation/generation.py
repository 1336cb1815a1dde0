"""Text in, text out, by the task of the model; and which settings of decoding apply."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from typing import Any

from tfx.config.schema import EvaluationConfig
from tfx.data.tokenizer import SPACE, Tokenizer
from tfx.model.device import scoring_in, scoring_numbers
from tfx.model.transformer import Transformer
from tfx.tasks import task_named
from tfx.tasks.contract import Prompts, Task

# The settings that each decoding method reads.
_READS = {"greedy": (), "beam": ("beam", "length_penalty"), "sample": ("temperature", "top_k", "top_p")}

# What all methods follow, and what they do unless they are told.
RULES = ("min_length", "no_repeat_ngram", "repetition_penalty")
_PLAIN = EvaluationConfig()


def decoding_method(config: EvaluationConfig) -> str:
    """How text to text is decoded with this config: greedy, beam or sample. A beam of one is greedy."""
    if config.method in ("auto", "beam"):
        return "beam" if config.beam > 1 else "greedy"
    return config.method


def describe_decoding(config: EvaluationConfig) -> str:
    """The same with the settings that matter to it: ``beam (beam=5, length_penalty=1)``."""
    method = decoding_method(config)
    values = {name: getattr(config, name) for name in _READS[method]}
    values |= {name: value for name in RULES if (value := getattr(config, name)) != getattr(_PLAIN, name)}
    told = ", ".join(f"{name}={value:g}" for name, value in values.items() if value is not None)
    return f"{method} ({told})" if told else method


def ignored_settings(config: EvaluationConfig) -> dict[str, str]:
    """Settings of decoding that have no effect with this config, and why."""
    method = decoding_method(config)
    ignored = {name: f"decoding is by {method}" for kind, names in _READS.items() if kind != method for name in names}
    if config.method in ("auto", "beam"):
        ignored.pop("beam", "")  # a beam of one makes this greedy
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
    prefix: str = "",
    note: Callable[[str], Any] = lambda message: None,
) -> list[str]:
    """One output for each text, in order: its transduction, or for a language model its continuation.

    ``first`` is the number of the first text among all that are decoded with this seed: each has its own random draws.
    Outputs of text to text begin with ``prefix``.
    ``note`` gets a line for each change to an input: a text longer than the context is cut, characters are unknown, or
    there is no text, so that a language model begins as its training documents did. Line ends inside an output become
    spaces for text to text; the continuation of a language model keeps them and follows its text directly. The output
    for an empty text is empty in text to text.
    """
    task, prompts = _prompts(model, tokenizer, texts, first, note, prefix)
    with _numbers(model, config):
        return task.generate(model, tokenizer, prompts, config, seed)


def generate_records(
    model: Transformer,
    tokenizer: Tokenizer,
    texts: Sequence[str],
    config: EvaluationConfig,
    *,
    best: int | None = None,
    seed: int = 1,
    first: int = 0,
    prefix: str = "",
    note: Callable[[str], Any] = lambda message: None,
) -> list[dict[str, Any]]:
    """The same as JSON objects: the ``output`` of each text, and what else the model says of it.

    Written texts have a score and their tokens, and in text to text an alignment of words; with ``best``, that many
    outputs of a beam are in ``nbest``.
    """
    task, prompts = _prompts(model, tokenizer, texts, first, note, prefix, best)
    with _numbers(model, config):
        return task.records(model, tokenizer, prompts, config, seed)


def _numbers(model: Transformer, config: EvaluationConfig) -> AbstractContextManager[None]:
    device = model.embedding.weight.device
    return scoring_in(scoring_numbers(config.precision, device, is_result=True), device)


def _prompts(
    model: Transformer,
    tokenizer: Tokenizer,
    texts: Sequence[str],
    first: int,
    note: Callable[[str], Any],
    prefix: str,
    best: int | None = None,
) -> tuple[Task, Prompts]:
    """The task of a model, and the texts as it reads them."""
    model.eval()
    task = task_named(model.architecture.family)
    read = [task.read(text) for text in texts]
    prompts = Prompts(read, tokenizer.encode(read), first, note, prefix, best)
    for row, own in enumerate(prompts.ids):
        if read[row] and read[row] != texts[row]:
            prompts.say(row, "outer white space is left out, as it is in training data")
        if unknown := own.count(tokenizer.unk):
            prompts.say(row, f"{unknown:,} tokens of characters that the tokenizer does not know")
        if (signs := read[row].count(SPACE)) and tokenizer.mistakes_sign:
            prompts.say(row, f"{signs:,} signs '{SPACE}' (U+2581), which the tokenizer takes for spaces")
    return task, prompts
