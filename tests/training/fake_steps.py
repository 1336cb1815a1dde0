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
from torch._subclasses.fake_tensor import unset_fake_temporarily

from tfx.config.compose import compose
from tfx.model.architecture import Architecture
from tfx.model.transformer import Transformer
from tfx.run.setup import read_inputs
from tfx.tasks.batches import training_batches
from tfx.tasks.prepare import PreparedData
from tfx.techniques.contract import Teacher
from tfx.techniques.quantize.codebook import encode_with
from tfx.techniques.stack import Stack
from tfx.training.step import Stepper, StepResult

TINY = [
    *("model.width=16", "model.heads=2", "model.ffn_width=16", "model.encoder_layers=1", "dataset.tokenizer.kind=char"),
    *("dataset.limit.train=40", "dataset.limit.valid=5", "dataset.limit.test=5"),
    *("trainer.budget.steps=10", "trainer.precision=bf16"),
]
PAIRS = ["model.decoder_layers=1"]
LABELS = ["model=encoder_tiny", "dataset=kinds", "+technique=distill"]
CASES = {
    "data, masks": ["+technique=[shuffle,mixup,prune]", "technique.shuffle.share=1", "technique.shuffle.side=both"],
    "a teacher": ["+technique=distill", "technique.distill.cache_top_k=4"],
    "grids": [
        *("+technique=quantize", "technique.quantize.start=0", "technique.quantize.learned_step=true"),
        *("technique.quantize.group=16", "technique.quantize.clip=false", "optimizer=adamw"),
    ],
}
OF_LABELS = {"a teacher of labels": ["technique.distill.cache_top_k=4"]}
PROGRESS = 0.3


@contextmanager
def prepared() -> Iterator[list[PreparedData]]:
    with pytest.MonkeyPatch.context() as patch, tempfile.TemporaryDirectory() as cache:
        patch.setenv("TFX_CACHE", cache)
        (Path(cache) / "more.txt").write_text("one text without a label\nand another one\n")
        LABELS.append(f"dataset.monolingual={cache}/more.txt")
        yield [read_inputs(compose([*words, *TINY]))[1] for words in (PAIRS, LABELS)]


def take_steps(data: PreparedData, overrides: list[str], device: torch.device) -> StepResult:
    config = compose([*overrides, *TINY])
    stack = Stack.from_config(config)
    architecture = Architecture.from_config(config.model, data.tokenizer.vocab_size, data.outputs)
    with device:
        model, teacher = (Transformer(architecture, config.model) for _ in range(2))
    teacher.to = lambda device: teacher  # it is there, and torch cannot exchange parameters that are fake
    for technique, _ in stack.teacher_needs():
        made = Teacher(teacher, data.tokenizer.fingerprint, data.tokenizer, config.evaluation, Path(), sha256="")
        with unset_fake_temporarily():  # what is kept of the data has values
            technique.receive_teachers([made], data, device)
    stepper = Stepper(config, model, stack.prepare_model(model), device, stack, 0.1, print)
    model.train()
    options: dict[str, Any] = {"batch_tokens": 256, "context": config.model.context, "seed": 1, "start": 0}
    batches = training_batches(data.splits["train"], data.tokenizer, **options)
    # Ramps advance now and then, and may read what they measure.
    stack.view.update(model, PROGRESS)
    return stepper.take([next(batches), next(batches)], 1.0, 0, PROGRESS)


with prepared() as (pairs, labels), fake_gpu() as device:
    for data, words, cases in ((pairs, PAIRS, CASES), (labels, LABELS, OF_LABELS)):
        for name, overrides in cases.items():
            result = take_steps(data, [*words, *overrides], device)
            assert result.refused is not None
            assert result.refused.device == result.norm.device == device
            print(f"{name}: taken")
    weight_RC, book_1L = torch.zeros(6, 4, device=device), torch.zeros(1, 8, device=device)
    assert encode_with(weight_RC, book_1L).codes_RC.device == device
    print("a codebook: used")
    try:
        float(result.norm)
    except Exception as error:
        print(f"a value: {type(error).__name__}")
