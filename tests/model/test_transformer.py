from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch

from tfx.config.schema import ModelConfig
from tfx.errors import UserError
from tfx.model import transformer
from tfx.model.architecture import Architecture, BlockShape
from tfx.model.transformer import Transformer, check_fits, count_parameters, initialise

FAMILIES = ["seq2seq", "lm"]
POSITIONS = ["sinusoidal", "learned", "rotary", "alibi", "relative"]
SHAPES = pytest.mark.parametrize(("family", "positions"), [(f, p) for f in FAMILIES for p in POSITIONS])


@SHAPES
def test_a_later_token_changes_no_earlier_hidden_state(make_model, example, family, positions):
    model = make_model(family=family, positions=positions)
    target, source, mask = example(family)
    before = model(target, source, mask)
    target[:, 4] = (target[:, 4] + 1) % 11
    after = model(target, source, mask)
    torch.testing.assert_close(after[:, :4], before[:, :4])
    for later in range(4, 7):
        assert not torch.allclose(after[:, later], before[:, later], atol=1e-6)


@pytest.mark.parametrize("positions", POSITIONS)
def test_source_padding_changes_no_output(make_model, example, positions):
    model = make_model(positions=positions)
    target, source, mask = example("seq2seq")
    expected = model(target, source, mask)
    longer = torch.cat([source, torch.randint(0, 11, (3, 5))], dim=1)
    padded = torch.cat([mask, torch.zeros(3, 5, dtype=torch.bool)], dim=1)
    torch.testing.assert_close(model(target, longer, padded), expected)
    alone = model(target[1:2], source[1:2, :3], None)
    torch.testing.assert_close(alone, expected[1:2])
    assert not torch.allclose(model(target, source, None)[1:], expected[1:], atol=1e-6)


@SHAPES
def test_the_order_of_tokens_matters(make_model, example, family, positions):
    model = make_model(family=family, positions=positions)
    target, source, _ = example(family)
    expected = model(target, source)
    if source is None:
        swapped = model(target[:, [1, 0, 2, 3, 4, 5, 6]])
    else:
        swapped = model(target, source[:, [1, 0, 2, 3, 4, 5]])
    assert not torch.allclose(swapped[:, -1], expected[:, -1], atol=1e-6)


@pytest.mark.parametrize("positions", POSITIONS)
def test_embedding_is_scaled_by_the_root_of_the_width_and_continues_at_the_offset(make_model, positions):
    model = make_model(positions=positions)
    tokens = torch.tensor([[3, 0, 9]])
    expected = model.embedding.weight[tokens] * 4.0
    if positions == "sinusoidal":
        expected = expected + model.sinusoids[5:8]
    if positions == "learned":
        expected = expected + model.position.weight[5:8] * 4.0
    torch.testing.assert_close(model.embed(tokens, model.embedding, slice(5, 8)), expected)


@pytest.mark.parametrize("family", FAMILIES)
def test_alibi_serves_blocks_with_different_numbers_of_heads(example, family):
    config = ModelConfig(
        family=family, encoder_layers=2 * (family == "seq2seq"), decoder_layers=2, width=16, heads=4, ffn_width=8,
        context=16, positions="alibi",
    )  # fmt: skip
    architecture = Architecture.from_config(config, 11)
    narrow = replace(architecture.decoder[1], heads=2, kv_heads=2)
    architecture = replace(architecture, decoder=(narrow, architecture.decoder[0]))
    target, source, mask = example(family)
    assert Transformer(architecture).eval()(target, source, mask).shape == (3, 7, 16)


@pytest.mark.parametrize(
    ("tied", "family", "matrices"),
    [("all", "seq2seq", 1), ("output", "seq2seq", 2), ("none", "seq2seq", 3), ("all", "lm", 1), ("none", "lm", 2)],
)
def test_tied_embeddings_are_one_matrix_and_stay_one(make_model, tied, family, matrices):
    model = make_model(tied_embeddings=tied, family=family)
    other = make_model(tied_embeddings=tied, family=family, seed=2)
    other.load_state_dict(model.state_dict())
    for each in (model, other.float().double()):
        tables = {id(p) for p in (each.embedding.weight, each.source_embedding.weight, each.output.weight)}
        assert len(tables) == matrices
        assert (each.output.weight is each.embedding.weight) == (tied != "none")
        assert sum(p.shape == (11, 16) for p in each.parameters()) == matrices


def weights(norm_position="pre", seed=1, **settings):
    config = ModelConfig(width=16, heads=4, ffn_width=24, context=8, norm_position=norm_position, **settings)
    model = Transformer(Architecture.from_config(config, 11), config)
    initialise(model, seed)
    return dict(model.named_parameters())


def test_initial_weights_follow_the_role_and_not_the_name(make_model):
    model = make_model(dtype=torch.float32)
    model.decoder.table = torch.nn.Embedding(4000, 4)
    model.decoder.norm.gain = torch.nn.Parameter(torch.zeros(3, 5))
    initialise(model, 1)
    # The variance is 1 / D; Xavier's would be 2 / (rows + columns).
    assert float(model.decoder.table.weight.detach().std()) == pytest.approx(model.architecture.width**-0.5, rel=0.05)
    assert bool((model.decoder.norm.gain == 1).all())


