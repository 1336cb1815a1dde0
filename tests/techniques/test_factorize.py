"""Matrices as products of two: the best of their rank for outputs, in training, in states and in files."""

from copy import deepcopy
from dataclasses import replace
from functools import cache

import numpy as np
import pytest
import torch
from omegaconf import OmegaConf

from tfx.compression import checkpoint
from tfx.config.compose import compose
from tfx.config.schema import AveragingConfig, EvaluationConfig, OptimizerConfig, TokenizerConfig
from tfx.data.ragged import Ragged
from tfx.data.tokenizer import Tokenizer
from tfx.errors import UserError
from tfx.model.architecture import Architecture
from tfx.model.flops import forward_flops
from tfx.model.linear import Factored
from tfx.model.rewiring import BlockPlan, multiplied, rewire_blocks, whole_block
from tfx.model.transformer import Transformer, count_parameters, initialise, run_batch
from tfx.tasks.seq2seq import Pairs, collate_pairs
from tfx.techniques.calibration import Calibration, in_order
from tfx.techniques.factorize import Factorize, FactorizeSettings, LowRank, rank_for_share
from tfx.techniques.prune import Prune
from tfx.techniques.prune.settings import PruneSettings
from tfx.techniques.quantize import Quantize
from tfx.techniques.quantize.settings import QuantizeSettings
from tfx.techniques.stack import Stack
from tfx.training.averaging import Averager
from tfx.training.optimizers import build_optimizers

TOKENIZER = Tokenizer.train(TokenizerConfig(kind="char", vocab_size=40), ["abcdefgh"], word_initial_space=False)
SMALL = ["model.width=16", "model.heads=2", "model.ffn_width=32", "model.encoder_layers=1", "model.decoder_layers=1"]
KINDS = {
    "factorize": (Factorize, FactorizeSettings),
    "prune": (Prune, PruneSettings),
    "quantize": (Quantize, QuantizeSettings),
}


@cache
def small(steps):
    config = compose([*SMALL, f"trainer.budget.steps={steps}"])
    model = Transformer(Architecture.from_config(config.model, TOKENIZER.vocab_size), config.model)
    initialise(model, 1)
    return config, model.eval()


def built(steps=10, **settings):
    """A small model, and a stack of factorize, and of what else has settings."""
    config, model = small(steps)
    techniques = []
    for name, given in {"factorize": ["multiple=2"], **settings}.items():
        kind, schema = KINDS[name]
        asked = OmegaConf.merge(OmegaConf.structured(schema), OmegaConf.from_dotlist(given))
        techniques.append(kind(OmegaConf.to_object(asked)))
    return deepcopy(model), Stack(techniques, config)


@pytest.fixture(scope="module")
def batches():
    rng = np.random.default_rng(0)
    rows = [rng.integers(4, TOKENIZER.vocab_size, size=rng.integers(2, 9)).tolist() for _ in range(32)]
    pairs = Pairs(Ragged.from_lists(rows, np.int64), Ragged.from_lists(rows[::-1], np.int64))
    return [collate_pairs(pairs, np.arange(32), TOKENIZER)]


def rewired(model, stack, batches, progress=0.5):
    maps = []
    for rewiring in stack.rewire(model, progress, Calibration(model, lambda count: batches)):
        maps.append((rewiring, rewiring.apply(model)))
    return maps


def problem(rows, columns, seed=0):
    """A weight, and inputs that are strongly correlated."""
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(200, columns)) @ (
        rng.normal(size=(columns, columns)) * np.geomspace(1, 0.01, columns)[:, None]
    )
    return torch.from_numpy(rng.normal(size=(rows, columns))), torch.from_numpy(x)


# --- the method -------------------------------------------------------------------------------------


