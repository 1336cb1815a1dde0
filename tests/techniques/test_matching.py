"""What a student's layers learn from a teacher's, against the papers' formulas, written out row by row."""

import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch.nn import functional

from tfx.config.schema import ModelConfig
from tfx.data.ragged import Ragged
from tfx.errors import UserError
from tfx.model.architecture import Architecture
from tfx.model.attention import Bias
from tfx.model.batch import Batch
from tfx.model.transformer import Transformer, initialise, run_batch_with_states
from tfx.tasks.seq2seq import Pairs, collate_pairs
from tfx.techniques.distill.matching import Matcher, check_matching, layer_map, relation
from tfx.techniques.distill.settings import DistillSettings

TOKENS = SimpleNamespace(pad=0, bos=1, eos=2)
LENGTHS = [(3, 3), (4, 2), (6, 5)]


def model(seed: int, **others: object) -> Transformer:
    sizes = {"width": 16, "heads": 2, "ffn_width": 16, "encoder_layers": 2, "decoder_layers": 2, "dropout": 0.0}
    built = Transformer(Architecture.from_config(ModelConfig(**{**sizes, **others}), 20))
    initialise(built, seed)
    return built


def pairs() -> Pairs:
    rng = np.random.Generator(np.random.PCG64(0))
    sides = zip(*LENGTHS, strict=True)
    return Pairs(*(Ragged.from_lists([rng.integers(4, 20, size=n).tolist() for n in side], np.int64) for side in sides))


PAIRS = pairs()
BATCH = collate_pairs(PAIRS, np.arange(len(PAIRS)), TOKENS)
WEIGHT_BT = (BATCH.target_out_BT >= 0).float()
# Each pair by itself, without padding.
ALONE = [collate_pairs(PAIRS, np.array([row]), TOKENS) for row in range(len(PAIRS))]


def errors(settings, student, teacher, matcher=None):
    matcher = matcher or Matcher(settings, student, teacher)
    with torch.no_grad():
        _, taught = run_batch_with_states(teacher.requires_grad_(False), BATCH)
    _, states = run_batch_with_states(student, BATCH)
    return matcher.errors(states, taught, BATCH, WEIGHT_BT)


def alone(student, teacher):
    """Stack by stack, the states of each pair in both models."""
    for name in ("encoder", "decoder"):
        yield name, [tuple(getattr(run_batch_with_states(m, b)[1], name) for m in (student, teacher)) for b in ALONE]


def vectors(m, name, layer, x_1LD):
    """Queries, keys and values (L, H K) of a layer, by its matrices."""
    block = getattr(m, name).blocks[layer - 1]
    x_LD = block.attention_norm(x_1LD)[0]
    return [
        functional.linear(x_LD, part.weight, part.bias)
        for part in (block.attention.q, block.attention.k, block.attention.v)
    ]


def heads_of(x_LX, heads):
    return torch.stack(x_LX.chunk(heads, dim=1))


def seen(name, length):
    whole = torch.ones(length, length)
    return whole.tril() if name == "decoder" else whole


def test_the_maps_are_those_of_the_paper():
    assert layer_map("uniform", 4, 12) == [(1, 3), (2, 6), (3, 9), (4, 12)]
    assert layer_map("top", 4, 12) == [(1, 9), (2, 10), (3, 11), (4, 12)]
    assert layer_map("bottom", 4, 12) == [(1, 1), (2, 2), (3, 3), (4, 4)]
    assert layer_map("last", 4, 12) == [(4, 12)]
    for ours in range(1, 9):
        for theirs in range(1, 9):
            found = [taught for _, taught in layer_map("uniform", ours, theirs)]
            assert found == sorted(found)
            assert found[-1] == theirs
            assert found[0] >= 1


