"""`tfx export RUN --to NAME --output DIR`: a model for another library, checked there."""

from __future__ import annotations

import json
import sys
from argparse import Namespace
from collections.abc import Callable, Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tfx.commands.evaluate import config_of
from tfx.errors import UserError, unknown
from tfx.record.files import write_text
from tfx.terminal.arguments import Arguments
from tfx.terminal.console import plain_console
from tfx.terminal.tables import Column, Sheet

if TYPE_CHECKING:
    from tfx.compression.checkpoint import LoadedModel
    from tfx.exchange.target import Reopened
    from tfx.run.export_check import Comparison

# The targets; each is a file of `tfx.exchange`.
NAMES = ("transformers", "ctranslate2", "onnx", "gguf", "safetensors")


def main(arguments: Sequence[str]) -> int:
    """Writes the folder, and prints how the model in it differs from ours."""
    parser = Arguments(
        "export",
        "Writes a run's final model for another library, opens it there, and compares both on real inputs: "
        "log-probabilities of the references, and greedy outputs. Where they differ, nothing is left.",
    )
    parser.add_argument("path", type=Path, metavar="RUN|FILE", help="a run directory or a model file")
    parser.add_argument(
        "overrides", nargs="*", default=[], help="for a model file, the data to compare on: dataset=… dataset.path=…"
    )
    parser.add_argument("--to", required=True, metavar="NAME", help=", ".join(NAMES))
    parser.add_argument("--output", type=Path, required=True, metavar="DIR", help="the folder to make")
    parser.add_argument("--numbers", metavar="TYPE", help="type of the weights (default float32), such as int8")
    parser.add_argument("--inputs", type=int, default=200, help="inputs that are compared (default 200)")
    parser.add_argument(
        "--texts", type=Path, metavar="FILE", help="for an encoder, the texts to compare on, one a line"
    )
    parser.add_argument("--card", action="store_true", help="also write README.md, a model card")
    parser.add_argument("--json", action="store_true", help="as JSON on stdout")
    options = parser.read(arguments)
    if options.to not in NAMES:
        raise unknown("--to", options.to, NAMES)
    if options.inputs < 1:
        raise UserError(f"--inputs {options.inputs} is out of range: it must be at least 1")
    if options.output.exists():
        raise UserError(f"--output {options.output} exists already: name a new folder")

    found, facts, compared = _export(options)
    if options.json:
        print(json.dumps(facts | asdict(found), indent=2))
        return 0
    table = Sheet(Column("", wrap=False, style="cyan"), Column(""), title=str(options.output), lines=False)
    table.add_row("written for", f"{facts['target']}, weights in {facts['numbers']}, {facts['bytes']:,} bytes")
    for name, text in compared.items():
        table.add_row(name, text)
    plain_console().print(table)
    if facts["kept_codes"]:
        what = f"{facts['kept_codes']} matrices have the 8-bit codes of the compressed file, others are rounded here"
        print(f"note: {what}", file=sys.stderr)
    elif facts["dequantized"]:
        print("note: the weights are those of the compressed file, dequantized", file=sys.stderr)
    return 0


def _export(options: Namespace) -> tuple[Comparison, dict[str, Any], dict[str, str]]:
    """Writes the folder; returns the comparison, facts for JSON, and the comparison in words."""
    from tfx.compression.checkpoint import load
    from tfx.exchange.importing import local_model
    from tfx.exchange.target import fitted
    from tfx.exchange.targets import TARGETS
    from tfx.model.early_exit import set_exits
    from tfx.run.card import card
    from tfx.run.export_check import export
    from tfx.run.export_labels import compare_labels
    from tfx.run.export_states import compare_states
    from tfx.run.export_texts import compare_texts
    from tfx.tasks.prepare import prepare_data

    target = TARGETS[options.to]
    target.require(f"--to {target.name}")
    kind = options.numbers or target.kinds[0]
    if kind not in target.kinds:
        raise unknown("--numbers", kind, target.kinds)
    if (note := target.note(kind)) is not None:
        print(f"note: {note}", file=sys.stderr)
    path = local_model(options.path)
    # Plain layers: the weights as they are, dequantized.
    loaded = load(path, kernels=False)
    loaded = fitted(loaded, target)
    if loaded.model.architecture.exits:
        print(f"note: {options.path}: texts leave it early here, and not in {target.name}", file=sys.stderr)
        set_exits(loaded.model, ())
    if (outputs := loaded.model.architecture.outputs) is not None and outputs.windows:
        what = f"reads texts over {loaded.model.architecture.context:,} tokens in windows and averages what it predicts"
        print(f"note: {options.path} {what}; the model in {target.name} reads one window", file=sys.stderr)
    architecture = loaded.model.architecture
    target.check(architecture)
    is_encoder = architecture.family == "encoder"
    if is_encoder != (options.texts is not None):
        raise UserError(f"{options.path}: --texts FILE is needed for an encoder, and for no other model")
    where = "the texts" if is_encoder else ""

    def finish(folder: Path, found: Comparison) -> None:
        if options.card:
            run = path if path.is_dir() else None
            words = "; ".join(f"{name}: {text}" for name, text in found.words(where).items())
            write_text(folder / "README.md", card(loaded, run, target.name, kind, _bytes(folder), words))

    compare: Callable[[LoadedModel, Reopened], Comparison]
    if is_encoder:
        compare = partial(compare_states, texts=_texts(options.texts, options.inputs))
    else:
        config = config_of(path, options.overrides, options.path)
        data = prepare_data(config.dataset, architecture.context, loaded.tokenizer, outputs=architecture.outputs)
        where = data.test_split
        inputs = {"split": data.splits[where], "count": options.inputs}
        if architecture.outputs is not None:
            compare = partial(compare_labels, **inputs)
        else:
            compare = partial(compare_texts, **inputs, metrics=config.dataset.metrics[:1])
    found = export(loaded, target, options.output, kind, compare, finish)
    dequantized = any(tensor.codec.split()[0] != "dense" for tensor in loaded.tensors)
    facts = {"folder": str(options.output), "target": target.name, "numbers": kind, "bytes": _bytes(options.output)}
    facts |= {"dequantized": dequantized, "kept_codes": target.kept(loaded, kind)}
    return found, facts, found.words(where)


def _bytes(folder: Path) -> int:
    return sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())


def _texts(path: Path, count: int) -> list[str]:
    """The first ``count`` lines of a file that are not empty."""
    try:
        lines = [line for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"--texts {path} cannot be read: {error}") from error
    if not lines:
        raise UserError(f"--texts {path} has no text: write one a line")
    return lines[:count]
