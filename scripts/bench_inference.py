"""How fast a compressed or smaller model decodes: plain fp32 against bf16, int8 kernels and structured pruning.

    python scripts/bench_inference.py [--rounds 7] [--tokens 32] [--source 24] [overrides of `tfx train` …]

Greedy decoding of an untrained model of the config (`model=seq2seq_small` where none is named), which costs what a
trained one's does, for batches of 1 and 32. All arms take turns in one process; prints the median milliseconds of a
decoding, and the speed-up over fp32 in the same round with its spread.
"""

from __future__ import annotations

import argparse
import statistics
import time

import torch
from rich.console import Console
from rich.table import Table

from tfx.compression.int8 import use_int8
from tfx.config.compose import compose
from tfx.model.architecture import Architecture
from tfx.model.decoding import Decoder
from tfx.model.transformer import Transformer, initialise
from tfx.techniques.prune.structure import StructureSettings, plan_structure
from tfx.techniques.quantize.rounding import GridKind, nearest

VOCABULARY = 8000


def build(overrides: list[str]) -> Transformer:
    config = compose(overrides)
    model = Transformer(Architecture.from_config(config.model, VOCABULARY))
    initialise(model, config.seed)
    return model.eval()


def int8(overrides: list[str]) -> Transformer:
    model = build(overrides)
    grids = {name: nearest(p.detach(), GridKind(8)) for name, p in model.named_parameters() if p.ndim == 2}
    use_int8(model, grids, {"output.weight": "embedding.weight"})
    return model


def pruned(overrides: list[str], structure: StructureSettings) -> Transformer:
    model = build(overrides)
    plan_structure(model, structure).apply(model)
    return model


@torch.inference_mode()
def decode(model: Transformer, source_BS: torch.Tensor, tokens: int) -> None:
    """So many greedy steps, whatever comes out."""
    decoder = Decoder(model, len(source_BS), 1, model.encode(source_BS, None))
    token_B = source_BS[:, 0]
    for _ in range(tokens):
        token_B = decoder.logits(decoder.step(token_B)).argmax(-1)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--tokens", type=int, default=32)
    parser.add_argument("--source", type=int, default=24)
    options, overrides = parser.parse_known_args()
    if not any(word.startswith("model=") for word in overrides):
        overrides = ["model=seq2seq_small", *overrides]

    half = (len(build(overrides).encoder.blocks) + 1) // 2
    arms = {
        "fp32": build(overrides),
        "bf16": build(overrides).bfloat16(),
        "int8": int8(overrides),
        "half the feed-forward units": pruned(overrides, StructureSettings(ffn=0.5)),
        "half the layers": pruned(overrides, StructureSettings(encoder_layers=half, decoder_layers=half)),
    }
    console = Console()
    for rows in (1, 32):
        source_BS = torch.randint(VOCABULARY, (rows, options.source), generator=torch.Generator().manual_seed(0))
        times: dict[str, list[float]] = {name: [] for name in arms}
        for turn in range(options.rounds + 1):
            for name, model in arms.items():
                start = time.perf_counter()
                decode(model, source_BS, options.tokens)
                if turn:  # the first round warms up
                    times[name].append(time.perf_counter() - start)
        table = Table("arm", "ms (median)", "speed-up (median)", "lowest", "highest", title=f"batch {rows}")
        for name, values in times.items():
            ratios = [own / value for value, own in zip(values, times["fp32"], strict=True)]
            cells = (statistics.median(ratios), min(ratios), max(ratios))
            table.add_row(name, f"{1e3 * statistics.median(values):.1f}", *(f"{cell:.2f}" for cell in cells))
        console.print(table)


if __name__ == "__main__":
    main()
