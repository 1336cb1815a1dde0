"""Documents that share a window have the states, loss and gradients that each has alone."""

import numpy as np
import pytest
import torch
from torch.nn import functional

from tfx.model.batch import Batch
from tfx.model.loss import CrossEntropy, projected_losses
from tfx.model.transformer import run_batch

START = 2
# The first begins in the middle of a document, as windows do; one has no more than the token that begins it.
DOCUMENTS = [[5, 6, 7], [START, 3, 8, 9, 4], [START], [START, 10, 3, 3, 5, 6, 7]]
POSITIONS = ("sinusoidal", "learned", "rotary", "alibi", "relative")


def joined(documents) -> list[int]:
    return [token for document in documents for token in document]


def batch_of(rows, start=START) -> Batch:
    """Each input's target is the token after it; the last one's is 1."""
    tokens = torch.tensor(rows)
    targets = torch.cat([tokens[:, 1:], torch.ones(len(rows), 1, dtype=torch.int64)], dim=1)
    count = tokens.numel()
    return Batch(tokens, targets, None, None, np.arange(len(rows)), count, count, count, (0, 1), document_start=start)


@pytest.mark.parametrize("positions", POSITIONS)
@pytest.mark.parametrize("settings", [{}, {"kv_heads": 2, "qk_norm": True}], ids=["plain", "grouped"])
def test_each_document_has_the_states_that_it_has_alone(make_model, positions, settings):
    model = make_model(family="lm", positions=positions, **settings)
    orders = [DOCUMENTS, [DOCUMENTS[0], *DOCUMENTS[:0:-1]]]
    packed = run_batch(model, batch_of([joined(documents) for documents in orders]))
    for row, documents in zip(packed, orders, strict=True):
        alone = torch.cat([model(torch.tensor([document]))[0] for document in documents])
        torch.testing.assert_close(row, alone, atol=1e-6, rtol=0)
        torch.testing.assert_close(model.project(row), model.project(alone), atol=1e-6, rtol=0)
    whole = run_batch(model, batch_of([joined(DOCUMENTS)], start=None))
    assert not torch.allclose(packed[0, 3:], whole[0, 3:], atol=1e-2)


@pytest.mark.parametrize("positions", POSITIONS)
def test_loss_and_gradients_are_those_of_the_documents_one_by_one(make_model, positions):
    model = make_model(family="lm", positions=positions)
    batch = batch_of([joined(DOCUMENTS)])
    hidden = run_batch(model, batch).flatten(0, 1)
    loss, _ = projected_losses(*model.output_factors(hidden), [(CrossEntropy(batch.targets_and_weights()), 1.0)])
    loss.backward()
    found = {name: weight.grad.clone() for name, weight in model.named_parameters()}
    model.zero_grad()
    targets, total = batch.target_out_BT[0].split([len(document) for document in DOCUMENTS]), 0.0
    for document, own in zip(DOCUMENTS, targets, strict=True):
        logits = model.project(model(torch.tensor([document]))[0])
        total = total + functional.cross_entropy(logits, own, reduction="sum")
    total.backward()
    assert loss.item() == pytest.approx(total.item(), abs=1e-4)
    for name, weight in model.named_parameters():
        torch.testing.assert_close(found[name], weight.grad, atol=1e-4, rtol=1e-4, msg=name)


def test_the_kernel_for_short_sequences_keeps_documents_apart_too(make_model):
    """It runs in training on a CPU, in fp32."""
    model = make_model(family="lm", positions="rotary", dtype=torch.float32)
    batch = batch_of([joined(DOCUMENTS)])
    plain = run_batch(model, batch)
    torch.testing.assert_close(run_batch(model.train(), batch), plain, atol=1e-5, rtol=0)


def test_a_mixed_row_ends_a_document_where_either_row_does(make_model):
    """What comes before both documents begin changes nothing after it."""
    model = make_model(family="lm", positions="learned")
    found = []
    for before in ([3, 4, 5], [9, 9, 8]):
        rows = [[before[0], before[1], START, 5, 6, 7], [9, 9, before[2], START, 3, 4]]
        batch = batch_of(rows).mixed(torch.tensor([1, 0]), torch.tensor([0.7, 0.7], dtype=torch.float64))
        found.append(run_batch(model, batch)[:, 3:])
    assert torch.equal(*found)


def test_a_checkpointed_model_keeps_documents_apart(make_model):
    model = make_model(family="lm", positions="alibi").train()
    batch = batch_of([joined(DOCUMENTS)])
    plain = run_batch(model, batch)
    model.set_checkpointing(True)
    assert torch.equal(run_batch(model, batch), plain)