@pytest.mark.parametrize(("rows", "columns"), [(10, 6), (6, 10)])
@pytest.mark.parametrize("rank", [1, 3])
def test_no_product_of_its_rank_has_closer_outputs(rows, columns, rank):
    weight, x = problem(rows, columns)
    low = LowRank(weight, x.t() @ x / len(x))
    first, second = low.factors(rank)
    product = second @ (first @ weight)
    assert torch.linalg.matrix_rank(product) == rank
    # The bound of Eckart and Young for the outputs themselves, from the SVD of these.
    outputs = x @ weight.t()
    bound = torch.linalg.svdvals(outputs)[rank:].square().sum()
    error = (outputs - x @ product.t()).square().sum()
    assert error == pytest.approx(float(bound), rel=0.05)
    # A plain SVD is further away.
    u, s, v = torch.linalg.svd(weight, full_matrices=False)
    plain = (u[:, :rank] * s[:rank]) @ v[:rank]
    assert (outputs - x @ plain.t()).square().sum() > 1.2 * error
    # Both factors are of one size.
    torch.testing.assert_close(second.norm(dim=0), (first @ weight).norm(dim=1))


def test_without_weighting_it_is_the_plain_svd():
    weight, _ = problem(8, 12)
    first, second = LowRank(weight, torch.eye(12)).factors(3)
    u, s, v = torch.linalg.svd(weight, full_matrices=False)
    torch.testing.assert_close(second @ (first @ weight), (u[:, :3] * s[:3]) @ v[:3], rtol=1e-6, atol=1e-9)


def test_the_rank_for_an_energy_is_the_smallest_that_keeps_it():
    weight, x = problem(9, 7)
    moments = x.t() @ x / len(x)
    low = LowRank(weight, moments)
    variance = torch.linalg.svdvals(x @ weight.t()).square()
    for energy in (0.3, 0.9, 0.99):
        rank = low.rank_for(energy)
        assert variance[:rank].sum() / variance.sum() >= energy - 0.01
        assert rank == 1 or variance[: rank - 1].sum() / variance.sum() < energy + 0.01
    assert low.rank_for(0.3) < low.rank_for(0.99)


def test_the_rank_for_a_share_is_the_nearest_multiple():
    assert rank_for_share(128, 128, 0.5, 8) == 32
    assert rank_for_share(256, 128, 0.5, 8) == 40  # 42.7
    assert rank_for_share(16, 16, 0.1, 8) == 8  # at least one


# --- in a model -------------------------------------------------------------------------------------


def test_the_model_gives_what_its_products_give_and_counts_what_it_has(batches):
    model, stack = built()
    expected = stack.order["rewire"][0].reduced(model.architecture)
    before = forward_flops(model.architecture, 2, 5, 7)
    whole = count_parameters(model.architecture)
    rewired(model, stack, batches)
    assert model.architecture == expected
    layers = {name: layer for name, layer in model.named_modules() if isinstance(layer, Factored)}
    sizes = model.architecture.matrices(model.architecture.decoder[0])
    assert {name.split("blocks.0.")[1] for name in layers if name.startswith("decoder")} == sizes.keys()
    # FLOPs: two products for one, at the positions of the layer's inputs.
    saved = 0
    for name, layer in layers.items():
        rows, columns = layer.weight.shape
        length = 5 if name.startswith("encoder") or ".cross.k" in name or ".cross.v" in name else 7
        saved += 2 * 2 * length * (rows * columns - len(layer.first.weight) * (rows + columns))
        assert sizes.get(name.split("blocks.0.")[1]) == (rows, columns)
    assert forward_flops(model.architecture, 2, 5, 7) == before - saved
    evidence = stack.evidence()["factorize"]
    assert evidence["parameters_removed"] == whole - count_parameters(model.architecture) > 0
    assert evidence["matrices"] == len(layers)
    assert evidence["parameters_share"] == pytest.approx(0.5, abs=0.06)
    assert 0 < evidence["output_error"] < 1
    one = multiplied(model)
    assert count_parameters(one.architecture) == whole
    for training in (False, True):
        logits = []
        for each in (model, one):
            torch.manual_seed(0)  # dropout
            logits.append(each.train(training).project(run_batch(each, batches[0])))
        torch.testing.assert_close(*logits, rtol=1e-4, atol=1e-5)


