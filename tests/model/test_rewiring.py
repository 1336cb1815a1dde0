import pytest
import torch
from torch import nn

from tfx.config.schema import AveragingConfig, ModelConfig, OptimizerConfig
from tfx.model.architecture import Architecture
from tfx.model.rewiring import BlockPlan, evenly_spaced, keep_tokens, rewire_blocks, whole_block
from tfx.model.transformer import Transformer, initialise
from tfx.training.averaging import Averager
from tfx.training.optimizers import build_optimizers

VARIANTS = {
    "plain": {},
    "gated, grouped, rotary": {"activation": "swiglu", "kv_heads": 2, "positions": "rotary", "qk_norm": True},
    "alibi, post-norm": {"positions": "alibi", "norm_position": "post"},
    "language model": {"family": "lm", "encoder_layers": 0},
    "relative, bias of the output": {
        "positions": "relative",
        "output_bias": True,
        "tied_embeddings": "inputs",
        "embedding_norm": True,
        "token_types": 2,
        "activation": "geglu",
    },
    "untied": {"tied_embeddings": "none", "bias": False},
}


def build(**changes):
    config = ModelConfig(
        **{
            "encoder_layers": 2,
            "decoder_layers": 2,
            "width": 16,
            "heads": 4,
            "ffn_width": 24,
            "dropout": 0.0,
            "context": 20,
            **changes,
        }
    )
    model = Transformer(Architecture.from_config(config, 50), config)
    initialise(model, 3)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(
                0.05 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(parameter.numel()))
            )
    return model.eval()


def outputs(model):
    generator = torch.Generator().manual_seed(0)
    target = torch.randint(50, (3, 7), generator=generator)
    source = torch.randint(50, (3, 9), generator=generator) if model.architecture.is_seq2seq else None
    return model.project(model(target, source))


def plans(model, stack, heads, cross, units):
    return [
        BlockPlan(
            n, torch.tensor(heads), torch.tensor(cross) if shape.cross_heads else torch.arange(0), torch.tensor(units)
        )
        for n, shape in enumerate(getattr(model.architecture, stack))
    ]


