"""Distillation losses against torch's own formulas and autograd."""

from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from datasets import Dataset
from torch.nn import functional

from tfx.config.schema import EvaluationConfig, ModelConfig, Root
from tfx.data.corpus import Corpus
from tfx.data.ragged import Ragged
from tfx.errors import UserError
from tfx.model.architecture import Architecture
from tfx.model.batch import Batch
from tfx.model.device import FULL_PRECISION, Precision, choose_precision
from tfx.model.flops import decoding_flops, forward_flops
from tfx.model.loss import CrossEntropy, LogitSlice, projected_losses
from tfx.model.transformer import Transformer, initialise, run_batch, run_batch_with_states
from tfx.tasks.prepare import PreparedData
from tfx.tasks.seq2seq import Pairs, collate_pairs
from tfx.techniques.contract import Instant, Objective, Teacher
from tfx.techniques.distill.layers import copy_layers
from tfx.techniques.distill.settings import DistillSettings
from tfx.techniques.distill.soft_targets import ABSENT, FromAnswers, Measure, SoftTargets, divergence
from tfx.techniques.distill.technique import Distill

KINDS = ["forward_kl", "reverse_kl", "jensen_shannon"]

MAPS = Path("/proc/self/maps")


def small(layers: int, width: int = 16, **others: object) -> Transformer:
    sizes = {"width": width, "heads": 2, "ffn_width": 32, "encoder_layers": layers, "decoder_layers": layers}
    config = ModelConfig(**{**sizes, "dropout": 0.0, **others})
    model = Transformer(Architecture.from_config(config, 20))
    initialise(model, layers)
    return model


def piece(logits):
    return LogitSlice(slice(0, len(logits)), logits)


def by_hand(kind, teacher, student, temperature):
    p, q = (teacher / temperature).softmax(1), (student / temperature).softmax(1)

    def kl(a, b):
        return functional.kl_div(b.log(), a, reduction="none").sum(1)

    m = (p + q) / 2
    value = {"forward_kl": kl(p, q), "reverse_kl": kl(q, p), "jensen_shannon": (kl(p, m) + kl(q, m)) / 2}[kind]
    return value * temperature**2


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("temperature", [0.5, 1.0, 3.0])
def test_divergence_and_its_gradient_equal_autograd(kind, temperature):
    torch.manual_seed(0)
    teacher, student = torch.randn(7, 11).double(), torch.randn(7, 11).double().requires_grad_()
    expected = by_hand(kind, teacher, student, temperature)
    (gradient,) = torch.autograd.grad(expected.sum(), student)
    value, error = divergence(Measure(kind, temperature), teacher.clone(), piece(student.detach()))
    torch.testing.assert_close(value, expected.detach())
    torch.testing.assert_close(error, gradient)


@pytest.mark.parametrize("beta", [0.1, 0.5, 0.9])
def test_the_generalised_jensen_shannon_divergence_and_its_gradient_equal_autograd(beta):
    # Agarwal 2023, equation 1: beta weighs the teacher in the mixture, and its divergence from it.
    torch.manual_seed(0)
    teacher, student = torch.randn(7, 11).double(), torch.randn(7, 11).double().requires_grad_()
    p, q = (teacher / 2).softmax(1), (student / 2).softmax(1)
    m = beta * p + (1 - beta) * q
    expected = 4 * (beta * p * (p / m).log() + (1 - beta) * q * (q / m).log()).sum(1)
    (gradient,) = torch.autograd.grad(expected.sum(), student)
    measure = Measure("jensen_shannon", 2.0, beta)
    value, error = divergence(measure, teacher.clone(), piece(student.detach()))
    torch.testing.assert_close(value, expected.detach())
    torch.testing.assert_close(error, gradient)


