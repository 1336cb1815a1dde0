"""Bytes at equal loss, one shot: finished runs compressed by tfx and by `nncodec`, the codec of ISO/IEC 15938-17.

    python scripts/bench_codec.py RUN… [--methods trellis gptq nncodec] [--json FILE]

Each method writes files of several sizes without any training, and each file is read back and scored on the whole
validation split. Bytes are those of weights and header, without the tokenizer; at a given loss they are interpolated,
in the logarithm, between neighbouring files. `nncodec` is optional: pip install nncodec==2.1.3.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

import torch
from results.codec import LOSSES, bytes_at
from rich.console import Console
from rich.table import Table

from tfx.compression import checkpoint
from tfx.compression.checkpoint import unique_tensors
from tfx.config import compose
from tfx.evaluation.scoring import score_loss
from tfx.model.transformer import Transformer
from tfx.record.directory import RunDirectory
from tfx.run.setup import Parts, Setup
from tfx.techniques.calibration import Calibration
from tfx.techniques.stack import Stack

# Bits of a weight that add about 0.25 to 0.02 nats to the loss of models of 0.5 to 4 M weights.
RATES = (1.0, 1.3, 1.6, 2.0, 2.4)
STEPS = (-12, -14, -16, -18, -20, -22)  # quantization parameters of nncodec; more is coarser
METHODS: dict[str, list[str]] = {
    "trellis": ["technique.quantize.method=trellis"],
    "gptq": ["technique.quantize.method=gptq"],
}


class Bench:
    """One run: its model, its data and the loss of its dense model."""

    def __init__(self, run: Path) -> None:
        config = compose.load(RunDirectory.open(run).config)
        self._config = compose.change(config, [f"init_from={run}", "trainer.budget.steps=0"])
        self._parts: Parts = Setup(self._config).prepare({})
        self.loss = self._score(self._parts.model)

    def _score(self, model: Transformer) -> float:
        data = self._parts.data
        score = score_loss(
            model.eval(),
            data.splits["valid"],
            data.tokenizer,
            batch_tokens=self._config.evaluation.batch_tokens,
            device=self._parts.device,
        )
        return score.total_nll / score.total_targets

    def _copy(self) -> Transformer:
        model = self._parts.model
        state = {name: weight.clone() for name, weight in unique_tensors(model)[0].items()}
        aliases = {alias: state[name] for alias, name in unique_tensors(model)[1].items()}
        return Transformer.holding(model.architecture, state | aliases)

    def tfx(self, overrides: list[str]) -> dict[str, float]:
        """The file of a quantized copy: its bytes, the loss read back from it, and seconds to make and to load it."""
        config = compose.change(self._config, ["+technique=quantize", *overrides])
        stack = Stack.from_config(config)
        parts = replace(self._parts, config=config, stack=stack, model=self._copy())
        start = time.perf_counter()
        for _ in stack.finish(parts.model, Calibration.on(parts.model, parts.data, config, parts.device)):
            pass
        seconds = time.perf_counter() - start
        with tempfile.TemporaryDirectory() as folder:
            file = Path(folder) / "compressed.safetensors"
            checkpoint.save(file, parts.model, parts.data.tokenizer, config.evaluation, stack.storage())
            account = checkpoint.read_header(file).bytes
            start = time.perf_counter()
            loaded = checkpoint.load(file)
            reading = time.perf_counter() - start
        return {
            "bytes": account.weights + account.header,
            "loss": self._score(loaded.model) - self.loss,
            "seconds": seconds,
            "load": reading,
        }

    def nncodec(self, step: int) -> dict[str, float]:
        """The bitstream of `nncodec` with dependent quantization, at the quantization parameter ``step``."""
        from nncodec import nnc

        model = self._copy()
        weights = {name: weight.numpy() for name, weight in unique_tensors(model)[0].items()}
        start = time.perf_counter()
        with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stdout(None):
            stream = nnc.compress(
                weights,
                bitstream_path=f"{folder}/model.nnc",
                qp=step,
                nonweight_qp=-75,
                use_dq=True,
                return_bitstream=True,
                verbose=False,
            )
            seconds = time.perf_counter() - start
            start = time.perf_counter()
            restored = nnc.decompress(stream)
        reading = time.perf_counter() - start
        with torch.no_grad():
            for name, weight in unique_tensors(model)[0].items():
                weight.copy_(torch.from_numpy(restored[name]))
        return {
            "bytes": len(stream),
            "loss": self._score(model) - self.loss,
            "seconds": seconds,
            "load": reading,
        }


def measure(
    run: Path, methods: list[str], rates: list[float], steps: list[int], more: list[str]
) -> list[dict[str, Any]]:
    """One row for each method and size; each is printed when it is known."""
    bench = Bench(run)
    rows = []
    for method in methods:
        for size in steps if method == "nncodec" else rates:
            if method == "nncodec":
                point = bench.nncodec(int(size))
            else:
                point = bench.tfx([*METHODS[method], f"technique.quantize.rate={size}", *more])
            rows.append({"run": run.name, "method": method, "size": size, **point, "dense_loss": bench.loss})
            print(json.dumps(rows[-1]), flush=True)
    return rows


def show(rows: list[dict[str, Any]], methods: list[str]) -> None:
    table = Table(title="kB of weights and header, mean ± standard deviation over the runs")
    for column in ("method", *(f"+{loss:.2f} nats" for loss in LOSSES)):
        table.add_column(column, justify="right")
    runs = sorted({row["run"] for row in rows})
    for method in methods:
        cells = []
        for loss in LOSSES:
            points = [[row for row in rows if (row["run"], row["method"]) == (run, method)] for run in runs]
            found = [bytes_at(each, loss) for each in points]
            values = [value / 1000 for value in found if value is not None]
            spread = f" ± {stdev(values):.0f}" if len(values) > 1 else ""
            cells.append(f"{fmean(values):.0f}{spread}" if len(values) == len(runs) else "–")
        table.add_row(method, *cells)
    Console().print(table)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__.splitlines()[0], formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("runs", nargs="+", type=Path, metavar="RUN")
    parser.add_argument("--methods", nargs="+", choices=(*METHODS, "nncodec"), default=[*METHODS, "nncodec"])
    parser.add_argument("--rates", nargs="+", type=float, default=list(RATES), help="bits per weight of tfx's files")
    parser.add_argument("--steps", nargs="+", type=int, default=list(STEPS), help="quantization parameters of nncodec")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write all points")
    parser.add_argument("--set", nargs="+", default=[], metavar="OVERRIDE", help="other settings for tfx's methods")
    options = parser.parse_args()
    torch.set_num_threads(1)
    rows = [
        row for run in options.runs for row in measure(run, options.methods, options.rates, options.steps, options.set)
    ]
    show(rows, options.methods)
    if options.json is not None:
        options.json.write_text(json.dumps({"rows": rows}, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
