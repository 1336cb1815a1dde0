"""Takes training steps on a GPU without values, and prints what came of them: run by test_on_device."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from fake_gpu import fake_gpu

from tfx.config.compose import compose
from tfx.model.architecture import Architecture
from tfx.model.transformer import Transformer
from tfx.run.setup import read_inputs
from tfx.tasks.batches import training_batches
from tfx.tasks.prepare import PreparedData
from tfx.techniques.contract import Teacher
from tfx.techniques.stack import Stack
from tfx.training.step import Stepper, StepResult

TINY = [
    *("model.width=16", "model.heads=2", "model.ffn_width=16", "model.encoder_layers=1", "model.decoder_layers=1"),
    *("dataset.limit.train=40", "dataset.limit.valid=5", "dataset.limit.test=5", "dataset.tokenizer.kind=char"),
    *("trainer.budget.steps=10", "trainer.precision=bf16"),
]
CASES = {
    "data, masks": ["+technique=[shuffle,mixup,prune]", "technique.shuffle.share=1", "technique.shuffle.side=both"],
    "a teacher": ["+technique=distill", "technique.distill.cache_top_k=4"],
    "grids": [
        *("+technique=quantize", "technique.quantize.start=0", "technique.quantize.learned_step=true"),
        *("technique.quantize.group=16", "technique.quantize.clip=false", "optimizer=adamw"),
    ],
}
PROGRESS = 0.3


@contextmanager
def prepared() -> Iterator[PreparedData]:
    with pytest.MonkeyPatch.context() as patch, tempfile.TemporaryDirectory() as cache:
        patch.setenv("TFX_CACHE", cache)
        yield read_inputs(compose(TINY))[1]


def take_steps(data: PreparedData, overrides: list[str], device: torch.device) -> StepResult:
    config = compose([*TINY, *overrides])
    stack = Stack.from_config(config)
    with device:
        model, teacher = (
            Transformer(Architecture.from_config(config.model, data.tokenizer.vocab_size), config.model)
            for _ in range(2)
        )
    for technique, _ in stack.teacher_needs():
        made = Teacher(teacher, data.tokenizer.fingerprint, data.tokenizer, config.evaluation, Path(), sha256="")
        technique.receive_teachers([made], data, device)
    stepper = Stepper(config, model, stack.prepare_model(model), device, stack, 0.1, print)
    model.train()
    options: dict[str, Any] = {"batch_tokens": 256, "context": config.model.context, "seed": 1, "start": 0}
    batches = training_batches(data.splits["train"], data.tokenizer, **options)
    # Ramps advance now and then, and may read what they measure.
    stack.view.update(model, PROGRESS)
    return stepper.take([next(batches), next(batches)], 1.0, 0, PROGRESS)


with prepared() as data, fake_gpu() as device:
    for name, overrides in CASES.items():
        result = take_steps(data, overrides, device)
        assert result.refused is not None
        assert result.refused.device == result.norm.device == device
        print(f"{name}: taken")
    try:
        float(result.norm)
    except Exception as error:
        print(f"a value: {type(error).__name__}")
