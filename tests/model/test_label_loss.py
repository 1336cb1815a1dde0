"""Losses of labels and numbers, and their gradients, against torch's own functions."""

import numpy as np
import pytest
import torch
from torch.nn import functional

from tfx.config.schema import ModelConfig
from tfx.model.architecture import Architecture, Outputs
from tfx.model.batch import Batch
from tfx.model.label_loss import plain_losses, task_loss
from tfx.model.loss import projected_losses
from tfx.model.transformer import Transformer, initialise, run_batch

ROWS, LABELS = 6, 4
OUTPUTS = {
    "one": Outputs("one", tuple("abcd")),
    "several": Outputs("several", tuple("abcd")),
    "number": Outputs("number"),
}


def architecture_of(predicts: str, **settings) -> Architecture:
    config = ModelConfig(
        family="classification", encoder_layers=1, decoder_layers=0, width=16, heads=2, ffn_width=16, **settings
    )
    return Architecture.from_config(config, 20, OUTPUTS[predicts])


def batch_of(predicts: str, counts: bool = False) -> Batch:
    generator = torch.Generator().manual_seed(3)
    label = torch.randint(0, LABELS, (ROWS, 1), generator=generator)
    values = {
        "one": None,
        "several": (torch.rand(ROWS, LABELS, generator=generator) < 0.5).float(),
        "number": torch.randn(ROWS, 1, generator=generator),
    }[predicts]
    mask = torch.ones(ROWS, 5, dtype=torch.bool)
    mask[1, 3:] = False
    return Batch(
        target_in_BT=torch.zeros(ROWS, 0, dtype=torch.long),
        target_out_BT=label if values is None else torch.zeros_like(label),
        source_BS=torch.randint(4, 20, (ROWS, 5), generator=generator),
        source_mask_BS=mask,
        rows=np.arange(ROWS),
        tokens=28,
        positions=30,
        targets=ROWS,
        special=(0, 1, 2),
        values_BC=values,
        counts_B=torch.rand(ROWS, generator=generator) + 0.5 if counts else None,
    )


def losses_of(logits: torch.Tensor, batch: Batch, predicts: str, smoothing: float) -> torch.Tensor:
    """By torch's own functions."""
    if predicts == "one":
        return functional.cross_entropy(logits, batch.target_out_BT[:, 0], reduction="none", label_smoothing=smoothing)
    if predicts == "several":
        smooth = batch.values_BC * (1 - smoothing) + 0.5 * smoothing
        return functional.binary_cross_entropy_with_logits(logits, smooth, reduction="none").mean(1)
    return functional.mse_loss(logits, batch.values_BC, reduction="none")[:, 0]


@pytest.mark.parametrize("counts", [False, True])
@pytest.mark.parametrize("smoothing", [0.0, 0.2])
@pytest.mark.parametrize("predicts", ["one", "several", "number"])
def test_the_loss_and_its_gradients_are_torchs(predicts, smoothing, counts):
    architecture, batch = architecture_of(predicts), batch_of(predicts, counts)
    weight = torch.randn(architecture.output_count, 8, requires_grad=True)
    hidden = torch.randn(ROWS, 8, requires_grad=True)
    loss = task_loss(architecture, batch, batch.targets_and_weights(), None, smoothing)
    total, _ = projected_losses(hidden, weight, [(loss, 1.0)])
    found = torch.autograd.grad(total, (hidden, weight))
    logits = hidden @ weight.t()
    each = losses_of(logits, batch, predicts, smoothing)
    expected = (each * batch.counts_B).sum() if counts else each.sum()
    torch.testing.assert_close(total, expected)
    for own, other in zip(found, torch.autograd.grad(expected, (hidden, weight)), strict=True):
        torch.testing.assert_close(own, other)
    plain = plain_losses(architecture, logits, batch.target_out_BT.flatten(), batch.values_BC)
    torch.testing.assert_close(plain, losses_of(logits, batch, predicts, 0.0))