@pytest.mark.parametrize("predicts", ["several", "number"])
def test_answers_that_are_no_choice_are_taught_as_they_are(predicts):
    torch.manual_seed(0)
    first, second, student = torch.randn(6, 3), torch.randn(6, 3), torch.randn(6, 3, requires_grad=True)
    counts = torch.tensor([1.0, 0, 1, 1, 0.5, 1])
    if predicts == "several":
        p, q = (first.sigmoid() + second.sigmoid()) / 2, student.sigmoid()
        expected = (p * (p / q).log() + (1 - p) * ((1 - p) / (1 - q)).log()).mean(1)
    else:
        first, second = first[:, :1], second[:, :1]
        expected = ((first + second) / 2 - student[:, :1]).square().squeeze(1)
    expected = (expected * counts).sum()
    (gradient,) = torch.autograd.grad(expected, student)
    logits = student.detach()[:, : first.shape[1]]
    value, _, error = FromAnswers(predicts, [first, second], counts)(piece(logits), True)
    torch.testing.assert_close(value.sum(), expected.detach())
    torch.testing.assert_close(error, gradient[:, : first.shape[1]])


@pytest.mark.parametrize("kind", KINDS)
def test_a_student_equal_to_its_teacher_has_no_loss_and_no_gradient(kind):
    logits = torch.randn(5, 9, dtype=torch.float64)
    value, error = divergence(Measure(kind, 2.0), logits.clone(), piece(logits))
    assert value.abs().max() < 1e-12
    assert error.abs().max() < 1e-12


def test_a_hot_temperature_tends_to_half_the_squared_distance_of_centred_logits():
    # Hinton 2015, section 2.1: T^2 KL -> sum of squared differences of zero-mean logits over 2V.
    torch.manual_seed(0)
    teacher, student = torch.randn(4, 10).double(), torch.randn(4, 10).double()
    value, _ = divergence(Measure("forward_kl", 1000.0), teacher.clone(), piece(student))
    centred = (teacher - teacher.mean(1, keepdim=True)) - (student - student.mean(1, keepdim=True))
    torch.testing.assert_close(value, centred.square().sum(1) / 20, rtol=1e-2, atol=1e-3)


@pytest.mark.parametrize("kind", ["forward_kl", "jensen_shannon"])
def test_teacher_logits_outside_its_top_k_stay_finite(kind):
    teacher = torch.full((3, 8), ABSENT)
    teacher[:, :2] = torch.randn(3, 2)
    value, error = divergence(Measure(kind), teacher, piece(torch.randn(3, 8)))
    assert torch.isfinite(value).all()
    assert torch.isfinite(error).all()


def test_the_reverse_divergence_is_exact_also_where_the_teacher_is_sure():
    torch.manual_seed(0)
    teacher, student = torch.randn(3, 8).double(), torch.randn(3, 8).double()
    teacher[:, 0] = 300.0
    value, _ = divergence(Measure("reverse_kl"), teacher.clone(), piece(student))
    torch.testing.assert_close(value, by_hand("reverse_kl", teacher, student, 1.0))


