import math
import re
from dataclasses import replace
from functools import cache

import hypothesis.extra.numpy as arrays
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tfx.compression import checkpoint
from tfx.config.compose import compose
from tfx.config.schema import EvaluationConfig, TokenizerConfig
from tfx.data.tokenizer import Tokenizer
from tfx.errors import UserError
from tfx.model.architecture import Architecture, BlockShape
from tfx.model.transformer import Transformer, initialise
from tfx.techniques.calibration import Calibration
from tfx.techniques.prune.masks import parse_pattern, pattern_mask, share_masks, smallest
from tfx.techniques.prune.settings import PruneSettings, sparsity_at
from tfx.techniques.prune.structure import StructureSettings, plan_structure, reduced_architecture
from tfx.techniques.stack import Stack

TOKENIZER = Tokenizer.train(TokenizerConfig(kind="char", vocab_size=40), ["abcdefgh"], word_initial_space=False)
SMALL = ["model.width=16", "model.heads=2", "model.ffn_width=32", "model.encoder_layers=1", "model.decoder_layers=2"]


def built(*overrides):
    """A small model, and a stack of prune alone."""
    config = compose([*SMALL, "+technique=prune", "trainer.budget.steps=10", *overrides])
    model = Transformer(Architecture.from_config(config.model, TOKENIZER.vocab_size), config.model)
    initialise(model, 1)
    return model, Stack.from_config(config)


def matrices_of(model):
    """What is pruned by default, by name."""
    return [(name, weight) for name, weight in model.named_parameters() if ".blocks." in name and weight.ndim == 2]


