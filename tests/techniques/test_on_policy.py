"""On-policy distillation: what the student writes is drawn from it, keyed, and judged by the teacher alone."""

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from tfx.config.compose import compose
from tfx.config.schema import EvaluationConfig, ModelConfig
from tfx.data.ragged import Ragged
from tfx.errors import UserError
from tfx.model.architecture import Architecture
from tfx.model.batch import IGNORE
from tfx.model.flops import decoding_flops
from tfx.model.transformer import Transformer, initialise, run_batch
from tfx.tasks import task_named
from tfx.tasks.lm import Stream, collate_windows
from tfx.tasks.prepare import PreparedData
from tfx.tasks.seq2seq import Pairs, collate_pairs
from tfx.techniques.contract import Instant, Teacher
from tfx.techniques.stack import Stack
from tfx.training.accounts import batch_flops
from tfx.training.step import Stepper

CPU = torch.device("cpu")
TOKENS = SimpleNamespace(pad=0, bos=1, eos=2, unk=3, never=(0, 1), fingerprint="tokens", text_start=[])
SIZES = {"width": 16, "heads": 2, "ffn_width": 16, "dropout": 0.0, "context": 12}
MODELS = {
    "seq2seq": {"encoder_layers": 1, "decoder_layers": 1},
    "lm": {"family": "lm", "encoder_layers": 0, "decoder_layers": 1},
}


def model(family: str, seed: int) -> Transformer:
    config = ModelConfig(**SIZES, **MODELS[family])
    built = Transformer(Architecture.from_config(config, 20), config)
    initialise(built, seed)
    return built


def batch_of(family: str):
    rng = np.random.Generator(np.random.PCG64(0))
    if family == "lm":
        stream = Stream(rng.integers(4, 20, size=60), text_bytes=60)
        return collate_windows(stream, np.array([0, 10, 20]), 8, TOKENS)
    sides = ([rng.integers(4, 20, size=n).tolist() for n in lengths] for lengths in ((3, 5, 2), (2, 4, 3)))
    return collate_pairs(Pairs(*(Ragged.from_lists(side, np.int64) for side in sides)), np.arange(3), TOKENS)


@pytest.mark.parametrize("family", MODELS)
def test_a_batch_that_the_model_writes_is_a_sample_of_its_own_keyed_by_the_seed(family):
    task, writer, batch = task_named(family), model(family, 1).eval(), batch_of(family)
    written = task.sampled(writer, batch, TOKENS, 5)
    assert torch.equal(task.sampled(writer, batch, TOKENS, 5).target_out_BT, written.target_out_BT)
    others = [task.sampled(writer, batch, TOKENS, seed).target_out_BT for seed in range(6, 10)]
    assert not all(torch.equal(other, written.target_out_BT) for other in others)
    assert not written.is_labelled
    assert written.targets == int((written.target_out_BT >= 0).sum())
    if family == "lm":
        assert torch.equal(written.target_in_BT[:, :4], batch.target_in_BT[:, :4])
        assert (written.target_out_BT[:, :3] == IGNORE).all()
        assert torch.equal(written.target_out_BT[:, 3:-1], written.target_in_BT[:, 4:])
        assert written.target_out_BT.shape == batch.target_out_BT.shape
        return
    lengths = (written.target_out_BT >= 0).sum(1).tolist()
    for row, (length, most) in enumerate(zip(lengths, [6, 10, 8], strict=True)):
        out, into = written.target_out_BT[row, :length], written.target_in_BT[row, :length]
        assert into.tolist() == [TOKENS.bos, *out[:-1].tolist()]
        assert (out == TOKENS.eos).tolist() == [False] * (length - 1) + [bool(out[-1] == TOKENS.eos)]
        assert length <= most
        assert out[-1] == TOKENS.eos or length == most
        assert (written.target_out_BT[row, length:] == IGNORE).all()
    assert written.tokens == int(batch.source_mask_BS.sum()) + sum(lengths)
    assert written.positions == batch.source_BS.numel() + written.target_out_BT.numel()
    assert torch.equal(written.source_BS, batch.source_BS)


def test_the_samples_follow_the_models_probabilities():
    # Of one source many times: the first token's frequencies are the model's probabilities.
    writer, task = model("seq2seq", 3).eval(), task_named("seq2seq")
    with torch.no_grad():
        writer.output.weight.mul_(2)
    source = Ragged.from_lists([[5, 6, 7]] * 2000, np.int64)
    batch = collate_pairs(Pairs(source, Ragged.from_lists([[4]] * 2000, np.int64)), np.arange(2000), TOKENS)
    first = task.sampled(writer, batch, TOKENS, 1).target_out_BT[:, 0]
    logits = writer.project(run_batch(writer, batch))[0, 0]
    logits[list(TOKENS.never)] = -torch.inf
    found = torch.bincount(first, minlength=20) / 2000
    torch.testing.assert_close(found, logits.softmax(0), rtol=0, atol=0.04)
    assert float(found.max()) < 0.9