@pytest.mark.parametrize("variant", VARIANTS)
def test_removing_units_and_heads_equals_zeroing_them(variant):
    model = build(**VARIANTS[variant])
    groups = model.architecture.decoder[0].kv_heads
    heads, cross = list(range(1, groups)), list(range(groups - 1))
    units = [0, 3, 4, 7, 8, 9, 20, 23]
    rewiring = rewire_blocks(
        model, plans(model, "encoder", heads, cross, units), plans(model, "decoder", heads, cross, units)
    )
    width = model.architecture.head_width * (model.architecture.decoder[0].heads // groups)
    with torch.no_grad():
        for stack in (model.encoder, model.decoder):
            for block in () if stack is None else stack.blocks:
                block.ffn.down.weight[:, [u for u in range(24) if u not in units]] = 0
                block.attention.o.weight[:, :width] = 0
                if block.cross is not None:
                    block.cross.o.weight[:, -width:] = 0
    expected = outputs(model)
    before = sum(p.numel() for p in model.parameters())
    rewiring.apply(model)
    assert sum(p.numel() for p in model.parameters()) < before
    torch.testing.assert_close(outputs(model), expected, rtol=1e-5, atol=1e-5)
    reloaded = Transformer(model.architecture)
    reloaded.load_state_dict(model.state_dict())
    torch.testing.assert_close(outputs(reloaded.eval()), outputs(model))


def test_removing_a_layer_leaves_the_others_in_order():
    model = build(encoder_layers=3)
    keep = [0, 2]
    encoder = [whole_block(n, model.architecture.encoder[n]) for n in keep]
    decoder = [whole_block(n, shape) for n, shape in enumerate(model.architecture.decoder)]
    expected = build(encoder_layers=3)
    expected.encoder.blocks = nn.ModuleList(expected.encoder.blocks[n] for n in keep)
    rewire_blocks(model, encoder, decoder).apply(model)
    torch.testing.assert_close(outputs(model), outputs(expected))
    assert len(model.architecture.encoder) == 2


def test_ties_stay_ties():
    model = build()
    shapes = model.architecture
    rewire_blocks(
        model,
        [whole_block(n, s) for n, s in enumerate(shapes.encoder)],
        [whole_block(1, shapes.decoder[1])],
    ).apply(model)
    assert model.output.weight is model.embedding.weight
    assert model.source_embedding is model.embedding


@pytest.mark.parametrize("optimizer", ["muon", "adamw"])
def test_kept_parameters_keep_their_optimizer_state(optimizer):
    """A step of the smaller model equals the large model's step on the kept parts, moments included."""
    model = build()
    model.train()
    projection = nn.Linear(3, 3)
    optimizers = build_optimizers(
        OptimizerConfig(name=optimizer), nn.ModuleList([model, projection]), torch.device("cpu")
    )
    averager = Averager(AveragingConfig(kind="ema", decay=0.5), model)
    for _ in range(3):
        outputs(model).square().mean().backward()
        projection.weight.grad = torch.ones(3, 3)
        optimizers.step(1.0)
        optimizers.zero_grad()
        averager.update(0.0)
    names = {id(p): n for n, p in model.named_parameters()}
    before = {
        names[id(p)]: {k: v.clone() for k, v in part.state[p].items() if torch.is_tensor(v)}
        for part in optimizers.parts
        for p in part.state
        if id(p) in names
    }
    averages = dict(zip(names.values(), [a.clone() for a in averager.average], strict=True))
    units = torch.arange(0, 24, 2)
    shapes = model.architecture
    rewiring = rewire_blocks(
        model,
        [BlockPlan(1, torch.arange(4), torch.arange(0), units)],
        [BlockPlan(n, torch.tensor([0, 2]), torch.arange(4), torch.arange(24)) for n in range(2)],
    )
    parameter_map = rewiring.apply(model)
    optimizers.rewire(parameter_map)
    averager.rewire(parameter_map)
    now = dict(model.named_parameters())
    states = {id(p): part.state[p] for part in optimizers.parts for p in part.state}
    for name, parameter in now.items():
        origin = rewiring.origins[name]
        for key, value in before[origin.name].items():
            expected = origin.select(value) if value.ndim else value
            torch.testing.assert_close(states[id(parameter)][key], expected)
    for (name, _), average in zip(now.items(), averager.average, strict=True):
        torch.testing.assert_close(average, rewiring.origins[name].select(averages[rewiring.origins[name].name]))
    grouped = {id(p) for part in optimizers.parts for group in part.param_groups for p in group["params"]}
    assert grouped == {id(p) for p in now.values()} | {id(p) for p in projection.parameters()}
    outputs(model).square().mean().backward()
    held = {name: p.detach().clone() for name, p in now.items()}
    optimizers.step(1.0)
    assert all(not torch.equal(held[name], p) for name, p in now.items() if p.grad is not None and p.grad.any())
    assert shapes != model.architecture


@pytest.mark.parametrize("optimizer", ["muon", "adamw"])
def test_the_layers_that_are_left_learn_as_in_a_resumed_run_and_keep_their_moments(optimizer):
    """With a rate for each layer, a layer that goes moves others from one group of parameters to another."""
    model = build().train()
    config, cpu = OptimizerConfig(name=optimizer, layer_decay=0.5), torch.device("cpu")
    optimizers = build_optimizers(config, model, cpu)
    outputs(model).square().mean().backward()
    optimizers.step(1.0)
    optimizers.zero_grad()
    whole = torch.arange(4), torch.arange(4), torch.arange(24)
    plans = [BlockPlan(number, *whole) for number in range(2)]
    encoder = [BlockPlan(0, whole[0], torch.arange(0), whole[2])]
    parameter_map = rewire_blocks(model, encoder, plans).apply(model)
    optimizers.rewire(parameter_map)
    again = build_optimizers(config, model, cpu)
    assert groups(optimizers, model) != groups(again, model)
    optimizers.regroup(again)
    assert groups(optimizers, model) == groups(build_optimizers(config, model, cpu), model)
    again = build_optimizers(config, model, cpu)
    again.load_state_dict(optimizers.state_dict())
    for part, other in zip(optimizers.parts, again.parts, strict=True):
        for weight, moments in part.state.items():
            for name, value in moments.items():
                torch.testing.assert_close(other.state[weight][name], value)
    # The factor of the schedule is of the rates of now.
    optimizers.step(0.5)
    again.step(0.5)
    assert groups(optimizers, model) == groups(again, model)


def groups(optimizers, model):
    """The rate and the names of each group of each optimizer."""
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    return [
        [(group["lr"], [names[id(parameter)] for parameter in group["params"]]) for group in part.param_groups]
        for part in optimizers.parts
    ]


def test_layers_are_spaced_evenly_with_both_ends():
    assert evenly_spaced(3, 6) == [0, 2, 5]
    assert evenly_spaced(2, 6) == [0, 5]
    assert evenly_spaced(1, 6) == [5]
    assert evenly_spaced(4, 4) == [0, 1, 2, 3]


@pytest.mark.parametrize("tied", ["all", "output", "none"])
@pytest.mark.parametrize("family", ["seq2seq", "lm"])
def test_kept_tokens_keep_their_logits(family, tied):
    layers = 2 if family == "seq2seq" else 0
    config = ModelConfig(family=family, encoder_layers=layers, width=16, heads=2, tied_embeddings=tied)
    model = Transformer(Architecture.from_config(config, 40), config).eval()
    initialise(model, 1)
    kept = [0, 1, 2, 3, 7, 11, 30, 39]
    source = torch.tensor([[4, 5, 6, 2], [7, 4, 4, 2]]) if layers else None
    target = torch.tensor([[1, 4, 6], [1, 7, 5]])
    old = torch.tensor(kept)
    with torch.no_grad():
        before = model.project(model(old[target], None if source is None else old[source]))
        parameter_map = keep_tokens(model, kept).apply(model)
        after = model.project(model(target, source))
    assert model.architecture.vocab_size == model.output.weight.shape[0] == len(kept)
    torch.testing.assert_close(after, before[..., old], rtol=0, atol=1e-6)
    assert len(parameter_map.follow(model.parameters())) == len(list(model.parameters()))