@pytest.mark.parametrize("predicts", ["one", "several", "number"])
def test_the_gradient_of_a_mixed_batch_is_the_mixture_of_two(predicts):
    """Also where rows count differently: each target counts what its own row does."""
    architecture, batch = architecture_of(predicts), batch_of(predicts, counts=predicts == "one")
    partner, share = torch.tensor([1, 2, 3, 4, 5, 0]), torch.linspace(0.5, 1.0, ROWS)
    mixed = batch.mixed(partner, share)
    weight = torch.randn(architecture.output_count, 8, requires_grad=True)
    hidden = torch.randn(ROWS, 8)
    loss = task_loss(architecture, mixed, mixed.targets_and_weights(), None, 0.0)
    total, _ = projected_losses(hidden, weight, [(loss, 1.0)])
    logits = hidden @ weight.t()
    own = losses_of(logits, batch, predicts, 0.0)
    other = losses_of(logits, batch.part(slice(0, ROWS), batch), predicts, 0.0)
    if predicts == "one":
        other = functional.cross_entropy(logits, batch.target_out_BT[partner, 0], reduction="none")
        own, other = own * batch.counts_B, other * batch.counts_B[partner]
    elif predicts == "several":
        values = batch.values_BC[partner]
        other = functional.binary_cross_entropy_with_logits(logits, values, reduction="none").mean(1)
    else:
        other = (logits - batch.values_BC[partner]).square()[:, 0]
    expected = (share * own + (1 - share) * other).sum()
    for found, wanted in zip(
        torch.autograd.grad(total, [weight]), torch.autograd.grad(expected, [weight]), strict=True
    ):
        torch.testing.assert_close(found, wanted)


@pytest.mark.parametrize("settings", [{"pooling": kind} for kind in ("first", "mean", "max", "attention")])
@pytest.mark.parametrize("pooler", [False, True])
def test_padding_changes_no_pooled_state(settings, pooler):
    model = Transformer(architecture_of("one", pooler=pooler, **settings)).eval()
    initialise(model, 1)
    batch = batch_of("one")
    states = run_batch(model, batch)
    assert states.shape == (ROWS, 1, 16)
    alone = model(batch.target_in_BT[1:2], batch.source_BS[1:2, :3])
    torch.testing.assert_close(states[1:2], alone)
    # Each kind is its formula on the encoder's states.
    memory = model.encode(batch.source_BS[1:2, :3], None)[0]
    pooled = {
        "first": lambda: memory[0],
        "mean": lambda: memory.mean(0),
        "max": lambda: memory.max(0).values,
        "attention": lambda: (memory @ model.pooling.score.weight[0]).softmax(0) @ memory if model.pooling.score else 0,
    }[settings["pooling"]]()
    if pooler:
        pooled = torch.tanh(pooled @ model.pooling.dense.weight.t() + model.pooling.dense.bias)
    torch.testing.assert_close(alone[0, 0], pooled)
    assert model.project(alone).shape == (1, 1, LABELS)


def test_types_of_mixed_pairs_are_mixed_like_their_tokens():
    model = Transformer(architecture_of("one", token_types=2)).eval()
    initialise(model, 1)
    batch = batch_of("one")
    batch.types_BS = torch.randint(0, 2, batch.source_BS.shape, generator=torch.Generator().manual_seed(5))
    partner, share = torch.arange(ROWS).roll(1), torch.full((ROWS,), 0.7)
    mixed = batch.mixed(partner, share)
    found = model.embed(batch.source_BS, model.embedding, None, mixed.mix.source, batch.types_BS)
    real = batch.source_mask_BS.unsqueeze(-1)
    plain = model.embedding(batch.source_BS) * 4.0 * real + model.token_type(batch.types_BS) * 4.0
    expected = 0.7 * plain + 0.3 * plain[partner] + model.sinusoids[:5]
    torch.testing.assert_close(found, expected)


def test_the_header_of_a_classifier_is_read_back_and_a_false_one_refused():
    whole = architecture_of("several", pooling="first", pooler=True)
    assert Architecture.from_dict(whole.to_dict()) == whole
    assert "outputs" not in Architecture.from_config(ModelConfig(), 20).to_dict()
    for change in ({"labels": ["a", "a"]}, {"labels": []}, {"predicts": "x"}, {"scale": 0}, {"pairs": 1}):
        values = whole.to_dict() | {"outputs": {"predicts": "several", "labels": ["a", "b"], **change}}
        with pytest.raises(Exception, match="the architecture in the file's header is not readable"):
            Architecture.from_dict(values)
