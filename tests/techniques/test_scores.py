"""Scores of pruning beyond magnitude: movement while training, Wanda and SparseGPT in one shot."""

import re
from copy import deepcopy
from functools import cache

import numpy as np
import pytest
import torch
from omegaconf import OmegaConf

from tfx.config.compose import compose
from tfx.config.schema import TokenizerConfig
from tfx.data.ragged import Ragged
from tfx.data.tokenizer import Tokenizer
from tfx.errors import UserError
from tfx.model.architecture import Architecture
from tfx.model.transformer import Transformer, initialise, run_batch
from tfx.tasks.seq2seq import Pairs, collate_pairs
from tfx.techniques.calibration import Calibration
from tfx.techniques.prune import Prune
from tfx.techniques.prune.movement import MovementScores
from tfx.techniques.prune.one_shot import sparsegpt
from tfx.techniques.prune.settings import PruneSettings, ramp
from tfx.techniques.prune.structure import plan_structure
from tfx.techniques.stack import Stack

TOKENIZER = Tokenizer.train(TokenizerConfig(kind="char", vocab_size=40), ["abcdefgh"], word_initial_space=False)
SMALL = ["model.width=16", "model.heads=2", "model.ffn_width=32", "model.encoder_layers=1", "model.decoder_layers=1"]


@cache
def small(steps):
    config = compose([*SMALL, f"trainer.budget.steps={steps}"])
    model = Transformer(Architecture.from_config(config.model, TOKENIZER.vocab_size), config.model)
    initialise(model, 1)
    return config, model.eval()


def built(*settings, steps=10):
    """A small model, and a stack of prune alone."""
    config, model = small(steps)
    asked = OmegaConf.merge(OmegaConf.structured(PruneSettings), OmegaConf.from_dotlist(list(settings)))
    return deepcopy(model), Stack([Prune(OmegaConf.to_object(asked))], config)


@pytest.fixture(scope="module")
def batches():
    """Batches of padded pairs."""
    rng = np.random.default_rng(0)
    rows = [rng.integers(4, TOKENIZER.vocab_size, size=rng.integers(2, 9)).tolist() for _ in range(64)]
    pairs = Pairs(Ragged.from_lists(rows, np.int64), Ragged.from_lists(rows[::-1], np.int64))
    return [collate_pairs(pairs, np.arange(start, start + 32), TOKENIZER) for start in (0, 32)]


def inputs_of(model, name, batches):
    """What a layer really reads, (N, C): padding of its own side is left out."""
    found = []
    is_source = name.startswith("encoder.") or name.endswith(("cross.k", "cross.v"))
    handle = model.get_submodule(name).register_forward_pre_hook(lambda _, inputs: found.append(inputs[0]))
    kept = []
    with torch.no_grad():
        for batch in batches:
            run_batch(model, batch)
            real = batch.source_mask_BS if is_source else batch.target_out_BT >= 0
            kept.append(found[-1].flatten(0, 1) if real is None else found[-1][real])
    handle.remove()
    return torch.cat(kept).double()


def matrices_of(model):
    return {name: weight for name, weight in model.named_parameters() if ".blocks." in name and weight.ndim == 2}


