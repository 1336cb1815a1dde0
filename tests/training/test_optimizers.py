from __future__ import annotations

import copy

import pytest
import torch

from tfx.config.schema import ModelConfig, OptimizerConfig
from tfx.model import device
from tfx.model.architecture import Architecture
from tfx.model.linear import factor_layer
from tfx.model.transformer import Transformer, initialise
from tfx.training.optimizers import build_optimizers, matrix_rate

CPU = torch.device("cpu")


def small_model(**settings):
    sizes = {"width": 8, "heads": 2, "ffn_width": 12, "context": 8, "encoder_layers": 1, "decoder_layers": 1}
    config = ModelConfig(**(sizes | settings))
    model = Transformer(Architecture.from_config(config, 11), config)
    initialise(model, 1)
    return model


def give_gradients(model, seed):
    generator = torch.Generator().manual_seed(seed)
    for parameter in model.parameters():
        parameter.grad = torch.randn(parameter.shape, generator=generator)


def snapshot(model):
    return {name: parameter.detach().clone() for name, parameter in model.named_parameters()}


@pytest.mark.parametrize("name", ["adam", "adamw"])
def test_a_step_is_the_formula_of_the_paper(name):
    config = OptimizerConfig(name=name, lr=0.01, betas=[0.8, 0.9], eps=1e-6, weight_decay=0.1)
    model = small_model()
    optimizers = build_optimizers(config, model, CPU)
    expected = snapshot(model)
    moments = {key: (torch.zeros_like(p), torch.zeros_like(p)) for key, p in expected.items()}
    for step, factor in enumerate([0.5, 1.0, 0.25], start=1):
        give_gradients(model, step)
        for key, parameter in model.named_parameters():
            weight, grad = expected[key], parameter.grad.clone()
            rate, decay = 0.01 * factor, 0.1 if weight.ndim == 2 else 0.0
            if name == "adam":
                grad += decay * weight
            else:
                weight -= rate * decay * weight
            first, second = moments[key]
            first.mul_(0.8).add_(0.2 * grad)
            second.mul_(0.9).add_(0.1 * grad**2)
            weight -= rate * (first / (1 - 0.8**step)) / ((second / (1 - 0.9**step)).sqrt() + 1e-6)
        optimizers.step(factor)
    for key, parameter in model.named_parameters():
        torch.testing.assert_close(parameter.detach(), expected[key], msg=key)


@pytest.mark.parametrize("name", ["adam", "adamw", "muon"])
def test_every_parameter_is_updated_once_and_only_matrices_decay(name):
    model = small_model(tied_embeddings="none", qk_norm=True, positions="learned")
    optimizers = build_optimizers(OptimizerConfig(name=name, weight_decay=0.1), model, CPU)
    seen = [
        (id(p), p.ndim, group["weight_decay"])
        for part in optimizers.parts
        for group in part.param_groups
        for p in group["params"]
    ]
    assert sorted(i for i, _, _ in seen) == sorted(id(p) for p in model.parameters())
    assert all(decay == (0.1 if ndim == 2 else 0.0) for _, ndim, decay in seen)


@pytest.mark.parametrize("name", ["adamw", "muon"])
def test_what_a_technique_trains_beside_the_model_does_not_decay(name):
    model, projection = small_model(), torch.nn.Linear(8, 12, bias=False)
    trained = torch.nn.ModuleList([model, torch.nn.ModuleDict({"technique": projection})])
    optimizers = build_optimizers(OptimizerConfig(name=name, weight_decay=0.1), trained, CPU)
    groups = [group for part in optimizers.parts for group in part.param_groups]
    decays = {id(p): group["weight_decay"] for group in groups for p in group["params"]}
    assert decays[id(projection.weight)] == 0.0
    assert decays[id(model.decoder.blocks[0].ffn.up.weight)] == 0.1


