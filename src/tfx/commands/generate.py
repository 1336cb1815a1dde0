"""`tfx generate RUN [TEXT…]`: exactly one line out for one line in."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console

from tfx.config.schema import EvaluationConfig
from tfx.config.task_facts import TaskFacts, facts_of
from tfx.errors import UserError
from tfx.terminal.arguments import Arguments, told_by_options
from tfx.terminal.console import plain_console

if TYPE_CHECKING:
    from tfx.compression.checkpoint import LoadedModel

_LINES_AT_ONCE = 256


# Settings of `evaluation` that have an option, with its type and help.
_SETTINGS: dict[str, tuple[type, str]] = {
    "beam": (int, "hypotheses kept by beam search"),
    "length_penalty": (float, "beam search: how much longer outputs are preferred; 0: not at all"),
    "temperature": (float, "of sampling"),
    "top_k": (int, "sampling: only the k likeliest tokens"),
    "top_p": (float, "sampling: the likeliest tokens up to this mass"),
    "new_tokens": (int, "largest number of tokens that a language model adds"),
    "min_length": (int, "smallest number of tokens of an output"),
    "no_repeat_ngram": (int, "no n-gram of this many tokens twice in a text"),
    "repetition_penalty": (float, "divides the logits of tokens that a text has; 1: nothing"),
    "engine": (str, "what decodes: torch (default), ctranslate2 or onnx"),
    "engine_numbers": (str, "type of the weights of another engine: float32 (default), int8, …"),
}


def main(arguments: Sequence[str]) -> int:
    """Decodes the texts, or the lines of stdin; prints only the results to stdout."""
    options = _options(arguments)

    from tfx.compression.checkpoint import load
    from tfx.evaluation.engines.opening import open_engine
    from tfx.evaluation.generation import describe_decoding
    from tfx.exchange.importing import local_file

    with told_by_options(["trainer.device"]):
        loaded = load(local_file(options.path), options.device)
    task = facts_of(loaded.model.architecture.family, options.path)
    typed = [f"evaluation.{name}" for name in _SETTINGS if getattr(options, name) is not None]
    with told_by_options(typed):  # others come from the file
        config = _config(options, loaded.generation, task, loaded.model.architecture.context)
    notes = plain_console(stderr=True)
    for option in _without_effect(options, config, loaded.tokenizer.vocab_size, task):
        notes.print(f"note: {option}")
    scored, used = describe_decoding(loaded.generation), describe_decoding(config)
    if scored != used and task.decodes:
        notes.print(f"note: decoding by {used}; the run was scored with {scored}")
    loaded.model.engine = open_engine(loaded, config)
    if loaded.model.engine is not None:
        for note in loaded.model.engine.notes(config):
            notes.print(f"note: {note}")
    texts = [_as_utf8(text, number) for number, text in enumerate(options.texts, start=1)]
    source = _Lines()
    lines = iter(texts) if texts else source.read()
    done = 0
    while batch := list(islice(lines, _LINES_AT_ONCE)):
        for number, text in enumerate(batch, start=done + 1):
            if "\r" in text:
                notes.print(f"note: line {number}: a carriage return in it ends no line here, unlike in data files")
        for line in _decoded(options, loaded, config, batch, done, notes, is_stream=task.is_stream):
            sys.stdout.write(line + "\n")
        done += len(batch)
        sys.stdout.flush()
    if source.fault is not None:
        raise source.fault
    return 0


def _options(arguments: Sequence[str]) -> Any:
    parser = Arguments(
        "generate",
        "Decodes each TEXT, or each line of stdin. Text to text: its output; a language model: the text "
        "and its continuation, line ends written as \\n so that one line stays one line; classification: its label, of "
        "pairs of texts that a tab separates too.",
    )
    parser.add_argument("path", type=Path, metavar="RUN|FILE", help="a run directory or a model file")
    parser.add_argument("texts", nargs="*", default=[], metavar="TEXT", help="inputs; none: the lines of stdin")
    parser.add_argument("--method", choices=("greedy", "beam", "sample"), help="default: what the run was scored with")
    for name, (kind, doc) in _SETTINGS.items():
        parser.add_argument(f"--{name.replace('_', '-')}", type=kind, help=doc)
    parser.add_argument("--prefix", metavar="TEXT", help="text to text: what every output begins with")
    parser.add_argument("--seed", type=int, help="sampling: seed (default 1)")
    parser.add_argument(
        "--json", action="store_true", help="a JSON object a line: the output, score, tokens, alignment; or labels"
    )
    parser.add_argument("--nbest", type=int, metavar="N", help="as --json, with the N best outputs of a beam")
    parser.add_argument("--device", default="cpu", help="cpu (default), cuda, cuda:N, mps or auto")
    return parser.read(arguments)


def _config(options: Any, kept: EvaluationConfig, task: TaskFacts, context: int) -> EvaluationConfig:
    """The decoding that the options ask for; raises `UserError` for one that the task or the method does not have."""
    from tfx.config.checks import check_values
    from tfx.evaluation.generation import decoding_method

    chosen = {name: getattr(options, name) for name in ("method", *_SETTINGS) if getattr(options, name) is not None}
    if options.method is None and (options.beam or 1) > 1 and task.decodes:
        chosen["method"] = "beam"
    config = replace(kept, **chosen)
    check_values(config, "evaluation.")
    if not task.decodes and not task.metrics:
        if config.method == "beam":
            raise UserError(f"--method beam is for text to text: {task.what} decodes by greedy or sample")
        config = replace(config, method="sample" if config.method == "auto" else config.method)
    most = context - 1 if task.decodes else config.new_tokens
    if options.min_length is not None and options.min_length > most and not task.metrics:
        what = "the model's context" if task.decodes else "--new-tokens"
        raise UserError(f"--min-length {options.min_length} is above the {most:,} tokens that {what} allows")
    if options.nbest is not None:
        if options.nbest < 1:
            raise UserError(f"--nbest {options.nbest} must be at least 1")
        beam = config.beam if task.decodes and decoding_method(config) == "beam" else 1
        if options.nbest > beam:
            mend = f"name --method beam --beam {options.nbest}" if task.decodes else "that is for text to text"
            raise UserError(f"--nbest {options.nbest} needs a beam of as many hypotheses (here {beam}): {mend}")
    return config


def _decoded(
    options: Any,
    loaded: LoadedModel,
    config: EvaluationConfig,
    texts: list[str],
    done: int,
    notes: Console,
    *,
    is_stream: bool,
) -> Iterator[str]:
    """The line for each text; ``done`` is the number of texts before."""
    from tfx.evaluation.generation import generate, generate_records

    settings: dict[str, Any] = {
        "seed": 1 if options.seed is None else options.seed,
        "first": done,
        "prefix": options.prefix or "",
        "note": lambda message: notes.print(f"note: {message}"),
    }
    if options.json or options.nbest is not None:
        records = generate_records(loaded.model, loaded.tokenizer, texts, config, best=options.nbest, **settings)
        yield from (json.dumps(record, ensure_ascii=False) for record in records)
        return
    outputs = generate(loaded.model, loaded.tokenizer, texts, config, **settings)
    for text, output in zip(texts, outputs, strict=True):
        shown = output if not is_stream else (text + output).replace("\\", "\\\\").replace("\n", "\\n")
        yield shown.replace("\r", " ")


def _without_effect(options: Any, config: EvaluationConfig, vocab_size: int, task: TaskFacts) -> list[str]:
    """Notes which options have no effect, and why."""
    from tfx.evaluation.generation import ignored_settings

    reasons = ignored_settings(config)
    if not task.decodes:
        reasons["prefix"] = "only outputs of text to text have one"
    if task.metrics:  # labels are no texts that are written
        reasons = dict.fromkeys(("method", "prefix", "seed", *_SETTINGS), f"{task.what} writes no text")
    if task.decodes:
        reasons["new_tokens"] = "an output of text to text ends by itself"
    if options.json:
        reasons.pop("length_penalty", "")  # it is part of the scores
    if config.top_k is not None and config.top_k >= vocab_size:
        reasons.setdefault("top_k", f"the vocabulary has {vocab_size:,} tokens")
    return [
        f"--{name.replace('_', '-')} has no effect: {reason}"
        for name, reason in reasons.items()
        if getattr(options, name, None) is not None
    ]


def _as_utf8(text: str, number: int) -> str:
    """A text of the command line, which Python reads in the encoding of the locale; raises `UserError` for no UTF-8."""
    try:
        return text.encode("utf-8", "surrogateescape").decode()
    except UnicodeError:
        raise UserError(f"text {number} on the command line is not UTF-8: convert it") from None


class _Lines:
    """The lines of stdin. A bad one ends them and is kept in ``fault``; all lines before it are complete."""

    def __init__(self) -> None:
        self.fault: UserError | None = None

    def read(self) -> Iterator[str]:
        """Each line without its end, and the first one without a byte order mark."""
        if sys.stdin is None:
            raise UserError("stdin is closed: give the texts as arguments, or as lines on stdin")
        number = 0
        try:
            for line in sys.stdin.buffer:
                text = line.decode("utf-8" if number else "utf-8-sig")
                number += 1
                yield text.removesuffix("\n").removesuffix("\r")
        except UnicodeDecodeError as error:
            byte = error.object[error.start]
            self.fault = UserError(
                f"stdin, line {number + 1}: not UTF-8 (byte {byte:#04x}); lines before it are decoded"
            )
        except (OSError, ValueError) as error:
            reason = getattr(error, "strerror", None) or str(error)
            self.fault = UserError(f"stdin cannot be read after line {number}: {reason}")
