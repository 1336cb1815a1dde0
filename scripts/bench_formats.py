"""What each format of an exported translator weighs, and how fast its library decodes it: one thread for all.

    python scripts/bench_formats.py RUN [--rounds 5] [--inputs 200] [--beam 5] [--json FILE]

Each format is written as `tfx export` does, and decodes the first inputs of the run's test split by beam search: all of
them in the batches of its library (sentences a second), and the first twenty one by one (milliseconds a sentence). All
take turns in one process; printed are medians over the rounds, and the lowest and highest of them.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table

from tfx.compression.checkpoint import LoadedModel, load
from tfx.config.compose import load as load_config
from tfx.config.schema import EvaluationConfig
from tfx.evaluation.engines.ctranslate2 import CTranslate2Engine
from tfx.evaluation.metrics import score_text
from tfx.exchange.run_onnx import OnnxModel
from tfx.exchange.targets import TARGETS
from tfx.model.decoding import Ends, output_limit, translate
from tfx.record.directory import RunDirectory
from tfx.tasks.prepare import prepare_data

Translate = Callable[[Sequence[list[int]]], list[list[int]]]
FORMATS = (
    ("ctranslate2", "float32"),
    ("ctranslate2", "int8"),
    ("onnx", "float32"),
    ("onnx", "int8"),
    ("transformers", "float32"),
)
_BATCH, _ALONE = 64, 20


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--inputs", type=int, default=200)
    parser.add_argument("--beam", type=int, default=5)
    parser.add_argument("--json", type=Path, help="also write the rows to this file")
    options = parser.parse_args()
    torch.set_num_threads(1)
    loaded = load(options.run)
    config = replace(loaded.generation, method="beam", beam=options.beam)
    dataset = load_config(RunDirectory(options.run).config).dataset
    split = prepare_data(dataset, loaded.model.architecture.context, loaded.tokenizer).splits["test"]
    count = min(options.inputs, len(split))
    sources = [[*split.source[row].tolist(), loaded.tokenizer.eos] for row in range(count)]
    with tempfile.TemporaryDirectory() as folder:
        formats = {"tfx": (loaded.path.stat().st_size, _own(loaded, config))}
        for target, kind in FORMATS:
            formats[f"{target} {kind}"] = _exported(options.run, target, kind, config, Path(folder))
        rows = [{"format": name, "bytes": size, "batches": [], "alone": []} for name, (size, _) in formats.items()]
        _race(rows, formats, sources, options.rounds)
        references = [split.texts[row]["references"] for row in range(len(sources))]
        for row in rows:
            texts = [loaded.tokenizer.decode(ids) for ids in formats[row["format"]][1](sources)]
            row["bleu"] = round(score_text(texts, references, ["bleu"]).metrics["bleu"], 2)
    _print(rows)
    if options.json is not None:
        options.json.write_text(json.dumps(rows, indent=1) + "\n")


def _exported(run: Path, target: str, kind: str, config: EvaluationConfig, folder: Path) -> tuple[int, Translate]:
    """Bytes of a format, and what translates with it."""
    plain = load(run, kernels=False)
    context = plain.model.architecture.context
    here = folder / f"{target}-{kind}"
    here.mkdir()
    TARGETS[target].write(plain, here, kind)
    size = sum(file.stat().st_size for file in here.iterdir())
    if target == "transformers":
        theirs = TARGETS[target].reopen(here, plain)

        def run_theirs(sources: Sequence[list[int]]) -> list[list[int]]:
            found: list[list[int]] = []
            for batch in _batches(sources, 32):
                limit = output_limit(max(map(len, batch)), config, context)
                found += theirs.beam(batch, limit, config.beam)
            return _in_order(sources, found)

        return size, run_theirs
    engine = (CTranslate2Engine if target == "ctranslate2" else OnnxModel)(here, plain)
    plain.model.engine = engine
    return size, _own(plain, config)


def _own(loaded: LoadedModel, config: EvaluationConfig) -> Translate:
    tokenizer = loaded.tokenizer
    ends = Ends(tokenizer.bos, tokenizer.eos, tokenizer.pad, tokenizer.never)
    context = loaded.model.architecture.context

    def run(sources: Sequence[list[int]]) -> list[list[int]]:
        found: list[list[int]] = []
        for batch in _batches(sources, _BATCH):
            longest = max(map(len, batch))
            ids = torch.tensor([[*row, *[tokenizer.pad] * (longest - len(row))] for row in batch])
            mask = torch.arange(longest) < torch.tensor([[len(row)] for row in batch])
            limits = torch.tensor([output_limit(len(row), config, context) for row in batch])
            found += translate(loaded.model, ids, None if bool(mask.all()) else mask, limits, ends, config)
        return _in_order(sources, found)

    return run


def _by_length(sources: Sequence[list[int]]) -> list[int]:
    return sorted(range(len(sources)), key=lambda row: len(sources[row]))


def _batches(sources: Sequence[list[int]], size: int) -> list[list[list[int]]]:
    order = _by_length(sources)
    return [[sources[row] for row in order[first : first + size]] for first in range(0, len(order), size)]


def _in_order(sources: Sequence[list[int]], found: list[list[int]]) -> list[list[int]]:
    outputs: list[list[int]] = [[] for _ in sources]
    for row, ids in zip(_by_length(sources), found, strict=True):
        outputs[row] = ids
    return outputs


def _race(rows: list[dict], formats: dict[str, tuple[int, Translate]], sources: list[list[int]], rounds: int) -> None:
    alone = sources[:_ALONE]
    for turn in range(rounds + 1):
        for row in rows:
            work = formats[row["format"]][1]
            start = time.perf_counter()
            work(sources)
            middle = time.perf_counter()
            for ids in alone:
                work([ids])
            end = time.perf_counter()
            if turn:  # the first round warms up
                row["batches"].append(len(sources) / (middle - start))
                row["alone"].append(1000 * (end - middle) / len(alone))
    for row in rows:
        for name, digits in (("batches", 1), ("alone", 2)):
            values = row.pop(name)
            row[name] = round(statistics.median(values), digits)
            row[f"{name}_spread"] = [round(min(values), digits), round(max(values), digits)]


def _print(rows: list[dict]) -> None:
    table = Table("format", "bytes", "sentences/s in batches", "ms a sentence alone", "BLEU")
    for row in rows:
        spreads = [
            f"{row[name]} ({row[f'{name}_spread'][0]} to {row[f'{name}_spread'][1]})" for name in ("batches", "alone")
        ]
        table.add_row(row["format"], f"{row['bytes']:,}", *spreads, str(row["bleu"]))
    Console().print(table)


if __name__ == "__main__":
    main()