@pytest.mark.parametrize("norm_position", ["pre", "post"])
def test_one_more_decoder_layer_changes_no_other_initial_weight(norm_position):
    less, more = weights(norm_position, decoder_layers=2), weights(norm_position, decoder_layers=3)
    assert less.keys() < more.keys()
    for name, weight in less.items():
        # Pre-norm divides what the decoder's blocks write by the root of the number of writes: 6, then 9.
        is_write = name.startswith("decoder") and name.endswith(("o.weight", "down.weight")) and norm_position == "pre"
        factor = math.sqrt(6 / 9) if is_write else 1.0
        torch.testing.assert_close(more[name], weight * factor, msg=name)


@pytest.mark.parametrize(("stack", "writes"), [("encoder", 2 * 5), ("decoder", 3 * 2)])
def test_writes_to_the_residual_stream_are_scaled_by_the_number_in_their_stack(stack, writes):
    drawn = weights(encoder_layers=5, decoder_layers=2)
    bound = drawn[f"{stack}.blocks.1.attention.q.weight"].abs().max().item()
    assert bound == pytest.approx(math.sqrt(6 / 32), rel=0.05)
    written = drawn[f"{stack}.blocks.1.attention.o.weight"].abs().max().item()
    assert written == pytest.approx(math.sqrt(6 / 32 / writes), rel=0.05)


def test_every_weight_has_its_own_draws_and_seeds_differ():
    first, again, second = weights(seed=1), weights(seed=1), weights(seed=2)
    matrices = [name for name, weight in first.items() if weight.ndim == 2]
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not any(torch.equal(first[name], second[name]) for name in matrices)
    starts = {round(first[name].flatten()[0].item() / first[name].abs().max().item(), 6) for name in matrices}
    assert len(starts) == len(matrices)
    assert all((w == (0.0 if name.endswith("bias") else 1.0)).all() for name, w in first.items() if w.ndim == 1)
    assert first["embedding.weight"].std().item() == pytest.approx(0.25, rel=0.2)


@SHAPES
def test_autocast_to_bfloat16_stays_close_to_full_precision(make_model, example, family, positions):
    model = make_model(family=family, positions=positions, qk_norm=True, norm="rmsnorm", dtype=torch.float32)
    inputs = example(family)
    expected = model(*inputs)
    with torch.autocast("cpu", torch.bfloat16):
        actual = model(*inputs)
    assert (actual.float() - expected).pow(2).mean().sqrt() < 0.05 * expected.std()


@pytest.mark.parametrize("positions", POSITIONS)
def test_torch_compile_traces_the_whole_model_without_a_break(make_model, example, positions):
    model = make_model(positions=positions, dtype=torch.float32)
    inputs = example("seq2seq")
    compiled = torch.compile(model, backend="eager", fullgraph=True, dynamic=True)
    torch.testing.assert_close(compiled(*inputs), model(*inputs))


@SHAPES
def test_weights_are_counted_without_building_the_model(make_model, family, positions):
    built = make_model(family=family, positions=positions, tied_embeddings="none", bias=False)
    shapes = (BlockShape(2, 1, 0, 0, 7), *built.architecture.decoder, BlockShape(1, 1, 0, 0, 3))
    for architecture in (built.architecture, replace(built.architecture, decoder=shapes)):
        expected = sum(parameter.numel() for parameter in Transformer(architecture).parameters())
        assert count_parameters(architecture) == expected


def test_a_model_that_does_not_fit_is_refused_before_memory_is_allocated(monkeypatch):
    largest = ModelConfig(width=65536, ffn_width=1 << 20, encoder_layers=1000, decoder_layers=1000, context=1024)
    with pytest.raises(UserError, match=r"needs at least .* GB to train, and cpu has .*: lower model\.width"):
        check_fits(Architecture.from_config(largest, 8000), torch.device("cpu"))
    small = Architecture.from_config(ModelConfig(), 100)
    monkeypatch.setattr(transformer, "device_memory", lambda device: 12 * count_parameters(small))
    check_fits(small, torch.device("cpu"))
    monkeypatch.setattr(transformer, "device_memory", lambda device: 12 * count_parameters(small) - 1)
    with pytest.raises(UserError, match="lower"):
        check_fits(small, torch.device("cpu"))
    # Divided, a part of what training needs, and at times all weights: 12 bytes / 8 + 4 each.
    check_fits(small, torch.device("cpu"), 8)
    monkeypatch.setattr(transformer, "device_memory", lambda device: 5 * count_parameters(small))
    with pytest.raises(UserError, match="lower"):
        check_fits(small, torch.device("cpu"), 8)


@pytest.mark.parametrize("positions", ["sinusoidal", "rotary"])
def test_tables_are_made_on_the_cpu_whatever_the_device_of_the_weights(monkeypatch, make_model, positions):
    built = make_model(positions=positions)
    made = []
    for name in ("sinusoidal_table", "rotary_table"):
        whole = getattr(transformer, name)

        def seen(*inputs, whole=whole):
            made.append(torch.get_default_device())
            return whole(*inputs)

        monkeypatch.setattr(transformer, name, seen)
    state = {name: tensor.to("meta") for name, tensor in built.state_dict().items()}
    held = Transformer.holding(built.architecture, state)
    assert made[-1] == torch.device("cpu")
    assert {buffer.device.type for buffer in held.buffers()} == {"meta"}
    again = Transformer.holding(built.architecture, built.state_dict())
    for mine, theirs in zip(again.buffers(), built.buffers(), strict=True):
        assert torch.equal(mine, theirs)
