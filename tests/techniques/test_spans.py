"""Teachers with another tokenizer: spans that both tokenize, against brute force, and what is learnt from them."""

import itertools
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional

from tfx.config.compose import compose
from tfx.config.schema import EvaluationConfig, ModelConfig, TokenizerConfig
from tfx.data.ragged import Ragged
from tfx.data.spans import NO_SPAN, align
from tfx.data.tokenizer import Tokenizer
from tfx.errors import UserError
from tfx.model.architecture import Architecture
from tfx.model.loss import projected_losses
from tfx.model.transformer import Transformer, initialise, run_batch
from tfx.tasks import task_named
from tfx.tasks.lm import Stream, collate_windows
from tfx.tasks.prepare import PreparedData
from tfx.tasks.seq2seq import Pairs, collate_pairs
from tfx.techniques.contract import Instant, Teacher
from tfx.techniques.distill.spans import SpanLikelihood, span_loss
from tfx.techniques.stack import Stack
from tfx.training.step import Stepper

CPU = torch.device("cpu")
TEXTS = ["a cat sat on the mat", "the cat ate the rat", "naïve cafés, naïve €", "sat sat"] * 3


def trained(kind: str, size: int, *, space: bool) -> Tokenizer:
    return Tokenizer.train(TokenizerConfig(kind=kind, vocab_size=size), TEXTS, word_initial_space=space)


TOKENIZERS = {
    "small": trained("bpe", 265, space=True),
    "large": trained("bpe", 300, space=True),
    "no space": trained("bpe", 290, space=False),
    "char": trained("char", 40, space=True),
    "unigram": trained("unigram", 50, space=True),
}


def spelt(tokenizer: Tokenizer, ids: list[int]) -> list[str | None]:
    """What each beginning of a row spells; None where that is no text of whole characters."""
    whole = tokenizer.decode(ids)
    texts = [tokenizer.decode(ids[:count]) for count in range(1, len(ids) + 1)]
    # Of a space before the first word nothing is left in a text.
    return [text if text and whole.startswith(text) and not text.endswith("\ufffd") else None for text in texts]


@pytest.mark.parametrize(("own", "other"), list(itertools.permutations(TOKENIZERS, 2)))
def test_spans_are_the_shortest_texts_that_both_tokenize(own, other):
    ours, theirs = TOKENIZERS[own], TOKENIZERS[other]
    for text in ["the cat sat", "naïve €", "a rat ate the café, sat"]:
        ids = ours.encode([text])[0]
        found = align([*ids, ours.eos], ours, theirs)
        assert found.ids == [*theirs.encode([ours.decode(ids)])[0], theirs.eos]
        assert found.own[-1] == found.other[-1] == max(found.own)
        # Brute force: the beginnings of the text that are whole tokens of both.
        common = {*spelt(ours, ids)} & {*spelt(theirs, found.ids[:-1])} - {None}
        for tokenizer, tokens, spans in ((ours, ids, found.own), (theirs, found.ids, found.other)):
            ends = [
                beginning
                for beginning, span, after in zip(spelt(tokenizer, tokens), spans, spans[1:], strict=False)
                if after != span and beginning is not None
            ]
            if tokenizer.unk not in tokens:
                assert set(ends) == common, (own, other, text)
        for span in range(max(found.own)):
            pieces = []
            for tokenizer, tokens, spans in ((ours, ids, found.own), (theirs, found.ids, found.other)):
                held = [place for place, number in enumerate(spans[: len(tokens)]) if number == span]
                assert held == list(range(held[0], held[-1] + 1)) if held else True
                if held:
                    before, after = tokenizer.decode(tokens[: held[0]]), tokenizer.decode(tokens[: held[-1] + 1])
                    pieces.append(after[len(before) :])
            assert len(set(pieces)) <= 1, (own, other, text, span, pieces)


@settings(max_examples=40, deadline=None)
@given(
    st.lists(st.sampled_from(["the", " cat", "€", "na", "ïve ", "s", "at", "<eos>"]), min_size=1, max_size=8), st.data()
)
def test_a_row_that_is_cut_anywhere_is_aligned_where_it_can_be(words, data):
    ours, theirs = TOKENIZERS["no space"], TOKENIZERS["large"]
    row = [token for word in words for token in ([ours.eos] if word == "<eos>" else ours.encode([word])[0])]
    first = data.draw(st.integers(0, len(row) - 1))
    row = row[first:]
    found = align(row, ours, theirs)
    assert len(found.own) == len(row)
    assert len(found.other) == len(found.ids)
    assert [n for n, _ in itertools.groupby(s for s in found.own if s != NO_SPAN)] == sorted({*found.own} - {NO_SPAN})
    assert {*found.own} - {NO_SPAN} == {*found.other} - {NO_SPAN}
    assert found.ids.count(theirs.eos) == row.count(ours.eos)
    for span in {*found.own} - {NO_SPAN}:
        one, two = (
            [token for token, number in zip(tokens, spans, strict=True) if number == span]
            for tokens, spans in ((row, found.own), (found.ids, found.other))
        )
        if one == [ours.eos]:
            assert two == [theirs.eos]
        else:
            assert ours.decode(one).strip() == theirs.decode(two).strip()
            assert "\ufffd" not in ours.decode(one)


