"""`tfx inspect RUN|FILE`: what a model file holds."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict
from math import prod
from pathlib import Path

from tfx.terminal.arguments import Arguments
from tfx.terminal.console import plain_console
from tfx.terminal.tables import Column, Sheet


def main(arguments: Sequence[str]) -> int:
    """Prints per tensor shape, codec, bits per weight, sparsity and bytes, and totals that add up to the file."""
    parser = Arguments("inspect", "What a model file holds, tensor by tensor.")
    parser.add_argument("path", type=Path, metavar="RUN|FILE", help="a run directory or a model file")
    parser.add_argument("--json", action="store_true", help="as JSON on stdout")
    options = parser.read(arguments)

    from tfx.compression.checkpoint import load, read_header, tensor_rows, unique_tensors
    from tfx.exchange.importing import local_file

    file = local_file(options.path)
    header, loaded = read_header(file), load(file, kernels=False)
    weights, aliases = unique_tensors(loaded.model)
    rows = tensor_rows(loaded)
    parameters = sum(prod(tensor.shape) for tensor in loaded.tensors)
    totals = {
        "parameters": parameters,
        "nonzero_parameters": sum(int((weight != 0).sum()) for weight in weights.values()),
        "bytes": asdict(header.bytes),
    }
    if options.json:
        content = {
            "file": str(file),
            "format_version": header.version,
            "architecture": header.architecture.to_dict(),
            "generation": asdict(header.generation),
            "tensors": rows,
            "aliases": aliases,
            **totals,
        }
        print(json.dumps(content, indent=2))
        return 0
    table = Sheet(
        Column("tensor"),
        Column("shape", spare=3, wrap=False),
        Column("codec", spare=4),
        Column("bits/weight", number=True, spare=1),
        Column("sparsity", number=True, spare=2),
        Column("bytes", number=True),
        title=str(file),
    )
    for row in rows:
        table.add_row(
            row["name"],
            " x ".join(map(str, row["shape"])),
            row["codec"],
            f"{row['bits_per_weight']:.2f}",
            f"{row['sparsity']:.1%}",
            f"{row['bytes']:,}",
        )
    table.end_section()
    for name, bytes_ in (
        (f"weights ({parameters:,} parameters)", header.bytes.weights),
        ("tokenizer", header.bytes.tokenizer),
        ("header", header.bytes.header),
        ("file", header.bytes.file),
    ):
        table.add_row(name, "", "", "", "", f"{bytes_:,}")
    console = plain_console()
    console.print(table)
    for alias, stored in aliases.items():
        console.print(f"{alias} is {stored}, stored once")
    return 0
