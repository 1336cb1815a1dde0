"""R-Drop: two passes with different dropout, whose outputs must agree."""

import numpy as np
import pytest
import torch
from torch.nn import functional

from tfx.config.compose import compose
from tfx.config.schema import TokenizerConfig
from tfx.data.ragged import Ragged
from tfx.data.tokenizer import Tokenizer
from tfx.errors import UserError
from tfx.model import loss as loss_module
from tfx.model.architecture import Architecture
from tfx.model.loss import CrossEntropy, projected_losses
from tfx.model.transformer import Transformer, initialise, run_batch
from tfx.tasks.seq2seq import Pairs, collate_pairs
from tfx.techniques.contract import Instant, Objective
from tfx.techniques.r_drop import RDrop, RDropSettings, symmetric_divergence
from tfx.techniques.stack import Stack
from tfx.training.accounts import batch_flops
from tfx.training.step import Stepper

TOKENIZER = Tokenizer.train(TokenizerConfig(kind="char", vocab_size=40), ["abcdefgh"], word_initial_space=False)
MODEL = ["model.width=16", "model.heads=2", "model.ffn_width=32", "model.encoder_layers=1", "model.decoder_layers=1"]


@pytest.fixture(scope="module")
def config():
    return compose([*MODEL, "trainer.budget.steps=10", "trainer.precision=fp32", "model.dropout=0.3"])


@pytest.fixture(scope="module")
def batch():
    rng = np.random.default_rng(0)
    rows = [rng.integers(4, TOKENIZER.vocab_size, size=rng.integers(2, 9)).tolist() for _ in range(24)]
    pairs = Pairs(Ragged.from_lists(rows, np.int64), Ragged.from_lists(rows[::-1], np.int64))
    return collate_pairs(pairs, np.arange(24), TOKENIZER)


def model_of(config):
    model = Transformer(Architecture.from_config(config.model, TOKENIZER.vocab_size), config.model)
    initialise(model, 1)
    return model.train()


def stepper(config, *techniques):
    model = model_of(config)
    stack = Stack(techniques, config)
    return Stepper(config, model, torch.nn.Module(), torch.device("cpu"), stack, 0.1, print), model, stack


def plain(first_NV, second_NV):
    """(KL(p || q) + KL(q || p)) / 2 by torch's own function."""
    p, q = first_NV.log_softmax(1), second_NV.log_softmax(1)
    both = [functional.kl_div(a, b, reduction="none", log_target=True).sum(1) for a, b in ((q, p), (p, q))]
    return 0.5 * (both[0] + both[1])


def test_the_divergence_and_its_gradients_are_autograds():
    generator = torch.Generator().manual_seed(0)
    logits = [(3 * torch.randn(7, 11, generator=generator, dtype=torch.float64)).requires_grad_() for _ in range(2)]
    expected = plain(*logits)
    gradients = torch.autograd.grad(expected.sum(), logits)
    found, *errors = symmetric_divergence(*(each.detach() for each in logits))
    torch.testing.assert_close(found, expected)
    for error, gradient in zip(errors, gradients, strict=True):
        torch.testing.assert_close(error, gradient)


