"""A training step: student and teachers in the same numbers, full precision outside, and blocks that run twice."""

import copy
import os
from types import SimpleNamespace

import pytest
import torch
from torch.overrides import TorchFunctionMode

from tfx.config.compose import compose
from tfx.processes.group import Group
from tfx.processes.place import Place
from tfx.run.setup import build_model, read_inputs
from tfx.tasks.batches import training_batches
from tfx.techniques.contract import HeldMeans, Mean
from tfx.techniques.stack import Stack
from tfx.training.parallel import Sharing
from tfx.training.step import Stepper

# `scripts/check_gpu.py` runs these tests on a GPU.
DEVICE = torch.device(os.environ.get("TFX_TEST_DEVICE", "cpu"))
CPU = torch.device("cpu")
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


# --- one of two processes ---------------------------------------------------------------------------


@pytest.mark.parametrize("words", [[], ["technique=[shuffle,mixup]", "technique.mixup.share=1"]])
def test_the_rows_of_one_process_lie_together(here, words):
    """With gaps, their copy to a GPU goes through other memory, for which the host waits."""
    config = compose([*TINY, *words])
    _, data = read_inputs(config)
    model = build_model(config, data, CPU, None)
    stack, sharing = Stack.from_config(config), Sharing(Group(Place(1, 2, 1, 2, "", 0)))
    stepper = Stepper(config, model, stack.prepare_model(model), CPU, stack, 0.1, print, sharing)
    batch = next(
        training_batches(data.splits["train"], data.tokenizer, batch_tokens=1024, context=256, seed=1, start=0)
    )
    (piece,), _ = stepper._pieces([batch], [stepper._changed(batch, 0, 0, 0.5)])
    assert len(piece.rows) > 2
    assert piece.rows.tolist() == batch.rows[1::2].tolist()
    assert (piece.mix is None) == (not words)
    blends = [piece.mix.target, piece.mix.source] if words else []
    values = [value for each in (piece, *blends) for value in vars(each).values() if torch.is_tensor(value)]
    assert len(values) >= 3 + 2 * len(blends)
    assert all(value.is_contiguous() for value in values)


def test_numbers_that_techniques_report_are_not_copied_to_the_device():
    """Such a copy waits until the device has done all before it."""

    class NoCopies(TorchFunctionMode):
        def __torch_function__(self, function, types, args=(), kwargs=None):
            assert function not in (torch.as_tensor, torch.tensor)
            return function(*args, **(kwargs or {}))

    class Sent(Sharing):
        def combine(self, parameters, sums, complete):
            return sums

    device = torch.device("meta")
    stepper = SimpleNamespace(sharing=Sent(Group(Place(0, 2, 0, 2, "", 0))), device=device, parameters=[])
    with HeldMeans() as held:
        Mean().add(torch.ones((), device=device), 12)
        Mean().add(3.5, 2)
    with NoCopies():
        Stepper._combine(stepper, torch.zeros((), device=device), held, [])
    assert [(total.device, count.device) for _, total, count in held.merged()] == [(device, device)] * 2