def test_muon_gets_exactly_the_matrices_of_the_blocks():
    model = small_model(tied_embeddings="none", qk_norm=True, positions="learned")
    optimizers = build_optimizers(OptimizerConfig(name="muon"), model, CPU)
    taken = {id(p) for group in optimizers.parts[0].param_groups for p in group["params"]}
    names = {name for name, p in model.named_parameters() if id(p) in taken}
    layers = [f"attention.{part}" for part in "qkvo"] + ["ffn.up", "ffn.down"]
    expected = {f"{stack}.blocks.0.{layer}.weight" for stack in ("encoder", "decoder") for layer in layers}
    expected |= {f"decoder.blocks.0.cross.{part}.weight" for part in "qkvo"}
    assert names == expected


@pytest.mark.parametrize("share", [1.0, 0.5])
def test_blocks_are_of_the_matrices_whose_rows_make_the_units_of_heads_and_feed_forward_layers(share):
    model = small_model(activation="swiglu")
    factor_layer(model.encoder.blocks[0], "ffn.up", 2)
    config = OptimizerConfig(name="muon", matrix_block=4, layer_decay=share)
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    optimizers = build_optimizers(config, model, CPU)
    groups = optimizers.parts[0].param_groups
    in_blocks = {names[id(p)] for group in groups for p in group["params"] if group.get("block") == 4}
    whole = {names[id(p)] for group in groups for p in group["params"] if group.get("block") is None}
    layers = [*(f"attention.{part}" for part in "qkv"), "ffn.gate"]
    expected = {f"{stack}.blocks.0.{layer}.weight" for stack in ("encoder", "decoder") for layer in layers}
    expected |= {f"decoder.blocks.0.{layer}.weight" for layer in ("cross.q", "cross.k", "cross.v", "ffn.up")}
    assert in_blocks == expected
    assert in_blocks | whole == {name for name, p in model.named_parameters() if p.ndim == 2 and ".blocks." in name}
    before = snapshot(model)
    give_gradients(model, 1)
    optimizers.step(1.0)

    def spread(name, rows):
        change = (dict(model.named_parameters())[name] - before[name])[:rows]
        values = torch.linalg.svdvals(change)
        return (values.min() / values.max()).item()

    # Of random gradients, each block of rows has singular values near one another; rows of a whole matrix need not.
    assert spread("decoder.blocks.0.ffn.up.weight", 4) > 0.5
    assert spread("decoder.blocks.0.ffn.up.weight", 12) < 0.5 < spread("decoder.blocks.0.ffn.down.weight", 8)


@pytest.mark.parametrize(("in_hardware", "products"), [(True, torch.bfloat16), (False, torch.float32)])
def test_muon_multiplies_bfloat16_only_where_the_processor_does(monkeypatch, in_hardware, products):
    # Emulated, its 15 products for each matrix take four times as long as all else of a step.
    monkeypatch.setattr(device, "_cpu_multiplies_bf16", lambda: in_hardware)
    seen = set()
    real = torch.bmm
    monkeypatch.setattr(torch, "bmm", lambda a, b: seen.update((a.dtype, b.dtype)) or real(a, b))
    model = small_model()
    optimizers = build_optimizers(OptimizerConfig(name="muon"), model, CPU)
    give_gradients(model, 1)
    optimizers.step(1.0)
    assert seen == {products}


def test_muons_update_has_the_size_of_adamws():
    model = small_model()
    optimizers = build_optimizers(OptimizerConfig(name="muon", matrix_lr=0.02), model, CPU)
    before = snapshot(model)
    give_gradients(model, 1)
    optimizers.step(0.5)
    for name, parameter in model.named_parameters():
        if parameter.ndim == 2 and ".blocks." in name:
            size = (parameter - before[name]).pow(2).mean().sqrt().item()
            assert 0.1 * 0.01 < size < 0.3 * 0.01, name


def test_muons_rate_falls_with_the_square_root_of_the_width():
    """A matrix's update then has the same largest singular value at each width; what a config names counts as it is."""
    rates = [matrix_rate(OptimizerConfig(name="muon"), width) for width in (64, 128, 256, 512, 768)]
    assert rates == pytest.approx([0.01, 0.01, 0.01 / 2**0.5, 0.005, 0.01 / 6**0.5])
    assert matrix_rate(OptimizerConfig(name="muon", matrix_lr=0.02), 512) == 0.02
    sizes = []
    for width in (128, 512):
        model = small_model(width=width, ffn_width=width)
        optimizers = build_optimizers(OptimizerConfig(name="muon"), model, CPU)
        before = snapshot(model)
        give_gradients(model, 1)
        optimizers.step(1.0)
        name = "encoder.blocks.0.ffn.up.weight"
        change = dict(model.named_parameters())[name] - before[name]
        sizes.append(torch.linalg.matrix_norm(change, 2).item())
    assert sizes[0] == pytest.approx(sizes[1], rel=0.1)