def test_states_are_what_enters_each_block_and_what_leaves_the_last():
    m = model(1)
    hidden, states = run_batch_with_states(m, BATCH)
    assert torch.equal(hidden, m(BATCH.target_in_BT, BATCH.source_BS, BATCH.source_mask_BS))
    assert torch.equal(m.decoder.norm(states.decoder[-1]), hidden)
    mask = Bias(BATCH.source_mask_BS[:, None, None, :])
    for before, after, block in zip(states.encoder[:-1], states.encoder[1:], m.encoder.blocks, strict=True):
        assert torch.equal(block(before, mask), after)


@pytest.mark.parametrize("kind", ["uniform", "top"])
def test_hidden_states_are_compared_layer_by_layer_with_the_embeddings_too(kind):
    student, teacher = model(1, decoder_layers=1), model(2, width=24, encoder_layers=4)
    settings = DistillSettings(hidden=1, layer_map=kind)
    matcher = Matcher(settings, student, teacher)
    layers = {"encoder": {"uniform": [2, 4], "top": [3, 4]}[kind], "decoder": [2]}
    expected = []
    for name, rows in alone(student, teacher):
        weight = matcher.projections[name].weight
        for mine, theirs in enumerate([0, *layers[name]]):
            gaps = []
            for own, other in rows:
                ours = getattr(student, name).norm(own[mine]) @ weight.t()
                gaps.append((ours - getattr(teacher, name).norm(other[theirs])).square().mean(2)[0])
            expected.append(torch.cat(gaps).mean())
    torch.testing.assert_close(errors(settings, student, teacher, matcher).hidden, torch.stack(expected).mean())


def test_attention_scores_are_compared_before_their_softmax_where_a_key_is_seen():
    student, teacher = model(1), model(2, width=24, encoder_layers=4)
    expected = []
    for name, rows in alone(student, teacher):
        for mine, theirs in {"encoder": [(1, 2), (2, 4)], "decoder": [(1, 1), (2, 2)]}[name]:
            gaps = []
            for own, other in rows:
                scores = []
                for m, states, layer in ((student, own, mine), (teacher, other, theirs)):
                    q, k, _ = vectors(m, name, layer, states[layer - 1])
                    scores.append(heads_of(q, 2) @ heads_of(k, 2).mT / math.sqrt(m.architecture.head_width))
                mask = seen(name, scores[0].shape[1])
                gaps.append(((scores[0] - scores[1]).square().mean(0) * mask).sum(1) / mask.sum(1))
            expected.append(torch.cat(gaps).mean())
    found = errors(DistillSettings(attention=1, layer_map="uniform"), student, teacher)
    torch.testing.assert_close(found.attention, torch.stack(expected).mean())
    assert found.hidden is None
    assert found.flops > 0
    found.attention.backward()
    last = student.decoder.blocks[1].attention
    assert float(last.q.weight.grad.abs().max()) > 0
    assert last.v.weight.grad is None
    assert all(parameter.grad is None for parameter in teacher.parameters())


@pytest.mark.parametrize(
    ("kinds", "heads", "layer"),
    [(["query-query", "key-key", "value-value"], 8, 3), (["query-key", "value-value"], None, None)],
)
def test_relations_need_neither_equal_widths_nor_equal_heads(kinds, heads, layer):
    student = model(1, width=16, heads=2)
    teacher = model(2, width=24, heads=4, encoder_layers=3, decoder_layers=3)
    settings = DistillSettings(relations=1, relation_pairs=kinds, relation_heads=heads, relation_layer=layer)
    regrouped, taught = heads or 4, layer or 3
    expected = []
    for name, rows in alone(student, teacher):
        for kind in kinds:
            one, two = (("query", "key", "value").index(vector) for vector in kind.split("-"))
            found = []
            for own, other in rows:
                related = []
                for m, x, number in ((student, own[1], 2), (teacher, other[taught - 1], taught)):
                    of = [heads_of(x, regrouped) for x in vectors(m, name, number, x)]
                    scores = of[one] @ of[two].mT / math.sqrt(of[one].shape[2])
                    related.append(scores.masked_fill(seen(name, scores.shape[1]) == 0, -math.inf).softmax(2))
                q, p = related
                found.append(torch.where(p > 0, p * (p / q).log(), 0.0).sum(2).mean(0))
            expected.append(torch.cat(found).mean())
    divergence = errors(settings, student, teacher).relations
    torch.testing.assert_close(divergence, torch.stack(expected).mean())
    divergence.backward()
    assert float(student.embedding.weight.grad.abs().max()) > 0