def test_padding_counts_nothing_in_loss_and_gradient():
    class Fixed(SoftTargets):
        def teacher_logits(self, rows):
            return teacher[rows].clone()

    torch.manual_seed(0)
    teacher, counts = torch.randn(300, 50), torch.ones(300)
    counts[::3] = 0
    hidden, weight = torch.randn(300, 6, requires_grad=True), torch.randn(50, 6, requires_grad=True)
    total, _ = projected_losses(hidden, weight, [(Fixed(Measure("forward_kl", 2.0), counts), 0.7)])
    total.backward()
    ours = hidden.grad.clone(), weight.grad.clone()
    hidden.grad = weight.grad = None
    expected = 0.7 * (by_hand("forward_kl", teacher, hidden @ weight.t(), 2.0) * counts).sum()
    expected.backward()
    torch.testing.assert_close(total, expected.detach().reshape(()), rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(ours[0], hidden.grad, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(ours[1], weight.grad, rtol=1e-4, atol=1e-4)
    assert (ours[0][::3] == 0).all()


# --- the objective on batches -----------------------------------------------------------------------

TOKENS = SimpleNamespace(pad=0, bos=1, eos=2, fingerprint="tokens")
CPU = torch.device("cpu")
HALFWAY = Instant(seed=1, step=5, batch=0, progress=0.5)


def some_pairs(*lengths: tuple[int, int], seed: int = 0) -> Pairs:
    rng = np.random.Generator(np.random.PCG64(seed))
    sides = zip(*lengths, strict=True)
    return Pairs(*(Ragged.from_lists([rng.integers(4, 20, size=n).tolist() for n in side], np.int64) for side in sides))


LENGTHS = [(4, 2), (6, 5), (3, 3), (5, 1)]
PAIRS = some_pairs(*LENGTHS)


def mixed(batch: Batch) -> Batch:
    return batch.mixed(torch.tensor([1, 2, 0]), torch.tensor([0.8, 1.0, 0.6]))


def padded_batch(*, is_mixed: bool = False) -> Batch:
    batch = collate_pairs(PAIRS, np.array([2, 0, 1]), TOKENS)
    return mixed(batch) if is_mixed else batch


def weight_of_positions(batch: Batch) -> torch.Tensor:
    """How much each position counts, from the meaning of the mix: its own share of it and its partner's."""
    real = (batch.target_out_BT >= 0).float()
    if batch.mix is None:
        return real.flatten()
    own = batch.mix.weight_B.unsqueeze(1)
    return (own * real + (1 - own) * (batch.mix.partner_out_BT >= 0)).flatten()


def taught(
    settings: DistillSettings,
    teacher: Transformer,
    data: object = None,
    precision: Precision = FULL_PRECISION,
    others: Sequence[Transformer] = (),
) -> Distill:
    technique = Distill(settings)
    named = [a_teacher(model, f"of file {n}", precision=precision) for n, model in enumerate((teacher, *others))]
    technique.receive_teachers(named, None, CPU)
    if data is not None:
        technique.receive_teachers(technique.teachers, data, CPU)
    return technique


def a_teacher(model: Transformer, sha256: str = "of a file", **others: object) -> Teacher:
    known = {"tokenizer": TOKENS, "generation": EvaluationConfig(), "path": Path("teacher"), **others}
    return Teacher(model, "tokens", sha256=sha256, **known)


def objective_of(student: Transformer, batch: Batch, *, is_kept: bool) -> Objective:
    """As the training loop makes it: all positions, or those alone that count for something."""
    hidden, targets, keep = run_batch(student, batch).flatten(0, 1), batch.targets_and_weights(), None
    if is_kept:
        keep = torch.stack([ids >= 0 for ids, _ in targets]).any(0)
        hidden = hidden[keep]
        targets = [(ids[keep], None if weight is None else weight[keep]) for ids, weight in targets]
    return Objective(None, batch, run_batch, hidden, keep, [("task", CrossEntropy(targets), 1.0)])


def loss_of(objective: Objective, student: Transformer) -> torch.Tensor:
    terms = [(term, scale) for _, term, scale in objective.logit_losses]
    total, _ = projected_losses(objective.hidden_ND, student.output.weight, terms)
    return total + sum(scale * value for _, value, scale in objective.other)


def gradients(model: Transformer) -> torch.Tensor:
    found = torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])
    model.zero_grad()
    return found