def move(model):
    """Every weight moves, as an optimizer step would have it."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.05 + 0.1 * torch.rand(parameter.shape, generator=generator))


matrices = arrays.arrays(np.float32, st.tuples(st.integers(1, 6), st.integers(1, 12)), elements=st.integers(-3, 3))


@given(matrices, st.floats(0, 0.99), st.sampled_from(["tensor", "row", "global"]))
@settings(max_examples=200, deadline=None)
def test_exactly_the_share_goes_and_nothing_larger_goes_before_something_smaller(values, sparsity, scope):
    weights = {"a": torch.from_numpy(values), "b": torch.from_numpy(values[::-1].copy())}
    masks = share_masks({name: weight.abs() for name, weight in weights.items()}, sparsity, scope)
    if scope == "global":
        units = [
            (
                np.concatenate([values.ravel(), values[::-1].ravel()]),
                np.concatenate([masks[n].numpy().ravel() for n in "ab"]),
            )
        ]
    elif scope == "tensor":
        units = [(weights[n].numpy().ravel(), masks[n].numpy().ravel()) for n in "ab"]
    else:
        units = [pair for n in "ab" for pair in zip(weights[n].numpy(), masks[n].numpy(), strict=True)]
    for unit, mask in units:
        assert (~mask).sum() == round(sparsity * unit.size)
        if mask.any() and not mask.all():
            assert np.abs(unit[~mask]).max() <= np.abs(unit[mask]).min()


@given(matrices, st.integers(0, 12))
@settings(max_examples=100, deadline=None)
def test_among_equals_the_first_go(values, count):
    magnitude = torch.from_numpy(np.abs(values))
    count = min(count, magnitude.shape[1])
    gone = smallest(magnitude, count)
    for row, mask in zip(np.abs(values), gone.numpy(), strict=True):
        assert set(np.argsort(row, kind="stable")[:count]) == set(np.flatnonzero(mask))


@pytest.mark.parametrize(("keep", "of"), [(2, 4), (1, 4), (4, 8), (1, 2)])
def test_a_pattern_holds_in_every_group(keep, of):
    weight = torch.randn(6, 16, generator=torch.Generator().manual_seed(0))
    mask = pattern_mask(weight.abs(), keep, of)
    groups = mask.view(-1, of)
    assert bool((groups.sum(1) == keep).all())
    kept = weight.abs().view(-1, of)
    assert all(kept[i][groups[i]].min() >= kept[i][~groups[i]].max() for i in range(len(groups)))


@pytest.mark.parametrize("text", ["2", "4:2", "0:4", "2:2", "a:b", "-1:4", "2:4:8"])
def test_what_is_no_pattern_is_refused(text):
    with pytest.raises(UserError, match="n:m"):
        parse_pattern(text)


def test_the_ramp_is_that_of_zhu_and_gupta():
    given_ = PruneSettings(start=0.2, end=0.7, sparsity=0.8, initial=0.1)
    assert sparsity_at(given_, 0.1) == 0.0
    assert sparsity_at(given_, 0.2) == pytest.approx(0.1)
    assert sparsity_at(given_, 0.45) == pytest.approx(0.8 + (0.1 - 0.8) * (1 - 0.5) ** 3)
    assert sparsity_at(given_, 0.7) == sparsity_at(given_, 1.0) == pytest.approx(0.8)
    linear = PruneSettings(start=0.0, end=1.0, sparsity=0.6, schedule="linear")
    assert sparsity_at(linear, 0.5) == pytest.approx(0.3)
    assert math.isclose(sparsity_at(PruneSettings(schedule="once"), 0.2), 0.5)


# --- settings ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("settings_", "words"),
    [
        (["initial=0.6", "sparsity=0.5"], "initial=0.6 is above sparsity=0.5"),
        # Rounded to a multiple of 1/256 this sparsity leaves two of 256.
        (["pattern=1:256", "sparsity=0.992"], "sparsity=0.996094"),
        (["pattern=2:4", "scope=row"], "scope=row"),
        (["threshold=0.1", "scope=global"], "scope=global"),
        (["threshold=0.1", "initial=0.1"], "initial"),
        (["pattern=2:4", "vectors=true"], "vectors=true"),
        (["rewind=0.5", "schedule=once", "start=0.3"], "schedule=once at start=0.3"),
        (["rewind=0.3", "schedule=once", "start=0.3"], "schedule=once at start=0.3"),
        (["rewind=0.7"], "schedule=cubic at end=0.7"),
        (["rewind=0.5", "end=1.0"], "end below 1"),
        (["rewind=0.1", "sparsity=0", "structure.ffn=0.5"], "none are pruned"),
    ],
)
def test_settings_that_would_be_ignored_are_refused(settings_, words):
    config = compose(["+technique=prune", *(f"technique.prune.{word}" for word in settings_)])
    with pytest.raises(UserError, match=re.escape(words)):
        Stack.from_config(config)


@pytest.mark.parametrize("threshold", ["0", "-0.1"])
def test_a_threshold_that_no_weight_is_below_is_refused_in_one_line(threshold):
    with pytest.raises(UserError, match=rf"technique\.prune\.threshold={threshold} is out of range: .*above 0"):
        compose(["+technique=prune", f"technique.prune.threshold={threshold}"])


@pytest.mark.parametrize("budget", ["steps", "tokens", "seconds"])
def test_rewinding_without_training_is_refused(budget):
    with pytest.raises(UserError, match="budget is zero"):
        Stack.from_config(compose(["+technique=prune", "technique.prune.rewind=0.1", f"trainer.budget.{budget}=0"]))


@pytest.mark.parametrize(
    "settings_",
    [["pattern=1:256", "sparsity=0.99609375"], ["pattern=1:3", "sparsity=0.667"], ["rewind=0.2", "schedule=cubic"]],
)
def test_settings_that_are_what_they_say_are_taken(settings_):
    Stack.from_config(compose(["+technique=prune", *(f"technique.prune.{word}" for word in settings_)]))


# --- rewinding --------------------------------------------------------------------------------------


@pytest.mark.parametrize("schedule", ["cubic", "once"])
def test_what_stays_returns_to_its_values_at_rewind_and_zeros_stay(schedule):
    model, stack = built(
        "technique.prune.start=0.4",
        "technique.prune.end=0.6",
        "technique.prune.rewind=0.2",
        f"technique.prune.schedule={schedule}",
    )
    reached = 0.4 if schedule == "once" else 0.6
    early, masks = {}, {}
    for step in range(10):
        progress = step / 10
        if progress == 0.2:
            early = {name: weight.detach().clone() for name, weight in model.named_parameters()}
        stack.view.update(model, progress)
        if progress == reached:
            masks = {name: stack.view.mask(name, weight) for name, weight in model.named_parameters()}
            assert all(torch.equal(weight, early[name]) for name, weight in model.named_parameters())
        move(model)
    list(stack.finish(model, Calibration(model, None)))
    pruned = [name for name, mask in masks.items() if mask is not None]
    assert pruned
    for name in pruned:
        weight = dict(model.named_parameters())[name]
        assert torch.equal(stack.view.mask(name, weight), masks[name])
        assert not bool(weight[~masks[name]].any())
    # All that stays had moved since, and was set back: of tensors that are not pruned, all of it.
    survivors = sum(weight.numel() for weight in model.parameters()) - sum(int((~masks[name]).sum()) for name in pruned)
    assert stack.evidence()["prune"]["weights_rewound"] == survivors


def test_without_rewinding_nothing_is_counted_as_rewound():
    model, stack = built()
    for step in range(10):
        stack.view.update(model, step / 10)
        move(model)
    assert stack.evidence()["prune"]["weights_rewound"] == 0


# --- thresholds, vectors, whole parts ---------------------------------------------------------------


@pytest.mark.parametrize("shots", ["ramp", "one shot"])
def test_a_threshold_zeroes_what_is_below_it_and_what_is_gone_stays_gone(shots):
    budget = ["trainer.budget.steps=0"] if shots == "one shot" else []
    model, stack = built("technique.prune.threshold=0.1", *budget)
    expected = {name: weight.detach().abs() >= 0.1 for name, weight in matrices_of(model)}
    assert all(mask.any() and not mask.all() for mask in expected.values())
    if shots == "ramp":
        for step in range(2, 10):
            stack.view.update(model, step / 10)
            for name, weight in matrices_of(model):
                if step <= 7:  # after the end the masks stay as they are
                    expected[name] &= weight.detach().abs() >= 0.1
                assert torch.equal(stack.view.mask(name, weight), expected[name])
            move(model)
    list(stack.finish(model, Calibration(model, None)))
    for name, weight in matrices_of(model):
        assert torch.equal(weight != 0, expected[name])


@pytest.mark.parametrize("scope", ["tensor", "row", "global"])
def test_norms_and_biases_are_pruned_where_that_is_asked_and_else_left(scope, tmp_path):
    asked = ["technique.prune.vectors=true", "model.bias=true", f"technique.prune.scope={scope}"]
    model, stack = built(*asked)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_()
    list(stack.finish(model, Calibration(model, None)))
    weights = dict(model.named_parameters())
    chosen = {name: weight for name, weight in weights.items() if weight.ndim == 1 or ".blocks." in name}
    assert any(weight.ndim == 1 for weight in chosen.values())
    if scope == "global":
        zeros = sum(int((weight == 0).sum()) for weight in chosen.values())
        assert zeros == round(0.5 * sum(weight.numel() for weight in chosen.values()))
    else:
        assert all(int((w == 0).sum()) == round(0.5 * w.numel()) for w in chosen.values() if w.ndim == 1)
    assert all(bool((weight != 0).all()) for name, weight in weights.items() if name not in chosen)
    # The file holds the vectors' zeros too.
    path = tmp_path / "compressed.safetensors"
    checkpoint.save(path, model, TOKENIZER, EvaluationConfig(), stack.storage())
    back = checkpoint.load(path).model.state_dict()
    assert all(torch.equal(back[name], weight) for name, weight in weights.items())


def test_the_plan_counts_the_parameters_of_vectors_that_are_left_alone():
    model, stack = built()
    vectors = sum(weight.numel() for weight in model.parameters() if weight.ndim == 1)
    assert f"{vectors:,} parameters of norms and biases left alone" in dict(stack.plan_for(model))["prune"]
    model, stack = built("technique.prune.vectors=true", "technique.prune.embeddings=true")
    assert "left alone" not in dict(stack.plan_for(model))["prune"]


blocks = st.builds(
    lambda kv, serves, cross, ffn: BlockShape(kv * serves, kv, cross * serves, cross, ffn),
    st.integers(4, 7),
    st.integers(1, 2),
    st.integers(4, 7),
    st.integers(4, 9),
)


@cache
def small_architecture():
    return Architecture.from_config(compose(SMALL).model, 40)


@given(
    st.lists(blocks, min_size=1, max_size=4),
    st.floats(0.2, 0.99),
    st.floats(0.2, 0.99),
    st.integers(1, 4),
)
@settings(max_examples=60, deadline=None)
def test_the_architecture_that_is_checked_before_training_is_the_one_that_training_leaves(shapes, heads, ffn, layers):
    whole = replace(
        small_architecture(), head_width=2, encoder=tuple(replace(s, cross_heads=0, cross_kv_heads=0) for s in shapes)
    )
    whole = replace(whole, decoder=tuple(shapes))
    asked = StructureSettings(heads=heads, ffn=ffn, encoder_layers=min(layers, len(shapes)))
    reduced = reduced_architecture(whole, asked)
    assert reduced != whole
    model = Transformer(whole)
    initialise(model, 0)
    assert plan_structure(model, asked).architecture == reduced


@pytest.mark.parametrize(("name", "share"), [("heads", 0.2), ("ffn", 0.01)])
def test_a_share_that_removes_nothing_is_refused(name, share):
    model, stack = built(f"technique.prune.structure.{name}={share}")
    with pytest.raises(UserError, match=f"structure.{name}={share} rounds to none"):
        stack.plan_for(model)


def test_the_plan_says_what_is_removed():
    model, stack = built(
        *("technique.prune.structure.heads=0.5", "technique.prune.structure.ffn=0.25"),
        "technique.prune.structure.decoder_layers=1",
    )
    before = sum(weight.numel() for weight in model.parameters())
    [removed, left] = [line for name, line in stack.plan_for(model) if name == "prune"]
    for rewiring in stack.rewire(model, 0.5, None):
        rewiring.apply(model)
    after = sum(weight.numel() for weight in model.parameters())
    # Three blocks and five attentions, of which a block with two attentions goes whole.
    assert removed == (
        f"removes 7 of 10 heads, 48 of 96 feed-forward units, 1 of 2 decoder layers, "
        f"{before - after:,} of {before:,} parameters"
    )
    pruned = sum(weight.numel() for _, weight in matrices_of(model))
    assert f"50% of {pruned:,} weights, {pruned / after:.0%} of the model" in left