# --- Wanda ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("settings", [["sparsity=0.6"], ["sparsity=0.5", 'pattern="2:4"']])
def test_wanda_keeps_in_each_row_the_largest_products_with_the_norms_of_inputs(batches, settings):
    model, stack = built("score=wanda", "calibration=2", "store=fp32", *settings, steps=0)
    before = {name: weight.detach().clone() for name, weight in matrices_of(model).items()}
    list(stack.finish(model, Calibration(model, lambda count: batches[:count])))
    by_magnitude = 0
    for name, weight in matrices_of(model).items():
        if name.endswith((".o.weight", "cross.q.weight")) or ".ffn." in name:
            continue  # they read what other layers of their block give, which were whole when norms were measured
        # Blocks before are pruned when the norms are measured, as they are now.
        norms = inputs_of(model, name.removesuffix(".weight"), batches).norm(dim=0).numpy()
        for old, new in zip(before[name].numpy(), weight.detach().numpy(), strict=True):
            product = np.abs(old) * norms
            if len(settings) == 2:
                gone = {4 * g + i for g in range(len(old) // 4) for i in np.argsort(product[4 * g : 4 * g + 4])[:2]}
            else:
                gone = set(np.argsort(product)[: round(0.6 * len(old))])
            assert set(np.flatnonzero(new == 0)) == gone, name
            assert np.array_equal(new[new != 0], old[new != 0])
            by_magnitude += len(gone - set(np.argsort(np.abs(old))[: len(gone)]))
    assert by_magnitude > 0
    evidence = stack.evidence()["prune"]
    assert evidence["sparsity"] == pytest.approx(0.6 if len(settings) == 1 else 0.5, abs=0.04)
    assert 0 < evidence["zeros_magnitude_keeps"] < 1
    assert 0 < evidence["output_error"] < 1


def test_of_what_has_no_inputs_the_smallest_go_and_the_plan_says_so(batches):
    model, stack = built("score=wanda", "vectors=true", steps=0)
    assert "norms and biases, which multiply no inputs, by magnitude" in str(stack.plan_for(model))
    with torch.no_grad():
        model.decoder.norm.weight.copy_(torch.linspace(0.5, 2.0, 16))
    list(stack.finish(model, Calibration(model, lambda count: batches)))
    assert torch.equal(model.decoder.norm.weight == 0, torch.arange(16) < 8)


# --- SparseGPT --------------------------------------------------------------------------------------


def problem(rows, columns, seed=0):
    """A weight, and the second moments of strongly correlated inputs."""
    rng = np.random.default_rng(seed)
    mixing = rng.normal(size=(columns, columns)) * (np.arange(columns) < 4)[:, None] + 0.3 * np.eye(columns)
    x = rng.normal(size=(300, columns)) @ mixing
    return torch.from_numpy(rng.normal(size=(rows, columns)).astype(np.float32)), torch.from_numpy(x.T @ x / len(x))


def surgeon(row, h, width, counts):
    """One row by the optimal brain surgeon's formulas: in each group of columns the cheapest go, from left to right.

    With the columns before c fixed, removing w_c costs w_c^2 / [H_F^-1]_cc, and the others move by
    - w_c / [H_F^-1]_cc [H_F^-1]_:c, where H_F has the rows and columns from c on.
    """
    w = row.astype(np.float64).copy()
    columns = len(w)
    for begin, count in zip(range(0, columns, width), counts, strict=True):
        end = min(begin + width, columns)
        cost = [w[c] ** 2 / np.linalg.inv(h[c:, c:])[0, 0] for c in range(begin, end)]
        gone = begin + np.argsort(cost, kind="stable")[:count]
        for c in range(begin, end):
            if c in gone:
                inverse = np.linalg.inv(h[c:, c:])
                w[c:] -= w[c] / inverse[0, 0] * inverse[:, 0]
                w[c] = 0.0
    return w


def damped(moments):
    h = moments.numpy()
    return h + 0.01 * np.mean(np.diag(h)) * np.eye(len(h))


@pytest.mark.parametrize("kept_of", [None, (2, 4)])
def test_sparsegpt_is_the_surgeon_row_by_row(monkeypatch, kept_of):
    monkeypatch.setattr("tfx.techniques.prune.one_shot._CHOICE", 10)
    monkeypatch.setattr("tfx.techniques.columns._BLOCK", 6)  # not the groups' borders
    weight, moments = problem(5, 24)
    pruned, mask = sparsegpt(weight, moments, 0.5, "row", kept_of)
    width, counts = (10, [5, 5, 2]) if kept_of is None else (4, [2] * 6)
    for row, ours in zip(weight.numpy(), pruned.numpy(), strict=True):
        np.testing.assert_allclose(ours, surgeon(row, damped(moments), width, counts), rtol=1e-5, atol=1e-6)
    assert torch.equal(mask, pruned != 0)


def test_over_a_group_of_columns_all_rows_are_compared():
    weight, moments = problem(6, 12)
    weight[0] *= 10
    pruned, _ = sparsegpt(weight, moments, 0.5, "tensor")
    zeros = (pruned == 0).sum(1)
    assert int(zeros.sum()) == 36
    assert zeros[0] < zeros[1:].min()


def test_sparsegpt_loses_less_than_the_same_mask_without_its_update_and_than_magnitude(batches):
    weight, moments = problem(8, 32)
    pruned, mask = sparsegpt(weight, moments, 0.6, "tensor")
    threshold = weight.abs().flatten().kthvalue(round(0.6 * weight.numel())).values

    def error(other):
        difference = (weight - other).double()
        return float(((difference @ moments) * difference).sum())

    assert error(pruned) < 0.5 * error(weight * mask)
    assert error(pruned) < 0.5 * error(weight * (weight.abs() > threshold))


def test_what_was_zero_stays_zero(batches):
    weight, moments = problem(4, 16)
    weight[:, ::2] = 0.0
    pruned, mask = sparsegpt(weight, moments, 0.25, "row")
    assert not pruned[:, ::2].any()
    assert bool((pruned[:, 1::2] != 0).all())
    assert not mask[:, ::2].any()


def test_sparsegpt_prunes_a_model_whose_zeros_are_kept(batches):
    model, stack = built("score=sparsegpt", "calibration=2", "sparsity=0.7", steps=0)
    with torch.no_grad():
        for weight in matrices_of(model).values():
            weight[:, 3] = 0.0
    list(stack.finish(model, Calibration(model, lambda count: batches[:count])))
    for name, weight in matrices_of(model).items():
        assert int((weight == 0).sum()) == pytest.approx(0.7 * weight.numel(), abs=1), name
        assert not weight[:, 3].any()
    assert stack.evidence()["prune"]["output_error"] < 1


# --- movement ---------------------------------------------------------------------------------------


def train(model, stack, batches, steps, begin=0, of=10):
    """Plain SGD steps through the view, as a training takes them; yields after each, with progress and gradients."""
    for step in range(begin, begin + steps):
        progress = step / of
        for rewiring in stack.rewire(model, progress, None):
            rewiring.apply(model)
        stack.view.update(model, progress)
        batch = batches[step % len(batches)]
        seen = stack.view.see(model, progress)

        def loss(batch=batch):
            logits = model.project(run_batch(model, batch))
            return torch.nn.functional.cross_entropy(logits.flatten(0, 1), batch.target_out_BT.flatten())

        seen.run(loss).backward()
        seen.pass_back()
        stack.view.follow_gradients(model)
        yield progress
        with torch.no_grad():
            for parameter in model.parameters():
                parameter -= 0.5 * parameter.grad
        model.zero_grad()


def gradient_by_masked(model, stack, batch, names):
    """dL/dw' of each masked weight w', by autograd on a copy of the model that holds the masked weights."""
    copy = Transformer.holding(model.architecture, {name: value.clone() for name, value in model.state_dict().items()})
    copy.eval()
    with torch.no_grad():
        for name, weight in copy.named_parameters():
            weight.copy_(stack.view.masked(name, weight))
    logits = copy.project(run_batch(copy, batch))
    loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), batch.target_out_BT.flatten())
    weights = dict(copy.named_parameters())
    return dict(zip(names, torch.autograd.grad(loss, [weights[name] for name in names]), strict=True))