@pytest.mark.parametrize("is_kept", [False, True], ids=["all positions", "positions that count"])
@pytest.mark.parametrize("is_mixed", [False, True], ids=["plain", "mixed"])
@pytest.mark.parametrize("kind", KINDS)
def test_the_objective_is_the_tasks_loss_and_the_divergence_over_real_tokens(kind, is_mixed, is_kept):
    teacher, student, batch = small(3), small(2), padded_batch(is_mixed=is_mixed)
    technique = taught(DistillSettings(loss=kind, alpha=0.3, temperature=2.0), teacher)
    objective = objective_of(student, batch, is_kept=is_kept)
    technique.objective(objective, HALFWAY)
    loss = loss_of(objective, student)
    loss.backward()
    ours = gradients(student)
    assert all(parameter.grad is None for parameter in teacher.parameters())

    logits = student.project(run_batch(student, batch)).flatten(0, 1)
    task = torch.zeros(())
    for ids, weight in batch.targets_and_weights():
        nll = functional.cross_entropy(logits, ids, ignore_index=-100, reduction="none")
        task = task + (nll if weight is None else nll * weight).sum()
    theirs = teacher.project(run_batch(teacher, batch)).flatten(0, 1)
    soft = (by_hand(kind, theirs, logits, 2.0) * weight_of_positions(batch)).sum()
    expected = 0.7 * task + 0.3 * soft
    expected.backward()
    torch.testing.assert_close(loss, expected, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(ours, gradients(student), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("is_kept", [False, True], ids=["all positions", "positions that count"])
@pytest.mark.parametrize("is_mixed", [False, True], ids=["plain", "mixed"])
def test_hidden_states_of_another_width_are_compared_through_a_projection(is_mixed, is_kept):
    teacher, student, batch = small(3, width=32), small(2), padded_batch(is_mixed=is_mixed)
    technique = taught(DistillSettings(loss="none", hidden=0.5), teacher)
    (matcher,) = technique.prepare_model(student, Root())
    projection = matcher.projections["last"]
    assert projection.weight.shape == (32, 16)
    objective = objective_of(student, batch, is_kept=is_kept)
    technique.objective(objective, HALFWAY)
    ((_, value, scale),) = objective.other
    (scale * value).backward()
    ours = gradients(student), projection.weight.grad.clone()
    assert all(parameter.grad is None for parameter in teacher.parameters())

    projection.zero_grad()
    gap = run_batch(student, batch).flatten(0, 1) @ projection.weight.t() - run_batch(teacher, batch).flatten(0, 1)
    expected = 0.5 * (gap.square().mean(1) * weight_of_positions(batch)).sum()
    expected.backward()
    torch.testing.assert_close(scale * value, expected, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(ours[0], gradients(student), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(ours[1], projection.weight.grad, rtol=1e-4, atol=1e-5)
    assert [scale for _, _, scale in objective.logit_losses] == [1.0]


@pytest.mark.parametrize("kind", KINDS)
def test_several_teachers_teach_the_mean_of_their_probabilities(kind):
    first, second, student, batch = small(3), small(1, width=32), small(2), padded_batch()
    technique = taught(DistillSettings(loss=kind, alpha=1.0, temperature=2.0), first, others=[second])
    objective = objective_of(student, batch, is_kept=True)
    technique.objective(objective, HALFWAY)
    loss = loss_of(objective, student)
    loss.backward()
    ours = gradients(student)

    logits = student.project(run_batch(student, batch)).flatten(0, 1)
    p = sum(model.project(run_batch(model, batch)).flatten(0, 1).softmax(1) for model in (first, second)).detach() / 2
    expected = (by_hand(kind, p.log(), logits, 2.0) * weight_of_positions(batch)).sum()
    expected.backward()
    torch.testing.assert_close(loss, expected, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(ours, gradients(student), rtol=1e-4, atol=1e-5)
    alone = loss_of_one(kind, first, student, batch)
    assert abs(float((alone - loss).detach())) > 0.01


def loss_of_one(kind: str, teacher: Transformer, student: Transformer, batch: Batch) -> torch.Tensor:
    objective = objective_of(student, batch, is_kept=True)
    taught(DistillSettings(loss=kind, alpha=1.0, temperature=2.0), teacher).objective(objective, HALFWAY)
    return loss_of(objective, student)


def test_the_layers_learn_the_mean_of_what_each_teacher_has():
    student, batch = small(2), padded_batch()

    def terms(*teachers: Transformer) -> dict[str, float]:
        settings = DistillSettings(loss="none", hidden=1, attention=2, relations=3, layer_map="uniform")
        technique = taught(settings, teachers[0], others=teachers[1:])
        technique.prepare_model(student, Root())
        objective = objective_of(student, batch, is_kept=True)
        _, objective.states = run_batch_with_states(student, batch)
        technique.objective(objective, HALFWAY)
        assert objective.flops > 0
        assert [scale for _, _, scale in objective.other] == [1, 2, 3]
        positions = float(weight_of_positions(batch).sum())
        found = {name.removeprefix("distill_"): float(value.detach()) for name, value, _ in objective.other}
        evidence = technique.evidence()
        for name, proof in (("hidden", "hidden_error"), ("attention", "attention_error")):
            assert evidence[proof] == pytest.approx(found[name] / positions)
        assert evidence["relation_divergence"] == pytest.approx(found["relations"] / positions)
        return found

    one, two = terms(small(3)), terms(small(4))
    both = terms(small(3), small(4))
    for name in ("attention", "relations"):  # the projections of hidden states are drawn one after the other
        assert both[name] == pytest.approx((one[name] + two[name]) / 2)
        assert one[name] != pytest.approx(two[name])
    assert min(both.values()) > 0


def test_alpha_is_constant_or_goes_to_its_last_value_within_its_part_of_the_budget():
    constant = Distill(DistillSettings(alpha=0.4))
    assert [constant.alpha(progress) for progress in (0.0, 0.5, 0.999)] == [0.4] * 3
    ramp = Distill(DistillSettings(alpha=0.8, alpha_final=0.2, start=0.25, end=0.75))
    places = (0.0, 0.249, 0.25, 0.5, 0.7499999, 0.75, 1.0)
    assert [ramp.alpha(place) for place in places] == pytest.approx([0, 0, 0.8, 0.5, 0.2, 0, 0], abs=1e-5)
    assert Distill(DistillSettings(loss="none", alpha=0.4)).alpha(0.5) == 0.0


def test_outside_its_part_of_the_budget_it_changes_no_term():
    technique = taught(DistillSettings(hidden=1.0, start=0.6), small(3))
    student = small(2)
    technique.prepare_model(student, Root())
    objective = objective_of(student, padded_batch(), is_kept=True)
    technique.objective(objective, HALFWAY)
    assert [(name, scale) for name, _, scale in objective.logit_losses] == [("task", 1.0)]
    assert not objective.other
    assert not technique.acted()


def test_a_share_of_a_term_that_is_zero_is_no_proof():
    student = small(2)
    technique = taught(DistillSettings(alpha=0.5), small(3))
    technique.objective(objective_of(student, padded_batch(), is_kept=True), HALFWAY)
    technique.report("distill", torch.zeros(()), 10)
    assert technique.evidence()["mean_alpha"] == 0.5
    assert not technique.acted()
    technique.report("distill", torch.ones(()), 10)
    assert technique.acted()


# --- the caches -------------------------------------------------------------------------------------


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("TFX_CACHE", str(tmp_path))
    return tmp_path / "teacher-logits"


def data_of(pairs: Pairs) -> PreparedData:
    return PreparedData("pairs", "seq2seq", TOKENS, {"train": pairs}, "of the data")


def soft_loss(technique: Distill, student: Transformer, rows: list[int]) -> torch.Tensor:
    objective = objective_of(student, collate_pairs(PAIRS, np.array(rows), TOKENS), is_kept=True)
    technique.objective(objective, HALFWAY)
    return loss_of(objective, student)


@pytest.mark.parametrize("rows", [[0, 1, 2, 3], [3, 1], [2]])
def test_a_cache_of_all_logits_teaches_what_the_teacher_does(rows, cache):
    teacher, student = small(3), small(2)
    whole = soft_loss(taught(DistillSettings(alpha=1.0), teacher), student, rows)
    cached = taught(DistillSettings(alpha=1.0, cache_top_k=20), teacher, data_of(PAIRS))
    torch.testing.assert_close(soft_loss(cached, student, rows), whole, rtol=2e-3, atol=2e-3)


@pytest.mark.parametrize("kind", ["forward_kl", "jensen_shannon"])
@pytest.mark.parametrize("temperature", [1.0, 2.0])
def test_the_largest_logits_of_each_position_are_a_distribution_of_their_own(kind, temperature, cache):
    teacher, student, batch = small(3), small(2), padded_batch()
    settings = DistillSettings(alpha=1.0, loss=kind, temperature=temperature, cache_top_k=3)
    theirs = teacher.project(run_batch(teacher, batch)).flatten(0, 1).detach()
    top = theirs.topk(3, dim=1)
    p = torch.zeros_like(theirs).scatter(1, top.indices, (top.values / temperature).softmax(1))
    q = (student.project(run_batch(student, batch)).flatten(0, 1) / temperature).softmax(1)

    def kl(a, b):
        return torch.where(a > 0, a * (a.clamp(min=1e-30).log() - b.log()), 0.0).sum(1)

    mixture = (p + q) / 2
    divergence = kl(p, q) if kind == "forward_kl" else (kl(p, mixture) + kl(q, mixture)) / 2
    expected = (divergence * weight_of_positions(batch)).sum() * temperature**2
    found = soft_loss(taught(settings, teacher, data_of(PAIRS)), student, [2, 0, 1])
    torch.testing.assert_close(found, expected, rtol=2e-3, atol=2e-3)
    weight = student.output.weight
    (by_hand,), (ours,) = (torch.autograd.grad(loss, weight) for loss in (expected, found))
    assert float(by_hand.abs().max()) > 0.01
    torch.testing.assert_close(ours, by_hand, rtol=2e-3, atol=2e-3)


def test_cached_logits_are_made_once_and_anew_where_they_would_differ(cache, monkeypatch):
    teacher, student, settings = small(3), small(2), DistillSettings(alpha=1.0, cache_top_k=4)
    first = taught(settings, teacher, data_of(PAIRS))
    made = first.teachers[0].work["logits"]
    assert made.seconds > 0
    longest = [1 + max(lengths) for lengths in zip(*LENGTHS, strict=True)]
    assert made.flops == first.teachers[0].total_flops == forward_flops(teacher.architecture, len(LENGTHS), *longest)
    with monkeypatch.context() as patch:
        patch.setattr("tfx.techniques.distill.cache.run_batch", None)
        second = taught(settings, teacher, data_of(PAIRS))
    assert torch.equal(soft_loss(first, student, [0, 3]), soft_loss(second, student, [0, 3]))
    assert second.teachers[0].work["logits"] == made
    assert len(list(cache.iterdir())) == 1
    # As many pairs of the same data, but others; and products in another precision.
    taught(settings, teacher, data_of(some_pairs((4, 2), (6, 5), (3, 3), (5, 2))))
    for name in ("mixed", "bf16"):
        taught(settings, teacher, data_of(PAIRS), choose_precision(name, CPU))
    assert len(list(cache.iterdir())) == 4


@pytest.mark.skipif(not MAPS.exists(), reason="the system does not tell what is mapped")
def test_cached_logits_are_mapped_and_not_read_whole(cache):
    technique = taught(DistillSettings(alpha=1.0, cache_top_k=4), small(3), data_of(PAIRS))
    (file,) = cache.iterdir()
    assert str(file) in MAPS.read_text()
    assert torch.isfinite(soft_loss(technique, small(2), [0, 3]))


def test_the_cache_of_several_teachers_holds_their_mean(cache):
    first, second, student = small(3), small(1, width=32), small(2)
    whole = soft_loss(taught(DistillSettings(alpha=1.0), first, others=[second]), student, [0, 3])
    cached = taught(DistillSettings(alpha=1.0, cache_top_k=20), first, data_of(PAIRS), others=[second])
    torch.testing.assert_close(soft_loss(cached, student, [0, 3]), whole, rtol=2e-3, atol=2e-3)
    longest = [1 + max(lengths) for lengths in zip(*LENGTHS, strict=True)]
    flops = [forward_flops(model.architecture, len(LENGTHS), *longest) for model in (first, second)]
    assert sum(teacher.total_flops for teacher in cached.teachers) == sum(flops)
    alone = taught(DistillSettings(alpha=1.0, cache_top_k=20), first, data_of(PAIRS))
    assert abs(float((soft_loss(alone, student, [0, 3]) - whole).detach())) > 0.01
    assert len(list(cache.iterdir())) == 2


def test_of_a_teacher_that_is_yet_to_be_trained_nothing_is_cached(cache):
    technique = Distill(DistillSettings(cache_top_k=4))
    teacher = a_teacher(small(3), sha256="")
    technique.receive_teachers([teacher], data_of(PAIRS), CPU)
    assert torch.isfinite(soft_loss(technique, small(2), [1, 0]))
    assert not cache.exists()


def test_outputs_with_line_ends_of_any_kind_are_read_back_as_they_were_written(cache, monkeypatch):
    written = ["one\rtwo", "three\r\nfour", "five\nsix", ""]
    model = small(2)
    tokenizer = SimpleNamespace(encode=lambda texts: [[4, 5]] * len(texts))
    targets = []
    for decode in (lambda *_, **__: list(written), None):
        monkeypatch.setattr("tfx.techniques.distill.cache.decode_sources", decode)
        train = Dataset.from_dict({"source": list("abcd"), "target": ["three\r\nfour"] * 4})
        technique = Distill(DistillSettings(loss="none", sequence_level=True))
        technique.receive_teachers([a_teacher(model, tokenizer=tokenizer)], None, CPU)
        changed = technique.prepare_data(Corpus("seq2seq", {"train": train}, "of the text"), Root())
        targets.append(list(changed.splits["train"]["target"]))
        assert technique.evidence()["targets_changed"] == 0.5
        assert technique.teachers[0].total_seconds > 0
        # Every text is two tokens here, and one ends it.
        assert technique.teachers[0].total_flops == 4 * decoding_flops(model.architecture, 3, 3, hypotheses=5)
    # An empty output leaves the reference.
    assert targets[0] == targets[1] == [*written[:3], "three\r\nfour"]


def test_the_beam_is_the_methods_own_also_where_the_teacher_was_scored_greedily(cache, monkeypatch):
    seen = []

    def decode(model, sources, tokenizer, generation, seed):
        seen.append((generation.method, generation.beam, generation.length_penalty))
        return ["out"] * len(sources.lengths)

    monkeypatch.setattr("tfx.techniques.distill.cache.decode_sources", decode)
    teacher = a_teacher(small(2), tokenizer=SimpleNamespace(encode=lambda texts: [[4, 5]] * len(texts)))
    teacher.generation = EvaluationConfig(method="greedy", length_penalty=0.3)
    for beam in (5, 2, 5):
        technique = Distill(DistillSettings(loss="none", sequence_level=True, beam=beam))
        technique.receive_teachers([teacher], None, CPU)
        train = Dataset.from_dict({"source": ["a"], "target": ["b"]})
        technique.prepare_data(Corpus("seq2seq", {"train": train}, "of the text"), Root())
    # The third finds what the first has cached.
    assert seen == [("beam", 5, 0.3), ("beam", 2, 0.3)]


def test_each_of_several_teachers_writes_its_share_of_the_targets(cache, monkeypatch):
    def decode(model, sources, tokenizer, generation, seed):
        return [f"{tokenizer.name} of {ids[0]}" for ids in sources]

    monkeypatch.setattr("tfx.techniques.distill.cache.decode_sources", decode)
    # Their tokenizers differ: the student sees texts alone.
    teachers = []
    for name in ("one", "two"):
        encode = {letter: [number] for number, letter in enumerate("abcde")}
        tokenizer = SimpleNamespace(name=name, encode=lambda texts, ids=encode: [ids.get(text, [9]) for text in texts])
        teachers.append(a_teacher(small(2), name, tokenizer=tokenizer))
    technique = Distill(DistillSettings(loss="none", sequence_level=True))
    technique.receive_teachers(teachers, None, CPU)
    train = Dataset.from_dict({"source": list("abcde"), "target": ["x"] * 5})
    changed = technique.prepare_data(Corpus("seq2seq", {"train": train}, "of the text"), Root())
    assert list(changed.splits["train"]["target"]) == ["one of 0", "two of 1", "one of 2", "two of 3", "one of 4"]
    flops = decoding_flops(small(2).architecture, 2, 2, hypotheses=5)
    assert [teacher.total_flops for teacher in teachers] == [3 * flops, 2 * flops]
    # Another order is another share for each.
    again = Distill(DistillSettings(loss="none", sequence_level=True))
    again.receive_teachers(teachers[::-1], None, CPU)
    other = again.prepare_data(Corpus("seq2seq", {"train": train}, "of the text"), Root())
    assert next(iter(other.splits["train"]["target"])) == "two of 0"
    assert other.fingerprint != changed.fingerprint


def test_the_teacher_writes_targets_for_text_without_references_and_leaves_out_where_it_writes_none(cache, monkeypatch):
    def decode(model, sources, tokenizer, generation, seed):
        return ["" if ids[0] == 7 else f"for {ids[0]}" for ids in sources]

    monkeypatch.setattr("tfx.techniques.distill.cache.decode_sources", decode)
    tokenizer = SimpleNamespace(encode=lambda texts: [[int(text) if text.isdigit() else 9] for text in texts])
    technique = Distill(DistillSettings(loss="none", sequence_level=True))
    technique.receive_teachers([a_teacher(small(2), tokenizer=tokenizer)], None, CPU)
    texts = Corpus("seq2seq", {"train": Dataset.from_dict({"text": ["5", "7", "8"]})}, "of more", is_labelled=False)
    train = Dataset.from_dict({"source": ["1", "7"], "target": ["x", "y"]})
    changed = technique.prepare_data(Corpus("seq2seq", {"train": train}, "of the text", unlabelled=texts), Root())
    assert list(changed.splits["train"]["target"]) == ["for 1", "y"]
    more = changed.unlabelled
    assert more.is_labelled
    assert more.splits["train"].to_dict() == {"source": ["5", "8"], "target": ["for 5", "for 8"]}
    assert more.notes == ["monolingual: of 1 texts the teacher made nothing"]
    assert technique.evidence()["texts_written"] == 2
    # Both decodings cost.
    each = decoding_flops(small(2).architecture, 2, 2, hypotheses=5)
    assert technique.teachers[0].total_flops == pytest.approx((2 + 3) * each)


# --- initialisation ---------------------------------------------------------------------------------


def test_a_student_of_the_same_depth_starts_as_its_teacher():
    teacher, student = small(3), small(3)
    initialise(student, 99)
    tokens = torch.randint(4, 20, (2, 5))
    assert not torch.equal(teacher(tokens, tokens), student(tokens, tokens))
    assert copy_layers(teacher, student) == 6
    assert torch.equal(teacher(tokens, tokens), student(tokens, tokens))


def test_a_student_of_half_the_depth_starts_from_evenly_spaced_layers():
    teacher, student = small(6), small(3)
    assert copy_layers(teacher, student) == 6
    for stack in ("encoder", "decoder"):
        blocks = getattr(teacher, stack).blocks
        for block, number in zip(getattr(student, stack).blocks, (0, 2, 5), strict=True):
            for name, value in block.state_dict().items():
                assert torch.equal(value, blocks[number].state_dict()[name]), (stack, number, name)
    assert torch.equal(student.embedding.weight, teacher.embedding.weight)


@pytest.mark.parametrize(
    ("others", "words"),
    [
        ({"width": 32}, "width: 32 is not 16"),
        ({"heads": 4}, "head_width: 4 is not 8"),
        ({"ffn_width": 64}, "feed-forward width"),
        ({"bias": True}, "bias: True is not False"),
        ({"qk_norm": True}, "qk_norm: True is not False"),
    ],
)
def test_initialising_from_layers_of_another_kind_is_refused(others, words):
    student = small(2, bias=False, qk_norm=False)
    before = {name: value.clone() for name, value in student.state_dict().items()}
    teacher = small(2, **{"bias": False, "qk_norm": False, **others})
    with pytest.raises(UserError, match=words):
        copy_layers(teacher, student)
    assert all(torch.equal(value, before[name]) for name, value in student.state_dict().items())
