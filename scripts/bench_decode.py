"""How fast tfx decodes: against `transformers` and CTranslate2, with the same weights, one thread each.

    python scripts/bench_decode.py RUN [--also FILE …] [--rounds 5] [--sentences 1000] [--single 200] [--beams 1 5]
        [--peers transformers ctranslate2] [--json FILE]

RUN is a text-to-text run that both can open, such as one of `model.positions=sinusoidal`; `tfx export` writes it for
them first. Decodes the sources of its test split, one by one (``--single`` of them) and in batches, greedily and by a
beam. Each measurement is a fresh process; arms take turns, so that a slow minute of the machine hits all. The time is
that from tokens to text, after a warm-up. Of several batch sizes of an arm, the one that was fastest in the first round
stays. With CTranslate2 there is an arm for tfx that decodes by it. Prints medians with lowest and highest, how many
times as fast tfx is in the same round, and BLEU; it asserts nothing. ``--also`` decodes other model files by tfx, such
as a compressed one.

    pip install 'tfx[transformers,ctranslate2]'
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

Result = dict[str, Any]
PEERS = ("transformers", "ctranslate2")
# Sentences at once: tokens of a batch for tfx (``evaluation.batch_tokens``), examples for the peers.
SIZES = {"tfx": (4096, 8192, 16384), "transformers": (16, 32, 64), "ctranslate2": (32, 64, 128)}
WARM = 8


# --- one measurement, in a process of its own ----------------------------------------------------------


def measure(task: Result) -> Result:
    """Seconds for the sentences of a task, and its outputs."""
    import torch

    from tfx.compression.checkpoint import load

    torch.set_num_threads(1)
    loaded = load(task["model"])
    sources = loaded.tokenizer.encode([text.strip() for text in task["sources"]])
    sources = [[*ids[: loaded.model.architecture.context - 1], loaded.tokenizer.eos] for ids in sources]
    decode = {"tfx": by_tfx, "transformers": by_transformers, "ctranslate2": by_ctranslate2}[task["library"]](
        task, loaded
    )
    alone = task["size"] == 1
    for source in sources[:WARM]:
        decode([source])
    start = time.perf_counter()
    outputs = [decode([source])[0] for source in sources] if alone else decode(sources)
    return {"seconds": time.perf_counter() - start, "outputs": outputs}


def by_tfx(task: Result, loaded: Any) -> Callable[[list[list[int]]], list[str]]:
    from dataclasses import replace

    from tfx.data.ragged import Ragged
    from tfx.evaluation.engines.opening import open_engine
    from tfx.tasks.seq2seq import decode_sources

    method = "beam" if task["beam"] > 1 else "greedy"
    tokens = max(task["size"], 64)
    config = replace(loaded.generation, method=method, beam=task["beam"], length_penalty=1.0, batch_tokens=tokens)
    if task.get("engine"):
        config = replace(config, engine=task["engine"])
        loaded.model.engine = open_engine(loaded, config)

    def decode(sources: list[list[int]]) -> list[str]:
        rows = Ragged.from_lists([ids[:-1] for ids in sources], np.int64)  # it adds the end token itself
        return decode_sources(loaded.model, rows, loaded.tokenizer, config, seed=0)

    return decode


def by_transformers(task: Result, loaded: Any) -> Callable[[list[list[int]]], list[str]]:
    import torch
    import transformers

    transformers.utils.logging.disable_progress_bar()
    transformers.utils.logging.set_verbosity_error()
    model = transformers.AutoModelForSeq2SeqLM.from_pretrained(task["folder"], dtype=torch.float32).eval()
    pad = loaded.tokenizer.pad

    def batch(sources: list[list[int]]) -> list[str]:
        longest = max(map(len, sources))
        ids = torch.tensor([[*row, *[pad] * (longest - len(row))] for row in sources])
        mask = torch.tensor([[1] * len(row) + [0] * (longest - len(row)) for row in sources])
        with torch.inference_mode():
            found = model.generate(
                ids,
                attention_mask=mask,
                max_new_tokens=2 * longest + 10,
                max_length=None,
                num_beams=task["beam"],
                do_sample=False,
                length_penalty=1.0,
            )
        return [loaded.tokenizer.decode(until_end(row[1:], loaded.tokenizer.eos)) for row in found.tolist()]

    return lambda sources: in_batches(batch, sources, task["size"])


def by_ctranslate2(task: Result, loaded: Any) -> Callable[[list[list[int]]], list[str]]:
    import ctranslate2

    from tfx.exchange.to_ctranslate2 import vocabulary

    words = vocabulary(loaded)
    numbers = {word: number for number, word in enumerate(words)}
    translator = ctranslate2.Translator(
        task["folder"], device="cpu", compute_type=task["numbers"], inter_threads=1, intra_threads=1
    )

    def decode(sources: list[list[int]]) -> list[str]:
        found = translator.translate_batch(
            [[words[token] for token in ids] for ids in sources],  # it sorts by length itself
            beam_size=task["beam"],
            length_penalty=1.0,
            max_batch_size=task["size"],
            max_decoding_length=2 * max(map(len, sources)) + 10,
        )
        return [loaded.tokenizer.decode([numbers[word] for word in one.hypotheses[0]]) for one in found]

    return decode


def in_batches(decode: Callable[[list[list[int]]], list[str]], sources: list[list[int]], size: int) -> list[str]:
    """Outputs in order, of batches of similar lengths."""
    outputs = [""] * len(sources)
    order = sorted(range(len(sources)), key=lambda place: len(sources[place]))
    for first in range(0, len(order), size):
        places = order[first : first + size]
        for place, text in zip(places, decode([sources[place] for place in places]), strict=True):
            outputs[place] = text
    return outputs


def until_end(ids: list[int], end: int) -> list[int]:
    return ids[: ids.index(end)] if end in ids else ids


# --- all of them, in turn ------------------------------------------------------------------------------


def arms(options: argparse.Namespace, folders: dict[str, str]) -> dict[str, Result]:
    """What each arm decodes with, by its name."""
    found: dict[str, Result] = {"tfx": {"library": "tfx", "model": str(options.run)}}
    for file in options.also:
        found[f"tfx {Path(file).parent.name}/{Path(file).name}"] = {"library": "tfx", "model": file}
    for name, folder in folders.items():
        for numbers in ("float32", "int8") if name == "ctranslate2" else (None,):
            arm = {"library": name, "model": str(options.run), "folder": folder, "numbers": numbers}
            found[name if numbers is None else f"{name} {numbers}"] = arm
        if name == "ctranslate2":
            found["tfx, engine=ctranslate2"] = {"library": "tfx", "model": str(options.run), "engine": name}
    return found


def export(options: argparse.Namespace, folder: Path) -> dict[str, str]:
    """The folders that the run was exported to."""
    folders = {}
    for name in options.peers:
        folders[name] = str(folder / name)
        command = [sys.executable, "-m", "tfx", "export", str(options.run), "--to", name, "--output", folders[name]]
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode:
            sys.exit(f"bench_decode: {done.stderr.strip()[-2000:]}")
    return folders


def run(task: Result, folder: Path) -> Result:
    """What a fresh process measures."""
    file = folder / "task.json"
    file.write_text(json.dumps(task))
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, str(Path(__file__).resolve()), "--worker", str(file)],
        env=environment,
        capture_output=True,
        text=True,
    )
    if done.returncode:
        sys.exit(f"bench_decode: {done.stderr.strip()[-2000:]}")
    return dict(json.loads(done.stdout.strip().splitlines()[-1]))


def rounds_of(
    options: argparse.Namespace, beam: int, texts: list[str], folders: dict[str, str], folder: Path, *, alone: bool
) -> Iterator[dict[str, Result]]:
    """The results of each round by arm; the first round tries all batch sizes."""
    chosen: dict[str, tuple[int, ...]] = {}
    for _ in range(options.rounds):
        found = {}
        for name, arm in arms(options, folders).items():
            sizes = chosen.get(name, (1,) if alone else SIZES[arm["library"]])
            tried = {size: run({**arm, "beam": beam, "size": size, "sources": texts}, folder) for size in sizes}
            best = min(tried, key=lambda size: tried[size]["seconds"])
            chosen[name] = (best,)
            found[name] = {**tried[best], "size": best}
        yield found


def table_rows(rounds: list[dict[str, Result]], sentences: int, references: list[Any]) -> list[Result]:
    """For each arm: the median of milliseconds a sentence with the lowest and the highest, how many times as fast the
    first arm is (median of the rounds, lowest, highest), and BLEU.
    """
    from tfx.evaluation.metrics import score_text

    first = next(iter(rounds[0]))
    rows = []
    for name in rounds[0]:
        times = [1e3 * one[name]["seconds"] / sentences for one in rounds]
        ratios = [one[name]["seconds"] / one[first]["seconds"] for one in rounds]
        bleu = score_text(rounds[0][name]["outputs"], references, ["bleu"]).metrics["bleu"]
        rows.append(
            {
                "arm": name,
                "at once": rounds[0][name]["size"],
                "ms a sentence": statistics.median(times),
                "lowest": min(times),
                "highest": max(times),
                "sentences/s": 1e3 / statistics.median(times),
                f"{first} is faster": statistics.median(ratios),
                "from": min(ratios),
                "to": max(ratios),
                "bleu": bleu,
            }
        )
    return rows


def show(title: str, rows: list[Result]) -> None:
    table = Table(*rows[0], title=title)
    for row in rows:
        table.add_row(*(f"{cell:.2f}" if isinstance(cell, float) else str(cell) for cell in row.values()))
    Console(width=150).print(table)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("run", type=Path, help="a run with predictions of its test split")
    parser.add_argument("--also", nargs="*", default=[], metavar="FILE", help="model files that tfx decodes too")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--sentences", type=int, default=1000, help="in batches")
    parser.add_argument("--single", type=int, default=200, help="one by one; 0: none")
    parser.add_argument("--beams", type=int, nargs="+", default=[1, 5], help="1: greedy")
    parser.add_argument("--peers", nargs="*", default=PEERS, choices=PEERS)
    parser.add_argument("--json", type=Path, metavar="FILE", help="where all results go too")
    options = parser.parse_args()

    lines = (options.run / "predictions.jsonl").read_text(encoding="utf-8").splitlines()
    split = [json.loads(line) for line in lines[: max(options.sentences, options.single)]]
    texts = [row["source"] for row in split]
    references = [row["reference"] if isinstance(row["reference"], list) else [row["reference"]] for row in split]
    results: dict[str, list[Result]] = {}
    with tempfile.TemporaryDirectory() as place:
        folders = export(options, Path(place))
        for beam in options.beams:
            for alone in (True, False):
                count = min(len(texts), options.single if alone else options.sentences)
                if not count:
                    continue
                rounds = list(rounds_of(options, beam, texts[:count], folders, Path(place), alone=alone))
                how = "greedy" if beam == 1 else f"beam {beam}"
                title = f"{how}, {count} sentences {'one by one' if alone else 'in batches'}"
                results[title] = table_rows(rounds, count, references[:count])
                show(title, results[title])
    if options.json is not None:
        options.json.write_text(json.dumps(results, indent=2))


if __name__ == "__main__":
    if sys.argv[1:2] == ["--worker"]:
        print(json.dumps(measure(json.loads(Path(sys.argv[2]).read_text()))))
    else:
        main()
