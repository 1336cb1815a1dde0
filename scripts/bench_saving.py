"""What saving the training state costs: seconds that training stands still, and seconds of the thread that writes.

python scripts/bench_saving.py dataset=normalize model=seq2seq_base
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from pathlib import Path

import torch
from in_turn import real_batches
from rich.console import Console
from rich.table import Table

from tfx.config.compose import compose
from tfx.model.device import choose_device
from tfx.run.setup import build_model, read_inputs
from tfx.techniques.stack import Stack
from tfx.terminal.console import size
from tfx.training.loop import Observer, Trainer
from tfx.training.state import StateSaver, saved_states


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5)
    options, overrides = parser.parse_known_args()
    config = compose([*overrides, "trainer.budget.steps=1000000"])
    device = choose_device(config.trainer.device)
    origin, data = read_inputs(config)
    model = build_model(config, data, device, origin)
    trainer = Trainer(config, model, data, device, Observer(), Stack.from_config(config))
    trainer.stepper.take([next(real_batches(config, data))], 1.0, 0, 0.0)  # so that the optimizers have moments
    still, whole = [], []
    with tempfile.TemporaryDirectory() as name:
        saver = StateSaver(Path(name), 1)
        for step in range(options.rounds):
            start = time.perf_counter()
            saver.save(step, trainer.state())
            still.append(time.perf_counter() - start)
            saver.wait()
            whole.append(time.perf_counter() - start)
        bytes_ = saved_states(Path(name))[0].stat().st_size
        saver.close()
    every = 60 * config.trainer.save.every_minutes if config.trainer.save.every_minutes else None
    parameters = sum(parameter.numel() for parameter in model.parameters())
    table = Table(title=f"{config.model.name}: {parameters:,} parameters, a state of {size(bytes_)}, {device}")
    for column in ("", "seconds (median)", "lowest", "highest", "share of trainer.save.every_minutes"):
        table.add_column(column, justify="right")
    for label, values in (("training stands still", still), ("until it is on the disk", whole)):
        share = f"{statistics.median(values) / every:.3%}" if every else "-"
        table.add_row(label, *(f"{cell:.3f}" for cell in (statistics.median(values), min(values), max(values))), share)
    Console().print(table)


if __name__ == "__main__":
    torch.manual_seed(0)
    main()
