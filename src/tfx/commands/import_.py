"""`tfx import FOLDER --output FILE`: a model of another library as a model file."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from pathlib import Path

from tfx.errors import UserError
from tfx.terminal.arguments import Arguments
from tfx.terminal.console import plain_console
from tfx.terminal.tables import Column, Sheet


def main(arguments: Sequence[str]) -> int:
    """Converts the folder, and prints what came in."""
    parser = Arguments(
        "import",
        "Converts a model folder of transformers (config.json, safetensors, tokenizer.json) to a model file. "
        "init_from=FOLDER, technique.distill.teacher=FOLDER, evaluate, generate and inspect also read such a folder.",
    )
    parser.add_argument("path", type=Path, metavar="FOLDER", help="a folder that save_pretrained has written")
    parser.add_argument("--output", type=Path, required=True, metavar="FILE", help="the model file to write")
    parser.add_argument("--json", action="store_true", help="as JSON on stdout")
    options = parser.read(arguments)
    _check_output(options.output)

    from tfx.exchange.importing import import_folder
    from tfx.model.transformer import count_parameters

    found = import_folder(options.path, options.output)
    architecture, tokenizer = found.model.architecture, found.tokenizer
    facts = {
        "file": str(options.output),
        "family": found.model_type,
        "parameters": count_parameters(architecture),
        "tokenizer": f"{tokenizer.kind}, {tokenizer.vocab_size:,} entries",
        "bytes": options.output.stat().st_size,
        "left_out": found.left_out,
    }
    if options.json:
        print(json.dumps(facts, indent=2))
        return 0
    table = Sheet(Column("", wrap=False, style="cyan"), Column(""), title=str(options.output), lines=False)
    for name in ("family", "parameters", "tokenizer", "bytes"):
        value = facts[name]
        table.add_row(name, f"{value:,}" if isinstance(value, int) else str(value))
    if found.left_out:
        table.add_row("left out", f"{len(found.left_out)} tensors: {', '.join(found.left_out[:3])} …")
    plain_console().print(table)
    return 0


def _check_output(path: Path) -> None:
    """Raises `UserError`, before anything is read, for a path where no new file can be written."""
    if path.exists():
        raise UserError(f"--output {path} exists already: name a new file")
    if not os.access(path.absolute().parent, os.W_OK):
        reason = "cannot be written to" if path.absolute().parent.is_dir() else "does not exist"
        raise UserError(f"--output {path}: the folder {path.absolute().parent} {reason}")