def test_movement_scores_are_the_sum_of_minus_weight_times_gradient_of_the_masked_weight(batches):
    model, stack = built("score=movement", "start=0.2", "end=0.8", "sparsity=0.6", "every=0.1")
    names = list(matrices_of(model))
    expected = {name: torch.zeros_like(weight) for name, weight in matrices_of(model).items()}
    [prune] = stack.order["mask"]
    steps = train(model, stack, batches, 8)
    for step, progress in enumerate(steps):
        gradients = gradient_by_masked(model, stack, batches[step % 2], names)
        for name, weight in matrices_of(model).items():
            expected[name] -= weight.detach() * gradients[name]
            torch.testing.assert_close(prune._movement.get(name, weight), expected[name], rtol=1e-4, atol=1e-7)
            mask = stack.view.mask(name, weight)
            if progress < 0.2:
                assert mask is None
            else:
                # A pruned weight has a score that goes on, and does not move itself.
                assert bool(gradients[name][~mask].any()) or not bool((~mask).any())
                assert not bool(weight.grad[~mask].any())
    for _ in train(model, stack, batches, 2, begin=8):  # the end: masks are chosen for good by the last scores
        for name, weight in matrices_of(model).items():
            mask, score = stack.view.mask(name, weight), expected[name]
            assert int((~mask).sum()) == round(0.6 * weight.numel())
            assert score[~mask].max() <= score[mask].min()
    evidence = stack.evidence()["prune"]
    assert evidence["score_steps"] == 8
    assert evidence["weights_returned"] > 0
    assert evidence["zeros_magnitude_keeps"] > 0.1