def test_each_layer_is_fitted_to_the_inputs_that_the_products_before_it_give(batches):
    model, stack = built()
    original = deepcopy(model)
    rewired(model, stack, batches)
    # By hand: block after block, from the moments of a model whose earlier blocks are products already.
    calibration = Calibration(original, lambda count: batches)
    names = [name for name, weight in original.named_parameters() if ".blocks." in name and weight.ndim == 2]
    calibration.request(1)
    for name, moments in in_order(calibration.inputs(names)):
        weight = dict(original.named_parameters())[name]
        rank = rank_for_share(*weight.shape, 0.5, 2)
        first, second = LowRank(weight, moments).factors(rank)
        with torch.no_grad():
            weight.copy_(second @ first @ weight.double())
        torch.testing.assert_close(
            model.get_submodule(name.removesuffix(".weight")).weight, weight, rtol=1e-4, atol=1e-5
        )


@pytest.mark.parametrize("block", [None, 8])
def test_an_average_becomes_the_factors_of_the_average_and_the_optimizer_goes_on(batches, block):
    model, stack = built()
    model.train()
    config, cpu = OptimizerConfig(name="muon", matrix_block=block), torch.device("cpu")
    optimizers = build_optimizers(config, model, cpu)
    averager = Averager(AveragingConfig(kind="ema", decay=0.5), model)

    def step():
        run_batch(model, batches[0]).square().mean().backward()
        optimizers.step(1.0)
        optimizers.zero_grad()
        averager.update(0.0)

    step(), step()
    named = [name for name, _ in model.named_parameters()]
    averages = dict(zip(named, [a.clone() for a in averager.average], strict=True))
    [(rewiring, parameter_map)] = rewired(model, stack, batches)
    optimizers.rewire(parameter_map)
    optimizers.regroup(build_optimizers(config, model, cpu))
    averager.rewire(parameter_map)
    now = dict(zip([name for name, _ in model.named_parameters()], averager.average, strict=True))
    for name, value in averages.items():
        layer = name.removesuffix(".weight")
        if f"{layer}.first.weight" in now:
            left = rewiring.origins[f"{layer}.first.weight"].values
            second = now[f"{layer}.second.weight"]
            # The projection of the average on what the product of the weights themselves spans.
            product = second @ now[f"{layer}.first.weight"]
            torch.testing.assert_close(product, (second.double() @ left @ value.double()).float(), rtol=1e-4, atol=1e-5)
        elif name in now:
            torch.testing.assert_close(now[name], value)
    # In the order in which a resumed run would have them.
    again = build_optimizers(config, model, cpu)
    for ours, theirs in zip(optimizers.parts, again.parts, strict=True):
        for group, other in zip(ours.param_groups, theirs.param_groups, strict=True):
            assert all(a is b for a, b in zip(group["params"], other["params"], strict=True))
    held = {name: p.detach().clone() for name, p in model.named_parameters()}
    step()
    moved = {name for name, p in model.named_parameters() if not torch.equal(p, held[name])}
    assert {name for name in held if name.endswith(("first.weight", "second.weight"))} <= moved
    again.load_state_dict(optimizers.state_dict())


def test_heads_and_units_of_products_go_as_if_they_were_zero(batches):
    model, stack = built()
    rewired(model, stack, batches)
    encoder, decoder = (getattr(model.architecture, stack)[0] for stack in ("encoder", "decoder"))
    units = torch.arange(0, 32, 3)
    plan = BlockPlan(0, torch.tensor([1]), torch.tensor([0]), units)
    rewiring = rewire_blocks(model, [replace(plan, cross_heads=torch.arange(0))], [plan])
    with torch.no_grad():
        for block in (model.encoder.blocks[0], model.decoder.blocks[0]):
            block.attention.o.first.weight[:, :8] = 0
            if block.cross is not None:
                block.cross.o.first.weight[:, 8:] = 0
            gone = [unit for unit in range(32) if unit not in units.tolist()]
            block.ffn.down.first.weight[:, gone] = 0
        expected = model.project(run_batch(model, batches[0]))
        rewiring.apply(model)
        torch.testing.assert_close(model.project(run_batch(model, batches[0])), expected, rtol=1e-4, atol=1e-5)
    assert count_parameters(model.architecture) == sum(p.numel() for p in model.parameters())
    assert [model.architecture.encoder[0].ranks, model.architecture.decoder[0].ranks] == [encoder.ranks, decoder.ranks]
    # Layers that go take their ranks along.
    bare = rewire_blocks(model, [whole_block(0, model.architecture.encoder[0])], [])
    assert bare.architecture.decoder == ()


