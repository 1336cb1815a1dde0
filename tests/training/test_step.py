"""A training step: student and teachers in the same numbers, and evaluation in full precision."""

import copy
import os

import pytest
import torch

from tfx.config.compose import compose
from tfx.run.setup import build_model, read_inputs
from tfx.tasks.batches import training_batches
from tfx.techniques.stack import Stack
from tfx.training.step import Stepper

# `scripts/check_gpu.py` runs these tests on a GPU.
DEVICE = torch.device(os.environ.get("TFX_TEST_DEVICE", "cpu"))
TINY = [
    *("model.width=16", "model.heads=2", "model.ffn_width=16", "model.encoder_layers=1", "model.decoder_layers=1"),
    *("dataset.limit.train=40", "dataset.limit.valid=5", "dataset.limit.test=5", "dataset.tokenizer.kind=char"),
    *("trainer.budget.steps=10", "model.dropout=0"),
]


@pytest.mark.parametrize("precision", ["fp32", "mixed", "bf16"])
def test_a_teacher_with_the_students_weights_gives_the_students_states(here, precision):
    config = compose([*TINY, f"trainer.precision={precision}"])
    _, data = read_inputs(config)
    model = build_model(config, data, DEVICE, None)
    stack = Stack.from_config(config)
    stepper = Stepper(config, model.train(), stack.prepare_model(model), DEVICE, stack, 0.1, print)
    batch = next(
        training_batches(data.splits["train"], data.tokenizer, batch_tokens=256, context=256, seed=1, start=0)
    ).to(DEVICE)
    student = stepper._forward(model, batch)
    assert torch.equal(student, stepper._forward(copy.deepcopy(model).eval(), batch))
    outside = model(batch.target_in_BT, batch.source_BS, batch.source_mask_BS)
    assert torch.equal(outside, student) == (precision == "fp32")
    assert torch.equal(outside, model.eval()(batch.target_in_BT, batch.source_BS, batch.source_mask_BS))
