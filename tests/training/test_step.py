"""A training step: student and teachers in the same numbers, full precision outside, and blocks that run twice."""

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
    teacher = copy.deepcopy(model)
    assert torch.equal(student, stepper._forward(teacher, batch))
    full, of_teacher = (
        model(batch.target_in_BT, batch.source_BS, batch.source_mask_BS),
        stepper._forward(teacher.eval(), batch),
    )
    # A mode may have kernels of its own, whose sums are in another order; it has no numbers of its own.
    by_mode, by_precision = (student - of_teacher).norm(), (student - full).norm()
    if precision == "fp32":
        assert by_mode <= 1e-5 * student.norm()
        assert by_precision == 0
    else:
        assert by_mode < by_precision / 2
    outside = model.eval()(batch.target_in_BT, batch.source_BS, batch.source_mask_BS)
    torch.testing.assert_close(outside, full)


@pytest.mark.parametrize(
    "words", [["technique=prune"], ["technique=quantize", "technique.quantize.group=16"]], ids=["mask", "grid"]
)
def test_blocks_that_run_again_backwards_see_masks_and_grids_too(here, words):
    gradients = []
    for checkpointing in ("false", "true"):
        own = [f"trainer.activation_checkpointing={checkpointing}", "trainer.precision=fp32"]
        config = compose([*TINY, *words, *own])
        _, data = read_inputs(config)
        model = build_model(config, data, DEVICE, None).train()
        model.set_checkpointing(config.trainer.activation_checkpointing)
        stack = Stack.from_config(config)
        stepper = Stepper(config, model, stack.prepare_model(model), DEVICE, stack, 0.1, print)
        stack.view.update(model, 0.9)
        batch = next(
            training_batches(data.splits["train"], data.tokenizer, batch_tokens=256, context=256, seed=1, start=0)
        )
        assert stepper._gradients([batch], [batch], 0, 0.9) is not None
        gradients.append([parameter.grad for parameter in model.parameters()])
    assert all(map(torch.equal, *gradients))