def test_soft_scores_follow_adam_with_a_penalty_and_go_by_a_threshold():
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(3, 4, generator=generator)
    scores = MovementScores(is_soft=True)
    reference = torch.zeros(3, 4, requires_grad=True)
    adam = torch.optim.Adam([reference], lr=1e-2)
    for step in range(5):
        gradient, penalty = torch.randn(3, 4, generator=generator), 0.3 * step
        scores.follow("w", weight, gradient, penalty)
        # The straight-through gradient by the score is w dL/dw'; the penalty is on the sum of sigmoids.
        adam.zero_grad()
        ((weight * gradient * reference).sum() + penalty * reference.sigmoid().sum()).backward()
        adam.step()
        torch.testing.assert_close(scores.get("w", weight), reference.detach(), rtol=1e-5, atol=1e-7)


def test_a_penalty_prunes_more_by_threshold_and_none_of_the_scores_is_below_at_first(batches):
    found = {}
    for penalty in (0.0, 1e5):
        model, stack = built("score=movement", "threshold=0.49", f"penalty={penalty}", "start=0.1", "every=0.1")
        for _ in train(model, stack, batches, 10):
            pass
        list(stack.finish(model, None))
        found[penalty] = stack.evidence()["prune"]["sparsity"]
    assert 0 < found[0.0] < found[1e5]


def test_a_saved_state_goes_on_with_the_same_scores(batches):
    def settings():
        return built("score=movement", "start=0.2", "end=0.8", "every=0.1")

    model, stack = settings()
    for _ in train(model, stack, batches, 10):
        pass
    again, first = settings()
    for _ in train(again, first, batches, 5):
        pass
    other, second = settings()
    other.load_state_dict(again.state_dict())
    second.load_state_dict(first.state_dict())
    for _ in train(other, second, batches, 5, begin=5):
        pass
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), other.parameters(), strict=True))
    assert stack.evidence() == second.evidence()