@pytest.mark.parametrize("is_mixed", [False, True])
@pytest.mark.parametrize("is_kept", [False, True])
def test_the_loss_and_its_gradients_are_those_of_the_paper(config, batch, is_kept, is_mixed, monkeypatch):
    monkeypatch.setattr(loss_module, "_SLICE_ELEMENTS_CPU", 1)  # slices of 128 rows
    model = model_of(config)
    if is_mixed:
        order = torch.arange(24).roll(1)
        batch = batch.mixed(order, torch.linspace(0.6, 1.0, 24))
    targets = batch.targets_and_weights()
    mass = sum((ids >= 0) * (1.0 if weight is None else weight) for ids, weight in targets)
    torch.manual_seed(3)
    first, second = (run_batch(model, batch).flatten(0, 1) for _ in range(2))
    logits = [model.project(hidden) for hidden in (first, second)]
    nll = sum(
        (
            (ids >= 0)
            * (1.0 if weight is None else weight)
            * functional.cross_entropy(each, ids.clamp(min=0), reduction="none", label_smoothing=0.1)
        ).sum()
        for each in logits
        for ids, weight in targets
    )
    expected = 0.5 * nll + 2.0 * (mass * plain(*logits)).sum()
    expected.backward()
    gradients = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()

    technique = RDrop(RDropSettings(alpha=2.0))
    torch.manual_seed(3)
    hidden, keep = run_batch(model, batch).flatten(0, 1), None
    if is_kept:
        keep = mass > 0
        hidden = hidden[keep]
        targets = [(ids[keep], None if weight is None else weight[keep]) for ids, weight in targets]
    objective = Objective(model, batch, run_batch, hidden, keep, [("task", CrossEntropy(targets, 0.1), 1.0)])
    technique.objective(objective, Instant(1, 0, 0, 0.0))
    losses = [(term, scale) for _, term, scale in objective.logit_losses]
    loss, reported = projected_losses(*model.output_factors(objective.hidden_ND), losses)
    torch.testing.assert_close(loss, expected.detach(), rtol=1e-4, atol=1e-3)
    assert float(reported[1].sum()) == pytest.approx(float((mass * plain(*logits)).sum().detach()), rel=1e-3)
    loss.backward()
    for name, gradient in gradients.items():
        torch.testing.assert_close(dict(model.named_parameters())[name].grad, gradient, rtol=1e-3, atol=1e-4)


def test_a_step_has_the_second_pass_its_loss_is_the_mean_and_its_flops_count(config, batch):
    ours, model, stack = stepper(config, RDrop(RDropSettings()))
    other, same, _ = stepper(config)
    result, without = ours.take([batch], 1.0, 0, 0.0), other.take([batch], 1.0, 0, 0.0)
    assert result.flops == 2 * without.flops == 6.0 * batch_flops(model, batch)
    # The mean of two passes of one model: near that of the first, and not it.
    assert float(result.nll) == pytest.approx(float(without.nll), rel=0.1)
    assert float(result.nll) != float(without.nll)
    assert any(not torch.equal(a, b) for a, b in zip(model.parameters(), same.parameters(), strict=True))
    assert stack.evidence()["r_drop"]["divergence"] > 0


def test_training_brings_the_passes_together_and_without_it_they_stay_apart(batch):
    words = ["trainer.precision=fp32", "model.dropout=0.3", "optimizer=adamw", "optimizer.lr=0.01"]
    adamw = compose([*MODEL, "trainer.budget.steps=10", *words])
    found = {}
    for alpha in (None, 10.0):
        taken, model, _ = stepper(adamw, *([] if alpha is None else [RDrop(RDropSettings(alpha=alpha))]))
        for step in range(40):
            taken.take([batch], 1.0, step, step / 40)
        torch.manual_seed(0)
        with torch.no_grad():
            logits = [model.project(run_batch(model, batch)).flatten(0, 1) for _ in range(2)]
        found[alpha] = float(plain(*logits).mean())
    assert found[10.0] < 0.5 * found[None]


def test_it_waits_for_its_start_and_resumes_to_the_bit(config, batch):
    early, model, stack = stepper(config, RDrop(RDropSettings(start=0.5)))
    for step in range(4):
        early.take([batch], 1.0, step, step / 4)
        assert (stack._techniques[0].evidence()["divergence"] > 0) == (step >= 2)
    first, resumed, other = stepper(config, RDrop(RDropSettings(start=0.5)))
    for step in range(3):
        first.take([batch], 1.0, step, step / 4)
    again, copy, second = stepper(config, RDrop(RDropSettings(start=0.5)))
    copy.load_state_dict(resumed.state_dict())
    again.optimizers.load_state_dict(first.optimizers.state_dict())
    second.load_state_dict(other.state_dict())
    again.take([batch], 1.0, 3, 3 / 4)
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), copy.parameters(), strict=True))
    assert second.evidence() == stack.evidence()


def test_without_dropout_it_is_refused(config):
    still = compose([*MODEL, "trainer.budget.steps=10", "model.dropout=0"])
    with pytest.raises(UserError, match=r"model\.dropout=0\.1"):
        Stack([RDrop(RDropSettings())], still)