def test_scores_of_heads_and_units_are_those_of_the_sides_that_have_them(batches):
    model, stack = built(prune=["score=movement", "sparsity=0", "structure.ffn=0.5", "start=0.6"])
    rewired(model, stack, batches, 0.3)
    stack.view.update(model, 0.3)
    run_batch(model, batches[0]).square().mean().backward()
    stack.view.follow_gradients(model)
    ffn = model.encoder.blocks[0].ffn
    scores = [-(layer.weight * layer.weight.grad) for layer in (ffn.up.second, ffn.down.first)]
    unit = scores[0].sum(1) + scores[1].sum(0)
    if ffn.gate is not None:
        unit = unit - (ffn.gate.second.weight * ffn.gate.second.weight.grad).sum(1)
    kept = unit.topk(16).indices.sort().values
    expected = ffn.up.second.weight[kept].clone()
    rewired(model, stack, batches, 0.6)
    assert torch.equal(model.encoder.blocks[0].ffn.up.second.weight, expected)


# --- file, resume, and other techniques ---------------------------------------------------------------


def test_the_file_holds_the_factors_and_the_model_read_back_is_the_same(batches, tmp_path):
    model, stack = built()
    rewired(model, stack, batches)
    list(stack.finish(model, None))
    for storage in (None, stack.storage()):
        path = tmp_path / "model.safetensors"
        checkpoint.save(path, model, TOKENIZER, EvaluationConfig(), storage)
        back = checkpoint.load(path)
        assert back.model.architecture == model.architecture
        assert any(row.name == "decoder.blocks.0.ffn.up.first.weight" for row in back.tensors)
        assert torch.equal(run_batch(back.model, batches[0]), run_batch(model.eval(), batches[0]))
    dense = tmp_path / "dense.safetensors"
    checkpoint.save(dense, small(10)[1], TOKENIZER, EvaluationConfig())
    checkpoint.save(path, model, TOKENIZER, EvaluationConfig())
    weights = [checkpoint.read_header(file).bytes.weights for file in (path, dense)]
    assert weights[1] - weights[0] == 4 * stack.evidence()["factorize"]["parameters_removed"]


def test_a_header_without_ranks_is_as_it_was_and_false_ranks_are_refused():
    _, model = small(10)
    record = model.architecture.to_dict()
    assert all("ranks" not in block for block in record["encoder"] + record["decoder"])
    assert Architecture.from_dict(record) == model.architecture
    for ranks in (
        {"ffn.sideways": 2},
        {"ffn.up": 0},
        {"ffn.up": True},
        {"ffn.up": "2"},
        [["ffn.up", 2]],
        {"cross.q": 2},
    ):
        block = {**record["encoder"][0], "ranks": ranks}
        with pytest.raises(UserError, match="header is not readable"):
            Architecture.from_dict({**record, "encoder": [block]})


def test_a_saved_state_has_the_factors(batches):
    model, stack = built()
    rewired(model, stack, batches)
    _, again = built()
    again.load_state_dict(stack.state_dict())
    assert list(again.rewire(model, 0.9, None)) == []
    assert again.evidence() == stack.evidence()
    assert Architecture.from_dict(model.architecture.to_dict()) == model.architecture