def test_the_loss_is_that_of_the_paper_and_its_limit_is_a_divergence_of_surprises():
    teacher, student = -torch.rand(9).double() * 5, -torch.rand(9).double() * 5
    for temperature in (1.0, 3.0):
        p, q = (teacher / temperature).exp(), (student / temperature).exp()
        expected = temperature * (p * (p / q).log() + (1 - p) * ((1 - p) / (1 - q)).log())
        torch.testing.assert_close(span_loss(teacher, student, temperature), expected)
    limit = teacher * (student / teacher).log() - student + teacher
    torch.testing.assert_close(span_loss(teacher, student, 1e4), limit, rtol=1e-2, atol=1e-3)
    certain = span_loss(torch.zeros(2), torch.tensor([0.0, -1.0]), 1.0)
    assert certain[0] == 0
    assert torch.isfinite(certain).all()


def test_its_gradient_is_that_of_autograd_also_over_slices():
    torch.manual_seed(0)
    hidden, weight = torch.randn(400, 6, requires_grad=True), torch.randn(50, 6, requires_grad=True)
    target, span = torch.randint(0, 50, (400,)), torch.arange(400) // 3
    span[::7] = -1
    teacher = -torch.rand(134) * 9
    loss = SpanLikelihood(teacher, span, target, (hidden, weight), torch.float32, 2.0)
    total, (reported,) = projected_losses(hidden, weight, [(loss, 0.7)])
    total.backward()
    ours = hidden.grad.clone(), weight.grad.clone()
    hidden.grad = weight.grad = None
    log_q = (hidden @ weight.t()).log_softmax(1).gather(1, target.unsqueeze(1)).squeeze(1)
    kept = span >= 0
    student = torch.zeros(134).index_add(0, span[kept], log_q[kept])
    expected = span_loss(teacher, student, 2.0)[span[kept].unique()].sum()
    (0.7 * expected).backward()
    torch.testing.assert_close(reported.sum(), expected.detach(), rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(ours[0], hidden.grad, rtol=1e-3, atol=1e-5)
    torch.testing.assert_close(ours[1], weight.grad, rtol=1e-3, atol=1e-4)


# --- batches ----------------------------------------------------------------------------------------

SIZES = {"width": 16, "heads": 2, "ffn_width": 16, "dropout": 0.0}
MODELS = {
    "seq2seq": {"encoder_layers": 1, "decoder_layers": 1},
    "lm": {"family": "lm", "encoder_layers": 0, "decoder_layers": 1},
}


def model(family: str, tokenizer: Tokenizer, seed: int, context: int = 32) -> Transformer:
    config = ModelConfig(**SIZES, **MODELS[family], context=context)
    built = Transformer(Architecture.from_config(config, tokenizer.vocab_size), config)
    initialise(built, seed)
    return built


def batch_of(family: str, tokenizer: Tokenizer):
    if family == "lm":
        ids = [token for text in TEXTS for token in [*tokenizer.encode([text])[0], tokenizer.eos]]
        stream = Stream(np.array(ids), text_bytes=len(ids))
        return collate_windows(stream, np.array([0, 10, 25]), 12, tokenizer)
    sides = (Ragged.from_lists(tokenizer.encode(texts), np.int64) for texts in (TEXTS[:3], TEXTS[1:4]))
    return collate_pairs(Pairs(*sides), np.arange(3), tokenizer)


def by_hand(family, batch, student, teacher, ours, theirs):
    """The loss, span by span, from each row alone."""
    total = torch.zeros(())
    for row in range(3):
        out = [token for token in batch.target_out_BT[row].tolist() if token >= 0]
        whole = out if family == "seq2seq" else [int(batch.target_in_BT[row, 0]), *out]
        found = align(whole, ours, theirs)
        log = []
        for m, tokenizer, tokens in ((student, ours, whole), (teacher, theirs, found.ids)):
            if family == "seq2seq":
                text = ours.decode(batch.source_BS[row].tolist())
                source = torch.tensor([[*tokenizer.encode([text])[0], tokenizer.eos]])
                states = m(torch.tensor([[tokenizer.bos, *tokens[:-1]]]), source)
                scored = tokens
            else:
                states, scored = m(torch.tensor([tokens[:-1]])), tokens[1:]
            logs = m.project(states)[0].log_softmax(1)
            log.append([logs[place, token] for place, token in enumerate(scored)])
        own, other = (spans if family == "seq2seq" else spans[1:] for spans in (found.own, found.other))
        first = {found.own[0], found.other[0]} if family == "lm" else set()
        for span in {*own} & {*other} - {NO_SPAN} - first:
            q, p = (
                sum(value for value, number in zip(logs, spans, strict=True) if number == span)
                for logs, spans in zip(log, (own, other), strict=True)
            )
            total = total + span_loss(p.detach().reshape(1), q.reshape(1), 5.0)[0]
    return total


@pytest.mark.parametrize("family", MODELS)
def test_a_step_learns_the_likelihoods_of_spans_from_a_teacher_with_other_tokens(family):
    ours, theirs = TOKENIZERS["no space" if family == "lm" else "small"], TOKENIZERS["large"]
    dataset = ["dataset=text", "model=gpt_nano"] if family == "lm" else []
    words = ["technique.distill.align_tokens=true", "technique.distill.align_temperature=5", "trainer.precision=fp32"]
    config = compose([*dataset, "technique=distill", "technique.distill.teacher=nowhere", *words])
    stack, student, teacher = Stack.from_config(config), model(family, ours, 1), model(family, theirs, 2)
    ((technique, _),) = stack.teacher_needs()
    batch = batch_of(family, ours)
    train = type("Train", (), {"longest": 0})()
    data = PreparedData("data", family, ours, {"train": train}, "of the data")
    technique.receive_teachers([Teacher(teacher, "other", theirs, EvaluationConfig(), Path(), sha256="x")], data, CPU)
    stepper = Stepper(config, student, stack.prepare_model(student), CPU, stack, 0.0, print)
    loss, _ = stepper._loss(batch, Instant(1, 0, 0, 0.5))
    logits = student.project(run_batch(student, batch)).flatten(0, 1)
    task = functional.cross_entropy(logits, batch.target_out_BT.flatten(), ignore_index=-100, reduction="sum")
    spans = by_hand(family, batch, student, teacher, ours, theirs)
    assert float(spans.detach()) > 0.1
    torch.testing.assert_close(loss, 0.2 * task + 0.8 * spans, rtol=1e-4, atol=1e-4)
    loss.backward()
    ours_grad = student.embedding.weight.grad.clone()
    student.zero_grad()
    (0.2 * task + 0.8 * spans).backward()
    torch.testing.assert_close(ours_grad, student.embedding.weight.grad, rtol=1e-3, atol=1e-4)
    assert all(parameter.grad is None for parameter in teacher.parameters())
    assert 0.3 < technique.evidence()["aligned_share"] <= 1


@pytest.mark.parametrize("family", MODELS)
def test_a_teacher_of_a_smaller_context_reads_the_beginning(family):
    ours, theirs = TOKENIZERS["no space"], TOKENIZERS["char"]
    told = task_named(family).retold(batch_of(family, ours), ours, theirs, 10)
    assert told.batch.target_in_BT.shape[1] <= 10
    counts = torch.bincount(told.own_BT[told.own_BT >= 0], minlength=told.count)
    others = torch.bincount(told.other_BT[told.other_BT >= 0], minlength=told.count)
    assert counts.min() > 0
    assert others.min() > 0
    # A span that goes beyond does not count: all letters of each one that does are there.
    for span in range(told.count):
        row = int((told.own_BT == span).any(1).nonzero())
        one = batch_of(family, ours).target_out_BT[row][told.own_BT[row] == span].tolist()
        two = told.batch.target_out_BT[row][told.other_BT[row] == span].tolist()
        assert ours.decode(one).strip() == theirs.decode(two).strip()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["technique.distill.loss=none", "technique.distill.sequence_level=true"], "a way to learn from logits"),
        (["technique.distill.cache_top_k=4"], "leave one of them out"),
    ],
)
def test_what_cannot_be_aligned_is_refused(words, message):
    with pytest.raises(UserError, match=message):
        Stack.from_config(compose(["technique=distill", "technique.distill.align_tokens=true", *words]))
    assert math.isfinite(float(span_loss(torch.zeros(1), torch.zeros(1), 1.0)))