def test_heads_and_units_go_by_the_sum_of_their_weights_scores(batches):
    asked = ["score=movement", "sparsity=0", "structure.heads=0.5", "structure.ffn=0.25", "start=0.5"]
    model, stack = built(*asked)
    [prune] = stack.order["rewire"]
    for _ in train(model, stack, batches, 5):
        pass
    scores = {name: prune._movement.get(name, weight) for name, weight in matrices_of(model).items()}
    kept = {}
    for prefix in ("encoder.blocks.0.attention", "decoder.blocks.0.attention", "decoder.blocks.0.cross"):
        sums = []
        for head in (slice(0, 8), slice(8, 16)):
            rows = sum(float(scores[f"{prefix}.{layer}.weight"][head].sum()) for layer in "qkv")
            sums.append(rows + float(scores[f"{prefix}.o.weight"][:, head].sum()))
        kept[prefix] = slice(0, 8) if sums[0] > sums[1] else slice(8, 16)
    unit = scores["encoder.blocks.0.ffn.up.weight"].sum(1) + scores["encoder.blocks.0.ffn.down.weight"].sum(0)
    unit += 0 if model.encoder.blocks[0].ffn.gate is None else scores["encoder.blocks.0.ffn.gate.weight"].sum(1)
    units = unit.topk(24).indices.sort().values
    before = {name: weight.clone() for name, weight in model.state_dict().items()}
    by_weights = plan_structure(model, prune.settings.structure).origins
    [rewiring] = list(stack.rewire(model, 0.5, None))
    rewiring.apply(model)
    for prefix, head in kept.items():
        assert torch.equal(model.state_dict()[f"{prefix}.v.weight"], before[f"{prefix}.v.weight"][head])
    up = "encoder.blocks.0.ffn.up.weight"
    assert torch.equal(model.state_dict()[up], before[up][units])
    assert not torch.equal(by_weights[up].rows, units)
    assert not prune.follows_gradients()


def test_single_weights_and_parts_go_by_movement_in_one_run(batches):
    model, stack = built("score=movement", "structure.ffn=0.5", "start=0.3", "end=0.6", "every=0.1")
    for _ in train(model, stack, batches, 10):
        pass
    list(stack.finish(model, None))
    assert model.encoder.blocks[0].ffn.up.weight.shape == (16, 16)
    assert stack.evidence()["prune"]["sparsity"] == pytest.approx(0.5, abs=0.01)


# --- settings ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["score=wanda", "scope=global"], "scope=global does not go with score=wanda"),
        (["score=sparsegpt", "threshold=0.1"], "threshold=0.1 has no use with score=sparsegpt"),
        (["score=wanda", "schedule=once"], "schedule=once has no use"),
        (["score=wanda", "rewind=0.1"], "rewind=0.1 has no use"),
        (["score=wanda", "sparsity=0", "structure.ffn=0.5"], "none are pruned"),
        (["score=movement", "sparsity=0", "structure.encoder_layers=1"], "none of those go"),
        (["score=movement", "start=0", "structure.heads=0.5"], "start=0: no step"),
        (["score=movement", "threshold=0.5"], "all begin at 0.5"),
    ],
)
def test_settings_that_a_score_would_ignore_are_refused_in_one_line(words, said):
    with pytest.raises(UserError, match=re.escape(said)) as error:
        built(*words)
    assert "\n" not in str(error.value)


def test_movement_without_training_is_refused():
    with pytest.raises(UserError, match="budget is zero"):
        built("score=movement", steps=0)


def test_a_saved_config_of_a_pattern_with_its_default_scope_is_taken():
    built('pattern="2:4"', "scope=tensor")


def test_a_score_of_the_trained_model_compresses_nothing_before_the_end():
    for word, at in (("wanda", 1.0), ("movement", 0.2), ("magnitude", 0.2)):
        _, stack = built(f"score={word}")
        assert [stack.compresses_now(progress) for progress in (at - 0.01, at)] == [False, True]
    _, stack = built("score=wanda", "structure.ffn=0.5")
    assert stack.compresses_now(0.2)


def test_the_ramp_of_the_penalty_is_that_of_the_sparsity():
    settings = PruneSettings(start=0.2, end=0.7)
    assert [ramp(settings, at) for at in (0.1, 0.2, 0.7, 1.0)] == [0.0, 0.0, 1.0, 1.0]
    assert ramp(settings, 0.45) == pytest.approx(1 - 0.5**3)