def stepper_of(family: str, *words: str):
    dataset = ["dataset=text", "model=gpt_nano"] if family == "lm" else []
    teacher = ["technique.distill.teacher=nowhere"]
    config = compose([*dataset, "technique=distill", *teacher, "trainer.precision=fp32", *words])
    stack, student = Stack.from_config(config), model(family, 1)
    (technique, _), *_ = stack.teacher_needs()
    data = PreparedData("data", family, TOKENS, {"train": SimpleNamespace(longest=0)}, "of the data")
    taught = Teacher(model(family, 2), "tokens", TOKENS, EvaluationConfig(), Path(), sha256="")
    technique.receive_teachers([taught], data, CPU)
    return Stepper(config, student.train(), stack.prepare_model(student), CPU, stack, 0.0, print), technique


@pytest.mark.parametrize("family", MODELS)
def test_a_step_on_policy_learns_from_the_teacher_on_what_the_student_wrote(family):
    words = ["technique.distill.on_policy=1", "technique.distill.alpha=0.5", "technique.distill.loss=jensen_shannon"]
    stepper, technique = stepper_of(family, *words)
    batch, student, teacher = batch_of(family), stepper.model, technique.teachers[0].model
    (written,), flops = stepper._rewritten([batch], 3, 0.5)
    assert student.training
    loss, _ = stepper._loss(written, Instant(1, 3, 0, 0.5))
    real = written.target_out_BT.flatten() >= 0
    q, p = (m.project(run_batch(m, written)).flatten(0, 1)[real].softmax(1) for m in (student, teacher))
    m = (p + q) / 2
    expected = (p * (p / m).log() + (q * (q / m).log())).sum() / 2
    # No label says that the student was right.
    torch.testing.assert_close(loss, 0.5 * expected, rtol=1e-4, atol=1e-4)
    result = stepper.take([batch], 1.0, 3, 0.5)
    assert torch.equal(result.batches[0].target_out_BT, written.target_out_BT)
    assert technique.evidence()["on_policy_share"] == 1
    assert result.flops == pytest.approx(flops + batch_flops(teacher, written) + 3 * batch_flops(student, written))
    source = 0 if batch.source_BS is None else batch.source_BS.shape[1]
    ends = [max(i for i, token in enumerate(row) if token >= 0) + 1 for row in written.target_out_BT.tolist()]
    assert flops == sum(decoding_flops(student.architecture, source, end, 1) for end in ends)


def test_the_share_of_batches_is_drawn_by_step_and_only_in_its_part_of_the_budget():
    _, technique = stepper_of("seq2seq", "technique.distill.on_policy=0.3", "technique.distill.end=0.6")
    batch = batch_of("seq2seq")
    seen = []

    def student(work):
        seen.append(work)
        return batch, 0.0

    for step in range(400):
        technique.rewrite_batch(batch, student, Instant(1, step, 0, 0.5))
    assert 0.2 < len(seen) / 400 < 0.4
    assert technique.evidence()["on_policy_share"] == pytest.approx(len(seen) / 400)
    first = len(seen)
    for step in range(400):
        technique.rewrite_batch(batch, student, Instant(1, step, 0, 0.5))
    assert len(seen) == 2 * first
    technique.rewrite_batch(batch, student, Instant(1, 0, 0, 0.7))
    assert len(seen) == 2 * first
    again = stepper_of("seq2seq", "technique.distill.on_policy=0.3")[1]
    again.load_state_dict(technique.state_dict())
    assert again.evidence() == technique.evidence()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["technique.distill.loss=none", "technique.distill.hidden=1"], "by its logits"),
        (["technique.distill.cache_top_k=4"], "keep one of them"),
    ],
)
def test_what_cannot_be_on_policy_is_refused(words, message):
    config = compose(["technique=distill", "technique.distill.on_policy=1", *words])
    with pytest.raises(UserError, match=message):
        Stack.from_config(config)


def test_several_processes_do_not_write():
    group = SimpleNamespace(size=2, rank=0)
    stepper, _ = stepper_of("seq2seq", "technique.distill.on_policy=1")
    with pytest.raises(UserError, match=r"set trainer\.devices=1"):
        Stepper(
            *(stepper.config, stepper.model, torch.nn.ModuleDict(), CPU, stepper.stack, 0.0, print),
            SimpleNamespace(group=group, divides_weights=False),
        )
