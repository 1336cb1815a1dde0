"""`tfx export RUN --to NAME --output DIR`: a model for another library, checked there."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from tfx.commands.evaluate import config_of
from tfx.config.tasks import facts_of
from tfx.errors import UserError, unknown
from tfx.record.arguments import Arguments
from tfx.record.console import plain_console
from tfx.record.sheet import Column, Sheet

# The targets; each is a file of `tfx.exchange`.
NAMES = ("transformers", "ctranslate2")


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
    parser.add_argument("--json", action="store_true", help="as JSON on stdout")
    options = parser.read(arguments)
    if options.to not in NAMES:
        raise unknown("--to", options.to, NAMES)
    if options.inputs < 1:
        raise UserError(f"--inputs {options.inputs} is out of range: it must be at least 1")
    if options.output.exists():
        raise UserError(f"--output {options.output} exists already: name a new folder")

    from tfx.compression.checkpoint import load
    from tfx.exchange.importing import local_model
    from tfx.exchange.targets import TARGETS
    from tfx.run.export import export
    from tfx.tasks.prepare import prepare_data

    target = TARGETS[options.to]
    target.require()
    kind = options.numbers or target.kinds[0]
    if kind not in target.kinds:
        raise unknown("--numbers", kind, target.kinds)
    path = local_model(options.path)
    # Plain layers: the weights as they are, dequantized.
    loaded = load(path, kernels=False)
    facts_of(loaded.model.architecture.family, options.path)
    target.check(loaded.model.architecture)
    config = config_of(path, options.overrides)
    data = prepare_data(config.dataset, loaded.model.architecture.context, loaded.tokenizer)
    split, metrics = data.splits[data.test_split], config.dataset.metrics[:1]
    found = export(loaded, target, split, options.output, kind, options.inputs, metrics)
    size = sum(file.stat().st_size for file in options.output.rglob("*") if file.is_file())
    facts = {"folder": str(options.output), "target": target.name, "numbers": kind, "bytes": size, **asdict(found)}
    if options.json:
        print(json.dumps(facts, indent=2))
        return 0
    table = Sheet(Column("", wrap=False, style="cyan"), Column(""), title=str(options.output), lines=False)
    table.add_row("written for", f"{target.name}, weights in {kind}, {size:,} bytes")
    table.add_row("compared on", f"{found.inputs:,} inputs of {data.test_split}, {found.tokens:,} tokens")
    table.add_row("log-probabilities", f"differ by up to {found.largest:.2g}, {found.mean:.2g} in the mean")
    table.add_row("loss", f"{found.theirs:.5f} nats a token there, {found.loss:.5f} here")
    table.add_row("greedy outputs", f"{found.equal:.1%} equal")
    for name, (theirs, ours) in found.scores.items():
        table.add_row(f"{name} of these", f"{theirs:.2f} there, {ours:.2f} here")
    plain_console().print(table)
    if any(tensor.codec.split()[0] != "dense" for tensor in loaded.tensors):
        print("note: the weights are those of the compressed file, dequantized", file=sys.stderr)
    return 0