@pytest.mark.parametrize("order", ["factors first", "masks first"])
def test_factors_are_pruned_and_quantized_like_any_matrix(batches, order):
    start = {"factors first": "0.1", "masks first": "0.6"}[order]
    model, stack = built(
        factorize=["multiple=2", f"start={start}"],
        prune=["start=0.2", "end=0.5", "schedule=once"],
        quantize=["granularity=channel", "start=0.8"],
    )
    for step in range(10):
        rewired(model, stack, batches, step / 10)
        stack.view.update(model, step / 10)
    list(stack.finish(model, Calibration(model, lambda count: batches)))
    for name, layer in model.named_modules():
        if isinstance(layer, Factored):
            for factor in (layer.first, layer.second):
                assert int((factor.weight == 0).sum()) >= round(0.5 * factor.weight.numel()), name
    assert stack.evidence()["prune"]["sparsity"] == pytest.approx(0.5, abs=0.01)
    assert "decoder.blocks.0.ffn.up.first.weight" in stack.grids


def test_products_stand_for_what_masks_have_left_of_a_matrix(batches):
    model, stack = built(
        factorize=["multiple=2", "start=0.6"], prune=["start=0.2", "end=0.5", "schedule=once", "sparsity=0.9"]
    )
    stack.view.update(model, 0.2)
    name = "decoder.blocks.0.ffn.up"
    # What an optimizer writes where a mask hides it.
    raw = {key: weight.detach().clone() for key, weight in model.named_parameters()}
    mask_RC = stack.view.mask(f"{name}.weight", raw[f"{name}.weight"])
    assert mask_RC.float().mean() < 0.2
    rewired(model, stack, batches, 0.6)
    factored = model.get_submodule(name)
    assert isinstance(factored, Factored)
    seen_RC = raw[f"{name}.weight"] * mask_RC
    assert (factored.weight - seen_RC).norm() < seen_RC.norm()
    assert (factored.weight - raw[f"{name}.weight"]).norm() > 0.8 * raw[f"{name}.weight"].norm()
    for key, weight in model.named_parameters():
        if key in raw:
            assert torch.equal(weight, raw[key])  # the rest is as the optimizer left it


def test_sparsegpt_and_gptq_know_the_inputs_of_both_factors(batches):
    model, stack = built(
        steps=0,
        prune=["score=sparsegpt", "calibration=1", "store=fp32"],
        quantize=["granularity=channel", "method=gptq", "bits=8"],
    )
    rewired(model, stack, batches, 1.0)
    list(stack.finish(model, Calibration(model, lambda count: batches)))
    assert stack.evidence()["prune"]["output_error"] < 1
    assert (model.decoder.blocks[0].cross.k.second.weight == 0).float().mean() == pytest.approx(0.5, abs=0.02)


def test_by_energy_ranks_differ_and_none_is_larger_than_its_matrix(batches):
    model, stack = built(factorize=["energy=0.9", "multiple=2"])
    [line, _] = [line for _, line in stack.plan_for(model)]
    assert "ranks that keep 90% of the variance of their outputs" in line
    rewired(model, stack, batches)
    ranks = dict(model.architecture.encoder[0].ranks)
    assert len(set(ranks.values())) > 1
    assert all(rank % 2 == 0 for rank in ranks.values())
    assert all(
        rank * sum(model.architecture.matrices(model.architecture.encoder[0])[name])
        < np.prod(model.architecture.matrices(model.architecture.encoder[0])[name])
        for name, rank in ranks.items()
    )


def test_a_second_run_leaves_factors_and_says_so_in_one_line(batches):
    model, stack = built()
    rewired(model, stack, batches)
    _, again = built()
    with pytest.raises(UserError, match="no matrix"):
        again.plan_for(model)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["energy=0.9", "parameters=0.3"], "energy or by parameters"),
        (["end=0.5"], "factors stay factors"),
    ],
)
def test_settings_that_nothing_would_read_are_refused(words, said):
    with pytest.raises(UserError, match=said):
        built(factorize=words)


def test_movement_scores_of_single_weights_do_not_go_with_it():
    with pytest.raises(UserError, match="belong to the matrices as they were"):
        built(prune=["score=movement"])


def test_ranks_that_do_not_fit_a_group_of_quantize_are_found_before_training():
    model, stack = built(factorize=["multiple=6"], quantize=["group=4"])
    with pytest.raises(UserError, match="group=4 does not divide the 6 inputs"):
        stack.plan_for(model)
