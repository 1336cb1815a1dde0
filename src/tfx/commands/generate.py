"""`tfx generate RUN [TEXT…]`: exactly one line out for one line in."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import islice
from pathlib import Path

from tfx.errors import UserError
from tfx.run.arguments import Arguments

_LINES_AT_ONCE = 256


def main(arguments: Sequence[str]) -> int:
    """Decodes the texts, or the lines of stdin; nothing else goes to stdout."""
    parser = Arguments(
        "generate",
        "Decodes each TEXT, or each line of stdin. Text to text: its output; a language model: the text "
        "and its continuation, line ends written as \\n so that one line stays one line.",
    )
    parser.add_argument("path", type=Path, metavar="RUN|FILE", help="a run directory or a model file")
    parser.add_argument("texts", nargs="*", metavar="TEXT", help="inputs; none: the lines of stdin")
    parser.add_argument("--method", choices=("greedy", "beam", "sample"), help="default: what the run was scored with")
    parser.add_argument("--beam", type=int, help="hypotheses kept by beam search")
    parser.add_argument("--temperature", type=float, help="of sampling")
    parser.add_argument("--top-k", type=int, help="of sampling: only the k likeliest tokens")
    parser.add_argument("--top-p", type=float, help="of sampling: the likeliest tokens up to this mass")
    parser.add_argument("--new-tokens", type=int, help="how many a language model adds at most")
    parser.add_argument("--seed", type=int, default=1, help="of sampling (default 1)")
    parser.add_argument("--device", default="cpu", help="cpu (default), cuda, cuda:N, mps or auto")
    options = parser.read(arguments)

    from tfx.compression.checkpoint import load
    from tfx.config.compose import check_values
    from tfx.evaluation.generation import generate

    loaded = load(options.path, options.device)
    names = ("method", "beam", "temperature", "top_k", "top_p", "new_tokens")
    chosen = {name: getattr(options, name) for name in names if getattr(options, name) is not None}
    config = replace(loaded.generation, **chosen)
    check_values(config, "evaluation.")
    is_lm = not loaded.model.architecture.is_seq2seq
    if is_lm:
        if config.method == "beam":
            raise UserError("--method beam is for text to text: a language model decodes by greedy or sample")
        config = replace(config, method="sample" if config.method == "auto" else config.method)
    lines = iter(options.texts) if options.texts else _stdin_lines()
    while batch := list(islice(lines, _LINES_AT_ONCE)):
        outputs = generate(loaded.model, loaded.tokenizer, batch, config, seed=options.seed)
        for text, output in zip(batch, outputs, strict=True):
            shown = (text + output).replace("\\", "\\\\").replace("\n", "\\n") if is_lm else output
            sys.stdout.write(shown.replace("\r", " ") + "\n")
        sys.stdout.flush()
    return 0


def _stdin_lines() -> Iterator[str]:
    try:
        for line in sys.stdin.buffer:
            yield line.decode("utf-8").removesuffix("\n").removesuffix("\r")
    except UnicodeDecodeError as error:
        raise UserError(f"stdin is not UTF-8: {error}") from None