@pytest.mark.parametrize("refused", [None, 0.0])
@pytest.mark.parametrize("name", ["adam", "adamw", "muon"])
def test_without_any_gradient_nothing_changes(name, refused):
    """A process that steps by itself has none where a batch has fewer rows than there are processes."""
    model = small_model()
    optimizers = build_optimizers(OptimizerConfig(name=name), model, CPU)
    before = snapshot(model)
    optimizers.step(1.0, None if refused is None else torch.tensor(refused))
    assert all(torch.equal(parameter, before[key]) for key, parameter in model.named_parameters())


@pytest.mark.parametrize("name", ["adam", "adamw", "muon"])
def test_factor_zero_changes_nothing_and_the_peak_comes_back_after(name):
    model = small_model()
    optimizers = build_optimizers(OptimizerConfig(name=name, weight_decay=0.1), model, CPU)
    before = snapshot(model)
    give_gradients(model, 1)
    optimizers.step(0.0)
    assert all(torch.equal(p, before[key]) for key, p in model.named_parameters())
    optimizers.step(1.0)
    assert not any(torch.equal(p, before[key]) for key, p in model.named_parameters())


@pytest.mark.parametrize("name", ["adam", "adamw", "muon"])
def test_a_restored_optimizer_goes_on_as_the_first_would_have(name):
    config = OptimizerConfig(name=name, weight_decay=0.1)
    model = small_model()
    optimizers = build_optimizers(config, model, CPU)
    give_gradients(model, 1)
    optimizers.step(0.3)
    other = copy.deepcopy(model)
    restored = build_optimizers(config, other, CPU)
    restored.load_state_dict(copy.deepcopy(optimizers.state_dict()))
    for each, its in ((model, optimizers), (other, restored)):
        give_gradients(each, 2)
        its.step(0.7)
    assert all(torch.equal(p, q) for p, q in zip(model.parameters(), other.parameters(), strict=True))


def test_frozen_parameters_are_left_out_and_gradients_are_forgotten():
    model = small_model()
    model.embedding.weight.requires_grad_(False)
    optimizers = build_optimizers(OptimizerConfig(), model, CPU)
    taken = {id(p) for part in optimizers.parts for group in part.param_groups for p in group["params"]}
    assert id(model.embedding.weight) not in taken
    give_gradients(model, 1)
    optimizers.zero_grad()
    assert all(p.grad is None for p in model.parameters() if p.requires_grad)


@pytest.mark.parametrize("name", ["adamw", "muon"])
def test_lower_layers_learn_more_slowly_as_is_set(name):
    config = ModelConfig(width=8, heads=2, ffn_width=12, context=8, encoder_layers=2, decoder_layers=1)
    model = Transformer(Architecture.from_config(config, 11), config)
    settings = OptimizerConfig(name=name, lr=0.1, matrix_lr=0.2, layer_decay=0.5)
    rates = {
        id(parameter): group["lr"]
        for part in build_optimizers(settings, model, CPU).parts
        for group in part.param_groups
        for parameter in group["params"]
    }
    matrix = 0.2 if name == "muon" else 0.1
    expected = {
        "embedding.weight": 0.1 / 8,
        "encoder.blocks.0.attention.q.weight": matrix / 4,
        "encoder.blocks.1.ffn.up.bias": 0.1 / 2,
        "decoder.blocks.0.ffn.up.weight": matrix / 2,
        "encoder.norm.weight": 0.1,
    }
    found = {key: rates[id(parameter)] for key, parameter in model.named_parameters() if key in expected}
    assert found == pytest.approx(expected)
    plain = build_optimizers(OptimizerConfig(name="adamw"), model, CPU)
    assert [len(part.param_groups) for part in plain.parts] == [2]
