"""`tfx generate RUN [TEXT…]`: exactly one line out for one line in."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any

from tfx.config.schema import EvaluationConfig
from tfx.config.tasks import facts_of
from tfx.errors import UserError
from tfx.record.arguments import Arguments
from tfx.record.console import plain_console

_LINES_AT_ONCE = 256


def main(arguments: Sequence[str]) -> int:
    """Decodes the texts, or the lines of stdin; prints only the results to stdout."""
    parser = Arguments(
        "generate",
        "Decodes each TEXT, or each line of stdin. Text to text: its output; a language model: the text "
        "and its continuation, line ends written as \\n so that one line stays one line; classification: its label, of "
        "pairs of texts that a tab separates too.",
    )
    parser.add_argument("path", type=Path, metavar="RUN|FILE", help="a run directory or a model file")
    parser.add_argument("texts", nargs="*", default=[], metavar="TEXT", help="inputs; none: the lines of stdin")
    parser.add_argument("--method", choices=("greedy", "beam", "sample"), help="default: what the run was scored with")
    parser.add_argument("--beam", type=int, help="hypotheses kept by beam search")
    parser.add_argument("--temperature", type=float, help="of sampling")
    parser.add_argument("--top-k", type=int, help="sampling: only the k likeliest tokens")
    parser.add_argument("--top-p", type=float, help="sampling: the likeliest tokens up to this mass")
    parser.add_argument("--new-tokens", type=int, help="largest number of tokens that a language model adds")
    parser.add_argument("--seed", type=int, help="sampling: seed (default 1)")
    parser.add_argument("--device", default="cpu", help="cpu (default), cuda, cuda:N, mps or auto")
    options = parser.read(arguments)

    from tfx.compression.checkpoint import load
    from tfx.config.checks import check_values
    from tfx.evaluation.generation import describe_decoding, generate
    from tfx.exchange.importing import local_file

    loaded = load(local_file(options.path), options.device)
    names = ("method", "beam", "temperature", "top_k", "top_p", "new_tokens")
    chosen = {name: getattr(options, name) for name in names if getattr(options, name) is not None}
    config = replace(loaded.generation, **chosen)
    check_values(config, "evaluation.")
    task = facts_of(loaded.model.architecture.family, options.path)
    if not task.decodes:
        if config.method == "beam":
            raise UserError(f"--method beam is for text to text: {task.what} decodes by greedy or sample")
        config = replace(config, method="sample" if config.method == "auto" else config.method)
    notes = plain_console(stderr=True)
    for option in _without_effect(options, config, loaded.tokenizer.vocab_size, task.decodes):
        notes.print(f"note: {option}")
    scored, used = describe_decoding(loaded.generation), describe_decoding(config)
    if scored != used and task.decodes:
        notes.print(f"note: decoding by {used}; the run was scored with {scored}")
    texts = [_as_utf8(text, number) for number, text in enumerate(options.texts, start=1)]
    source = _Lines()
    lines = iter(texts) if texts else source.read()
    done = 0
    while batch := list(islice(lines, _LINES_AT_ONCE)):
        for number, text in enumerate(batch, start=done + 1):
            if "\r" in text:
                notes.print(f"note: line {number}: a carriage return in it ends no line here, unlike in data files")
        outputs = generate(
            loaded.model,
            loaded.tokenizer,
            batch,
            config,
            seed=1 if options.seed is None else options.seed,
            first=done,
            note=lambda message: notes.print(f"note: {message}"),
        )
        done += len(batch)
        for text, output in zip(batch, outputs, strict=True):
            shown = output if not task.is_stream else (text + output).replace("\\", "\\\\").replace("\n", "\\n")
            sys.stdout.write(shown.replace("\r", " ") + "\n")
        sys.stdout.flush()
    if source.fault is not None:
        raise source.fault
    return 0


def _without_effect(options: Any, config: EvaluationConfig, vocab_size: int, decodes: bool) -> list[str]:
    """Notes which options have no effect, and why."""
    from tfx.evaluation.generation import ignored_settings

    reasons = ignored_settings(config)
    if decodes:
        reasons["new_tokens"] = "an output of text to text ends by itself"
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
