"""What each technique costs in training speed: baseline and technique in turn, on the same batches.

    python scripts/bench_techniques.py [--rounds 8] [--steps 15] [overrides of `tfx train` …]

One process and one thread pool: every arm has its own trainer, and the arms take turns of `--steps` optimizer steps.
Prints tokens per second as the median over rounds, and the ratio to the baseline of the same round with its spread.
The teacher of `distill` is the untrained model itself: its forward pass costs what a trained one's does.
"""

from __future__ import annotations

import tempfile
from functools import partial
from pathlib import Path

from in_turn import options_and_overrides, race

from tfx.compression import checkpoint
from tfx.config.compose import compose
from tfx.model.batch import Batch
from tfx.model.device import choose_device
from tfx.run.life import train_teacher
from tfx.run.setup import build_model
from tfx.run.teacher import make_teachers
from tfx.tasks.prepare import prepare_data
from tfx.techniques.stack import Stack
from tfx.terminal.console import RunConsole
from tfx.training.loop import Observer, Trainer

# Where in the budget every technique acts.
_PROGRESS = 0.4

ARMS = {
    "baseline": [],
    # Shares that fall would be measured where they are low.
    "shuffle": ["technique=shuffle", "technique.shuffle.share=0.1", "technique.shuffle.anneal=none"],
    "mixup": ["technique=mixup"],
    "distill": ["technique=distill", "technique.distill.teacher={teacher}"],
    "distill, cached": [
        "technique=distill",
        "technique.distill.teacher={teacher}",
        "technique.distill.cache_top_k=32",
    ],
    "prune": ["technique=prune"],
    "quantize": ["technique=quantize", "technique.quantize.start=0.1"],
}


def main() -> None:
    options, overrides = options_and_overrides(__doc__)
    with tempfile.TemporaryDirectory() as folder:
        teacher = Path(folder) / "teacher.safetensors"
        base = compose([*overrides, "trainer.budget.steps=1000000"])
        device = choose_device(base.trainer.device)
        data = prepare_data(base.dataset, base.model.context)
        checkpoint.save(teacher, build_model(base, data, device, None), data.tokenizer, base.evaluation)
        arms = {}
        for name, choice in ARMS.items():
            words = [word.format(teacher=teacher) for word in choice]
            config = compose([*overrides, *words, "trainer.budget.steps=1000000"])
            stack = Stack.from_config(config)
            teachers = make_teachers(config, stack, device, RunConsole(), train_teacher)
            student = build_model(config, data, device, None)
            stack.data_prepared(teachers, data, student.architecture, device)
            arms[name] = partial(_step, Trainer(config, student, data, device, Observer(), stack))
            student.train()
        race(arms, base, data, options.rounds, options.steps)


def _step(trainer: Trainer, batch: Batch) -> None:
    trainer.prepare(_PROGRESS)
    trainer.stepper.take([batch], 1.0, 0, _PROGRESS)


if __name__ == "__main__":
    main()