@pytest.mark.parametrize(
    "others", [{}, {"positions": "rotary", "qk_norm": True, "kv_heads": 1, "norm_position": "post"}]
)
def test_the_relation_of_queries_and_keys_in_a_models_own_heads_is_its_attention(others):
    m = model(1, **others)
    _, states = run_batch_with_states(m, BATCH)
    x_BTD, block = states.decoder[1], m.decoder.blocks[1]
    q, k, _ = m.projections(m.decoder, 1, x_BTD)
    length = x_BTD.shape[1]
    seen_BTT = torch.ones(3, length, length, dtype=torch.bool).tril()
    expected = block.attention.weights(block.attended(x_BTD), None, Bias(causal=True), m._rotary(length))
    torch.testing.assert_close(relation(q, k, 2, seen_BTT).exp(), expected, rtol=1e-4, atol=1e-6)


def test_a_student_that_is_its_teacher_has_nothing_to_learn():
    student, teacher = model(1), model(1)
    found = errors(DistillSettings(attention=1, relations=1), student, teacher)
    assert float(found.attention) == 0
    assert float(found.relations) == 0
    apart = errors(DistillSettings(attention=1, relations=1), model(3), teacher)
    assert float(apart.attention) > 0.01
    assert float(apart.relations) > 0.001


@pytest.mark.parametrize(
    ("settings", "others", "words"),
    [
        ({"attention": 1}, {"heads": 4}, "student's encoder layer 2 has 2, the teacher's layer 2 4: use technique.d"),
        ({"hidden": 1, "layer_map": "top"}, {"encoder_layers": 1}, "2 encoder layers or more, and it has 1"),
        ({"relations": 1, "relation_layer": 3}, {}, "the teacher has 2 encoder layers"),
        (
            {"relations": 1, "relation_heads": 3},
            {},
            "heads of the student's encoder layer are 16 wide together, which 3",
        ),
        ({"relations": 1}, {"width": 18, "heads": 6}, "student's encoder layer are 16 wide together, which 6"),
    ],
)
def test_layers_that_cannot_be_compared_are_refused(settings, others, words):
    with pytest.raises(UserError, match=words):
        check_matching(DistillSettings(**settings), model(1).architecture, model(2, **others).architecture)
    check_matching(DistillSettings(relations=1), model(1).architecture, model(2, width=24, heads=4).architecture)


def test_a_document_learns_the_same_whatever_stands_before_it_in_its_window():
    """With ``dataset.document_mask`` a position is compared with those of its own document alone."""
    own, others = [0, 5, 6, 7, 8], ([0, 9, 10, 11], [0, 17, 4, 12])
    batches = []
    for other in others:
        tokens = torch.tensor([[*other, *own]])
        # What comes before has no weight, but is there to be seen.
        labels = torch.cat([tokens[:, 1:], tokens[:, :1]], 1)
        batches.append(Batch(tokens, labels, None, None, np.arange(1), 9, 9, 9, (1,), document_start=0))
    sizes = {"family": "lm", "encoder_layers": 0, "context": 16}
    student, teacher = model(1, **sizes), model(2, **sizes).requires_grad_(False)
    matcher = Matcher(DistillSettings(attention=1, relations=1), student, teacher)
    weight_BT = torch.tensor([[0.0] * 4 + [1.0] * 5])
    found = []
    for batch in batches:
        states = [run_batch_with_states(m, batch)[1] for m in (student, teacher)]
        found.append(matcher.errors(*states, batch, weight_BT))
    assert found[0].attention > 0
    torch.testing.assert_close(found[0].attention, found[1].attention)
    torch.testing.assert_close(found[0].relations, found[1].relations)
