"""The view of the weights, mask then grid, that the forward pass, averages and the file share."""

import numpy as np
import pytest
import torch

from tfx.compression import checkpoint
from tfx.compression.grid import Grid
from tfx.compression.streams import read_streams, write_streams
from tfx.config import compose
from tfx.config.choices import choices
from tfx.config.schema import EvaluationConfig, TokenizerConfig
from tfx.data.ragged import Ragged
from tfx.data.tokenizer import Tokenizer
from tfx.errors import UserError
from tfx.model.architecture import Architecture
from tfx.model.transformer import Transformer, initialise
from tfx.run.closing import _missed_rate as missed_rate
from tfx.tasks.seq2seq import Pairs, collate_pairs
from tfx.techniques import calibration as calibration_module
from tfx.techniques.calibration import Calibration
from tfx.techniques.stack import Stack
from tfx.training.optimizers import build_optimizers

SMALL = ["model.width=16", "model.heads=2", "model.ffn_width=32", "model.encoder_layers=1", "model.decoder_layers=2"]


INT8 = [
    "+technique=quantize",
    *("technique.quantize.activations=int8", "technique.quantize.bits=8", "technique.quantize.granularity=channel"),
]


def build(*overrides, vocabulary=40):
    config = compose.compose([*SMALL, "trainer.budget.steps=10", *overrides])
    model = Transformer(Architecture.from_config(config.model, vocabulary), config.model)
    initialise(model, 1)
    return config, model, Stack.from_config(config)


def no_batches(count):
    raise AssertionError("no calibration was asked for")


def finish(model, stack):
    return [technique.name for technique in stack.finish(model, Calibration(model, no_batches))]


def give(model, stack, progress, gradients):
    """The weights get what these gradients, by name and weight, of what is seen of them come to."""
    model.zero_grad()
    seen = stack.view.see(model, progress)
    for name, parameter in model.named_parameters():
        seen.leaves.get(name, parameter).grad = gradients(name, parameter)
    seen.pass_back()


PRUNE = ["+technique=prune", "technique.prune.embeddings=true"]
BOTH = ["+technique=[quantize,prune]", "technique.quantize.group=16", "technique.prune.embeddings=true"]


def test_the_forward_pass_sees_masked_weights_and_gets_its_own_back():
    _, model, stack = build(*PRUNE)
    stack.view.update(model, 0.9)
    own = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    seen = stack.view.see(model, 0.9)

    def look():
        for name, parameter in model.named_parameters():
            mask = stack.view.mask(name, parameter)
            if parameter.ndim == 2:
                assert int((parameter == 0).sum()) == round(0.5 * parameter.numel())
                assert torch.equal(parameter, own[name] * mask)
            else:
                assert mask is None
        assert model.output.weight is model.embedding.weight
        return "looked"

    assert seen.run(look) == "looked"
    assert all(torch.equal(own[name], parameter) for name, parameter in model.named_parameters())


def test_gradients_of_what_is_gone_are_zero_and_the_rest_passes_straight_through():
    _, model, stack = build(*BOTH)
    stack.view.update(model, 0.9)
    give(model, stack, 0.9, lambda name, weight: torch.ones_like(weight))
    for name, parameter in model.named_parameters():
        mask = stack.view.mask(name, parameter)
        expected = torch.ones_like(parameter) if mask is None else mask.float()
        assert torch.equal(parameter.grad, expected)


def test_what_is_gone_stays_gone_however_the_optimizer_moves_it():
    _, model, stack = build(*PRUNE, "technique.prune.every=0.1")
    before = None
    for progress in (0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.9):
        stack.view.update(model, progress)
        gone = {name: ~stack.view.mask(name, p) for name, p in model.named_parameters() if p.ndim == 2}
        if before is not None:
            assert all(bool(gone[name][before[name]].all()) for name in gone)
        before = gone
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1)))
    assert finish(model, stack) == ["prune"]
    for name, parameter in model.named_parameters():
        if parameter.ndim == 2:
            assert torch.equal(parameter == 0, before[name])


def test_zeros_survive_the_grid_and_the_grid_is_what_is_left():
    _, model, stack = build(*BOTH)
    for progress in (0.2, 0.7, 0.75):
        stack.view.update(model, progress)
    assert finish(model, stack) == ["prune", "quantize"]
    for name, parameter in model.named_parameters():
        if parameter.ndim == 2:
            assert isinstance(stack.grids[name], Grid)
            assert torch.equal(parameter, stack.grids[name].values())
            assert int((parameter == 0).sum()) >= round(0.5 * parameter.numel())
            assert not bool(parameter[~stack.view.mask(name, parameter)].any())
        else:
            assert torch.equal(parameter, parameter.half().float())


def test_without_training_one_shot_gives_the_same_as_a_ramp_on_still_weights():
    _, ramped, stack = build(*BOTH, "technique.quantize.aware=false")
    for step in range(10):
        stack.view.update(ramped, step / 10)
    finish(ramped, stack)
    _, once, other = build(*BOTH, "technique.quantize.aware=false", "trainer.budget.steps=0")
    finish(once, other)
    for (name, a), (_, b) in zip(ramped.named_parameters(), once.named_parameters(), strict=True):
        assert torch.equal(a, b), name


def test_aware_training_sees_the_grid_only_from_its_start():
    _, model, stack = build("+technique=quantize", "technique.quantize.group=16")
    stack.view.update(model, 0.6)
    assert stack.view.see(model, 0.6).values == {}
    stack.view.update(model, 0.7)
    levels = stack.view.see(model, 0.7).values["embedding.weight"].view(-1, 16)
    assert all(len(row.unique()) <= 16 for row in levels)


def test_learned_steps_move_and_are_what_the_file_gets():
    _, model, stack = build(
        "+technique=quantize", "technique.quantize.learned_step=true", "technique.quantize.group=16"
    )
    extra = stack.prepare_model(model)
    stack.view.update(model, 0.8)

    def noise(name, weight):
        return torch.randn(weight.shape, generator=torch.Generator().manual_seed(weight.numel()))

    give(model, stack, 0.8, noise)
    steps = list(extra.parameters())
    assert all(step.grad is not None and bool(step.grad.any()) for step in steps)
    with torch.no_grad():
        for step in steps:
            step.fill_(0.1)
    shown = stack.view.see(model, 0.8).values
    assert shown.keys() == {name for name, p in model.named_parameters() if p.ndim == 2}
    finish(model, stack)
    assert all(torch.equal(dict(model.named_parameters())[name], value) for name, value in shown.items())


def calibration_of(model):
    tokenizer = Tokenizer.train(TokenizerConfig(kind="char", vocab_size=40), ["abcdefgh"], word_initial_space=False)
    rng = np.random.default_rng(0)
    rows = [rng.integers(4, 12, size=rng.integers(3, 10)).tolist() for _ in range(200)]
    # Longer targets than sources: whose positions are real is another matter in cross-attention's keys and values.
    longer = [row + row[:3] for row in rows[::-1]]
    sides = (Ragged.from_lists(rows, np.int64), Ragged.from_lists(longer, np.int64))
    return Calibration(model, lambda count: [collate_pairs(Pairs(*sides), np.arange(200), tokenizer)])


def test_gptq_in_the_stack_keeps_masks_and_beats_rounding_on_what_the_model_puts_out():
    @torch.no_grad()
    def hidden(model):
        generator = torch.Generator().manual_seed(5)
        source, target = (torch.randint(4, 12, (60, 6), generator=generator) for _ in range(2))
        return model.eval()(target, source)

    errors = {}
    for method in ("nearest", "gptq"):
        _, model, stack = build(
            "+technique=[prune,quantize]",
            f"technique.quantize.method={method}",
            "technique.quantize.aware=false",
            "technique.quantize.bits=3",
            "technique.quantize.group=16",
            "technique.quantize.embeddings=false",
        )
        for technique in stack.finish(model, calibration_of(model)):
            if technique.name == "prune":
                before = hidden(model)
                zero = {name: p == 0 for name, p in model.named_parameters() if p.ndim == 2}
        errors[method] = float((hidden(model) - before).square().mean())
        assert all(not bool(p[zero[name]].any()) for name, p in model.named_parameters() if name in zero)
    assert errors["gptq"] < errors["nearest"]


RATE = ["+technique=quantize", "technique.quantize.rate=2.5", "technique.quantize.bits=6"]


def train_step(model, stack, progress, gradients=None):
    """One step's view and its gradients, without an optimizer; by default those of random sizes by tensor."""
    stack.view.update(model, progress)
    generator = torch.Generator().manual_seed(round(1000 * progress))
    numbers = {name: number for number, (name, _) in enumerate(model.named_parameters())}

    def random(name, weight):
        size = 3.0 ** (numbers[name] % 5) if gradients is None else gradients(name)
        return size * torch.randn(weight.shape, generator=generator)

    give(model, stack, progress, random)
    stack.view.follow_gradients(model)


@pytest.mark.parametrize("granularity", ["null", "tensor", "channel"])
@pytest.mark.parametrize("aware", ["true", "false"])
def test_codes_take_the_rate_that_was_asked_for_and_the_file_gives_them_back(granularity, aware, tmp_path):
    words = [f"technique.quantize.granularity={granularity}", f"technique.quantize.aware={aware}"]
    _, model, stack = build(*RATE, *words)
    train_step(model, stack, 0.8)
    list(stack.finish(model, calibration_of(model)))
    bits = weights = 0.0
    for grid in stack.grids.values():
        counts = np.unique(grid.codes_RC.numpy(), return_counts=True)[1]
        bits -= float((counts * np.log2(counts / counts.sum())).sum())
        weights += counts.sum()
        assert grid.scale.shape == ((len(grid.codes_RC), 1) if granularity == "channel" else (1, 1))
    assert bits / weights == pytest.approx(2.5, abs=0.01)
    assert stack.evidence()["quantize"]["entropy_bits"] == pytest.approx(bits / weights)
    tokenizer = Tokenizer.train(TokenizerConfig(kind="char", vocab_size=40), ["abcdefgh"], word_initial_space=False)
    _, model, stack = build(*RATE, *words, vocabulary=tokenizer.vocab_size)
    list(stack.finish(model, calibration_of(model)))
    path = tmp_path / "compressed.safetensors"
    checkpoint.save(path, model, tokenizer, EvaluationConfig(), stack.storage())
    back = checkpoint.load(path).model.state_dict()
    assert all(torch.equal(back[name], weight) for name, weight in model.state_dict().items())


def steps_of(stack):
    return {name: float(grid.scale) for name, grid in stack.grids.items()}


def test_aware_steps_of_a_rate_go_with_one_over_the_gradients_of_all_steps():
    words = ["technique.quantize.every=1", "technique.quantize.start=0", "technique.quantize.bits=8"]
    _, model, stack = build(*RATE, *words)

    def at(big):
        return lambda name: (8.0 if big in name else 1.0) * (2.0 if "ffn" in name else 1.0)

    for progress in (0.0, 0.1, 0.2):
        train_step(model, stack, progress, at("embedding"))
    for progress in (0.3, 0.4, 0.5):  # what came before still counts
        train_step(model, stack, progress, at("attention.v"))
    # However rarely scales are chosen: those in force follow the first gradients.
    stack.view.update(model, 0.6)
    first = stack.view.grid("embedding.weight", model.embedding.weight.detach(), 0.6)
    assert finish(model, stack) == ["quantize"]  # nothing asks for calibration
    assert float(stack.grids["embedding.weight"].scale) == pytest.approx(
        float(first.scale) * (64 / 32.5) ** 0.5, rel=0.3
    )
    steps = steps_of(stack)
    unit = steps["decoder.blocks.0.attention.q.weight"]
    for name, step in steps.items():
        square = 0.5 * (64 + 1) if "embedding" in name or "attention.v" in name else 1.0
        expected = unit / (square**0.5 * (2.0 if "ffn" in name else 1.0))
        assert step == pytest.approx(expected, rel=0.08)


def test_gradients_of_weights_that_are_gone_do_not_count_for_a_rate():
    words = ["+technique=[prune,quantize]", "technique.prune.start=0", "technique.prune.end=0.1", *RATE[1:]]
    _, model, stack = build(*words, "technique.quantize.start=0.2", "technique.quantize.bits=8")
    name = "decoder.blocks.0.ffn.up.weight"
    # Where the mask lets nothing through, gradients of the view are a hundred times the size.
    stack.view.update(model, 0.15)
    gone = stack.view.mask(name, model.get_parameter(name)).clone() == 0
    stack.view.update(model, 0.3)

    def large_where_gone(tensor, weight):
        return torch.where(gone, 100.0, 1.0) if tensor == name else torch.ones_like(weight)

    give(model, stack, 0.3, large_where_gone)
    stack.view.follow_gradients(model)
    finish(model, stack)
    steps = steps_of(stack)
    # Gradients of what is left are the same everywhere, in the embedding too, of which nothing is pruned.
    assert list(steps.values()) == pytest.approx([steps["embedding.weight"]] * len(steps), rel=0.01)


def test_one_shot_steps_of_a_rate_go_with_one_over_the_gradients_on_calibration_data():
    _, model, stack = build(*RATE, "technique.quantize.aware=false", "technique.quantize.bits=8")
    squares = {name: 0.0 for name, parameter in model.named_parameters() if parameter.ndim == 2}
    (batch,) = calibration_of(model)._make(1)
    logits_NV = model.eval().project(model(batch.target_in_BT, batch.source_BS, batch.source_mask_BS)).flatten(0, 1)
    loss = torch.nn.functional.cross_entropy(logits_NV, batch.target_out_BT.flatten())
    loss.backward()
    for name in squares:
        squares[name] = float(model.get_parameter(name).grad.square().mean())
    model.zero_grad()
    list(stack.finish(model, calibration_of(model)))
    steps = steps_of(stack)
    products = torch.tensor([steps[name] * squares[name] ** 0.5 for name in steps])
    assert float(products.max() / products.min()) < 1.002
    assert max(steps.values()) / min(steps.values()) > 2


def test_one_shot_sensitivities_leave_pruned_weights_out():
    _, model, _ = build()
    name = "decoder.blocks.0.ffn.up.weight"
    calibration = calibration_of(model)
    calibration.request(1)
    with torch.no_grad():
        model.get_parameter(name)[::2] = 0.0
    (batch,) = calibration._batches
    logits_NV = model.eval().project(model(batch.target_in_BT, batch.source_BS, batch.source_mask_BS)).flatten(0, 1)
    torch.nn.functional.cross_entropy(logits_NV, batch.target_out_BT.flatten(), reduction="sum").backward()
    kept = model.get_parameter(name).grad[1::2]
    expected = float(kept.square().mean()) / batch.targets
    rows_R = calibration.squared_gradients([name])[name]
    assert float(rows_R.sum()) == pytest.approx(expected, rel=1e-3)
    torch.testing.assert_close(rows_R[1::2].float(), kept.square().sum(1) / kept.numel() / batch.targets)


def test_calibration_batches_that_do_not_fit_are_cut_and_measure_the_same(monkeypatch):
    _, model, _ = build()
    names = [name for name, parameter in model.named_parameters() if parameter.ndim == 2]
    made = []
    calibration = calibration_of(model)
    monkeypatch.setattr(calibration, "_make", lambda count, make=calibration._make: made.append(count) or make(count))
    calibration.request(1)
    calibration.request(1)
    assert made == [1]
    whole = calibration.squared_gradients(names)
    run, sizes = calibration_module.run_batch, []

    def short_of_memory(model, batch):
        sizes.append(len(batch.rows))
        if len(batch.rows) > 60:
            raise torch.OutOfMemoryError
        return run(model, batch)

    monkeypatch.setattr(calibration_module, "run_batch", short_of_memory)
    with pytest.warns(UserWarning, match="out of memory"):
        cut = calibration.squared_gradients(names)
    for name in names:
        torch.testing.assert_close(cut[name], whole[name], rtol=1e-3, atol=1e-9)
    assert sizes == [200, 100, 50, 50, 50, 50]
    assert model.training


def test_sensitivities_begin_anew_where_parts_have_left():
    _, model, stack = build(*RATE)
    train_step(model, stack, 0.8)
    assert stack.state_dict()["quantize"]["sensitivities"]
    for technique in stack.order["grid"]:
        technique.rewired(None)
    assert stack.state_dict()["quantize"]["sensitivities"] == {}


def test_a_layer_that_no_step_has_used_yet_does_not_stop_the_choice_of_scales():
    _, model, stack = build(*RATE, "technique.quantize.every=0.01", "technique.quantize.start=0")
    stack.view.update(model, 0.1)
    give(model, stack, 0.1, lambda name, weight: None if ".blocks.1." in name else torch.ones_like(weight))
    stack.view.follow_gradients(model)
    stack.view.update(model, 0.2)
    assert stack.view.grid("embedding.weight", model.embedding.weight.detach(), 0.2) is not None


def test_scales_of_a_rate_are_the_same_after_resuming():
    words = [*RATE, "technique.quantize.every=0.05"]
    _, model, stack = build(*words)
    train_step(model, stack, 0.8)
    _, other, resumed = build(*words)
    resumed.load_state_dict(stack.state_dict())
    with torch.no_grad():
        for parameter, same in zip(model.parameters(), other.parameters(), strict=True):
            parameter.mul_(1.5)
            same.mul_(1.5)
    for progress in (0.82, 0.9):  # the scales of before, and new ones
        train_step(model, stack, progress)
        train_step(other, resumed, progress)
        for name, weight in model.named_parameters():
            if weight.ndim == 2:
                grids = [one.view.grid(name, weight.detach(), progress) for one in (stack, resumed)]
                assert torch.equal(grids[0].scale, grids[1].scale)
    finish(model, stack)
    finish(other, resumed)
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), other.parameters(), strict=True))


TRELLIS = [
    *("+technique=quantize", "technique.quantize.method=trellis", "technique.quantize.rate=2"),
    "technique.quantize.skip=[encoder*,*cross*,*.1.*]",
]


@torch.no_grad()
def moved(model, dense):
    """The mean squared difference of what two models put out, on batches that calibration does not see."""
    generator = torch.Generator().manual_seed(5)
    source, target = (torch.randint(4, 12, (60, 6), generator=generator) for _ in range(2))
    return float((model.eval()(target, source) - dense.eval()(target, source)).square().mean())


def test_a_trellis_takes_the_rate_and_moves_the_outputs_less_than_gptq():
    errors = {}
    _, dense, _ = build()
    for method in ("gptq", "trellis"):
        _, model, stack = build(*TRELLIS, f"technique.quantize.method={method}")
        list(stack.finish(model, calibration_of(model)))
        evidence = stack.evidence()["quantize"]
        errors[method] = moved(model, dense)
        assert evidence["entropy_bits"] == pytest.approx(2.0, rel=0.1)
    assert errors["trellis"] < 0.85 * errors["gptq"]
    assert all(grid.trellis for grid in stack.grids.values())
    # Streams hold it exactly, and tell the same bits.
    streams = write_streams(stack.grids, torch.float16, entropy=True)
    read = read_streams(streams)
    for name in stack.grids:
        assert torch.equal(read[name].value.values(), model.get_parameter(name)), name


def test_a_trellis_trains_on_a_uniform_grid_and_ends_on_its_own():
    _, model, stack = build(*TRELLIS, "technique.quantize.aware=true", "technique.quantize.start=0")
    for progress in (0.0, 0.3):
        train_step(model, stack, progress)
    before = {name: grid for name, weight in model.named_parameters()
              if (grid := stack.view.grid(name, weight.detach(), 0.3)) is not None}  # fmt: skip
    assert before
    assert not any(grid.trellis for grid in before.values())
    list(stack.finish(model, calibration_of(model)))
    assert stack.grids.keys() == before.keys()
    assert all(grid.trellis for grid in stack.grids.values())
    assert stack.evidence()["quantize"]["aware_steps"] == 2


def test_gptq_with_a_rate_takes_its_scales_and_puts_out_less_error():
    @torch.no_grad()
    def hidden(model):
        generator = torch.Generator().manual_seed(5)
        source, target = (torch.randint(4, 12, (60, 6), generator=generator) for _ in range(2))
        return model.eval()(target, source)

    errors, scales = {}, {}
    for method in ("nearest", "gptq"):
        words = [f"technique.quantize.method={method}", "technique.quantize.aware=false"]
        _, model, stack = build(*RATE, *words, "technique.quantize.embeddings=false")
        before = hidden(model)
        list(stack.finish(model, calibration_of(model)))
        errors[method] = float((hidden(model) - before).square().mean())
        scales[method] = {name: grid.scale for name, grid in stack.grids.items()}
    assert errors["gptq"] < errors["nearest"]
    assert scales["gptq"].keys() == scales["nearest"].keys()
    assert all(torch.equal(scales["gptq"][name], scale) for name, scale in scales["nearest"].items())


def test_evidence_has_the_rate_that_was_asked_for_and_the_one_that_steps_allow():
    words = ["technique.quantize.rate=0.5", "technique.quantize.bits=8", "technique.quantize.aware=false"]
    _, model, stack = build(*RATE, *words)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 2:  # of two values each, which must not both become zero: a bit a weight
                parameter.copy_(parameter.sign())
    list(stack.finish(model, calibration_of(model)))
    proof = stack.evidence()["quantize"]
    assert (proof["rate"], proof["empty_matrices"]) == (0.5, 0.0)
    assert proof["entropy_bits"] == pytest.approx(1.0, abs=0.02)
    (line,) = missed_rate(stack.evidence())
    assert f"the codes take {proof['entropy_bits']:.3g} bits per weight, not the 0.5 that were aimed at" in line
    _, model, stack = build("+technique=quantize", "technique.quantize.group=16")
    finish(model, stack)
    assert "rate" not in stack.evidence()["quantize"]
    assert missed_rate(stack.evidence()) == []


@pytest.mark.parametrize(("words", "bits"), [([], 4), (["technique.quantize.rate=2"], 8)])
def test_codes_have_4_bits_and_with_a_rate_8_unless_others_are_asked_for(words, bits):
    _, model, stack = build("+technique=quantize", "technique.quantize.group=16", *words)
    list(stack.finish(model, calibration_of(model)))
    assert {grid.bits for grid in stack.grids.values()} == {bits}
    assert stack.evidence()["quantize"]["bits"] == bits


@pytest.mark.parametrize("method", ["nearest", "codebook"])
@pytest.mark.parametrize("empty", [[], ["ffn.up"], ["ffn.up", "attention.q", "attention.k"]])
def test_evidence_counts_the_matrices_that_have_nothing_but_zeros(method, empty):
    _, model, stack = build("+technique=quantize", "technique.quantize.group=16", f"technique.quantize.method={method}")
    with torch.no_grad():
        for name in empty:
            model.get_parameter(f"encoder.blocks.0.{name}.weight").zero_()
        model.get_parameter("encoder.blocks.0.ffn.down.weight")[1:].zero_()  # not all of it
    finish(model, stack)
    assert stack.evidence()["quantize"]["empty_matrices"] == len(empty)


@pytest.mark.parametrize("end", ["0.8", "0.99"])
def test_an_end_before_the_end_is_refused_in_one_line(end):
    with pytest.raises(UserError, match=rf"^technique\.quantize\.end={end}: .*technique\.quantize\.start says"):
        build("+technique=quantize", f"technique.quantize.end={end}")


@pytest.mark.parametrize("optimizer", sorted(choices("optimizer")))
def test_weight_decay_leaves_learned_steps_alone(optimizer):
    words = ["technique.quantize.learned_step=true", "technique.quantize.group=16", f"optimizer={optimizer}"]
    config, model, stack = build("+technique=quantize", *words, "optimizer.weight_decay=5")
    trained = torch.nn.ModuleList([model, stack.prepare_model(model)])
    optimizers = build_optimizers(config.optimizer, trained, torch.device("cpu"))
    steps = list(trained[1].parameters())
    with torch.no_grad():
        for step in steps:
            step.fill_(0.5)
    for parameter in trained.parameters():
        parameter.grad = torch.zeros_like(parameter)
    before = model.embedding.weight.detach().clone()
    optimizers.step(1.0)
    assert steps
    assert all(bool((step == 0.5).all()) for step in steps)
    assert not torch.equal(model.embedding.weight, before)  # which does decay


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (["technique.quantize.bits=4"], "bits=5 or more"),
        (["technique.quantize.rate=6", "technique.quantize.bits=7"], "bits=8 or more"),
        (["technique.quantize.method=codebook"], "no codebook"),
        (["technique.quantize.range=affine"], "range=symmetric"),
        (["technique.quantize.granularity=group"], "granularity=tensor or channel"),
        (["technique.quantize.layers=['embedding*:8']"], "learned_step or layers"),
        (["technique.quantize.learned_step=true"], "learned_step or layers"),
        (["technique.quantize.entropy=false"], "entropy=true"),
        (["technique.quantize.rate=0.4"], "out of range"),
        (["technique.quantize.rate=7"], "out of range"),
    ],
)
def test_what_goes_with_no_rate_is_refused(overrides, words):
    with pytest.raises(UserError, match=words):
        build(*RATE, *overrides)
    build(*RATE, "technique.quantize.bits=5")


def test_bits_go_by_the_last_pattern_that_matches_and_stand_in_the_file(tmp_path):
    tokenizer = Tokenizer.train(TokenizerConfig(kind="char", vocab_size=40), ["abcdefgh"], word_initial_space=False)
    _, model, stack = build(
        "+technique=quantize",
        "technique.quantize.layers=['*:4','embedding*:8','decoder.blocks.1.*:5','*.ffn.*:3']",
        *("technique.quantize.bits=2", "technique.quantize.granularity=channel"),
        vocabulary=tokenizer.vocab_size,
    )
    finish(model, stack)
    expected = {}
    for name, weight in model.named_parameters():
        if weight.ndim == 2:
            is_second, is_ffn = name.startswith("decoder.blocks.1."), ".ffn." in name
            expected[name] = 3 if is_ffn else 5 if is_second else 8 if name.startswith("embedding") else 4
    assert set(expected.values()) == {3, 4, 5, 8}
    assert {name: grid.bits for name, grid in stack.grids.items()} == expected
    path = tmp_path / "compressed.safetensors"
    checkpoint.save(path, model, tokenizer, EvaluationConfig(), stack.storage())
    records = {record["name"]: record.get("bits") for record in checkpoint.read_header(path).raw["tensors"]}
    assert {name: bits for name, bits in records.items() if bits} == expected


def test_a_codebook_has_few_values_a_tensor():
    _, model, stack = build("+technique=quantize", "technique.quantize.method=codebook", "technique.quantize.bits=3")
    finish(model, stack)
    assert all(len(p.unique()) <= 8 for p in model.parameters() if p.ndim == 2)


def test_structure_goes_and_the_optimizer_can_go_on():
    _, model, stack = build(
        "+technique=prune",
        "technique.prune.sparsity=0",
        "technique.prune.structure.ffn=0.5",
        "technique.prune.structure.heads=0.5",
        "technique.prune.structure.decoder_layers=1",
    )
    assert list(stack.rewire(model, 0.1, None)) == []
    for rewiring in stack.rewire(model, 0.3, None):
        rewiring.apply(model)
    assert list(stack.rewire(model, 0.4, None)) == []
    assert [shape.ffn for shape in (*model.architecture.encoder, *model.architecture.decoder)] == [16, 16]
    assert [shape.heads for shape in (*model.architecture.encoder, *model.architecture.decoder)] == [1, 1]
    assert finish(model, stack) == ["prune"]
    assert stack.evidence()["prune"]["parameters_removed"] > 0


def test_masks_follow_a_removal():
    _, model, stack = build(*PRUNE, "technique.prune.structure.ffn=0.5")
    stack.view.update(model, 0.3)
    for rewiring in stack.rewire(model, 0.3, None):
        rewiring.apply(model)
    for name, parameter in model.named_parameters():
        mask = stack.view.mask(name, parameter)
        assert mask is None or mask.shape == parameter.shape


@pytest.mark.parametrize(
    ("overrides", "what"),
    [
        (["+technique=quantize", "technique.quantize.bits=9"], "bits=9 is out of range"),
        (["+technique=quantize", "technique.quantize.group=48"], "group=48 does not divide"),
        (["+technique=prune", "technique.prune.sparsity=1"], "sparsity=1 is out of range"),
        (["+technique=prune", "technique.prune.pattern=1:3", "technique.prune.sparsity=0.667"], "3 does not divide"),
        (["+technique=prune", "technique.prune.pattern=2:4", "technique.prune.sparsity=0.6"], "sparsity=0.5"),
        (["+technique=quantize", "technique.quantize.method=gptq", "technique.quantize.aware=true"], "leave one of"),
        (["+technique=quantize", "technique.quantize.method=trellis"], "codes to a rate: name technique.quantize.rate"),
        ([*TRELLIS, "technique.quantize.bits=6"], "leave it out"),
        ([*TRELLIS, "technique.quantize.bits=8", "technique.quantize.activations=int8"], "no codebook or trellis"),
        (["+technique=quantize", "technique.quantize.layers=['nothing*:8']"], "no quantized tensor"),
        (["+technique=quantize", "technique.quantize.layers=['embedding*:9']"], "2 to 8 bits"),
        (
            [
                "+technique=[prune,quantize]",
                "technique.quantize.learned_step=true",
                "technique.prune.structure.ffn=0.5",
            ],
            "removes parts",
        ),
        (["+technique=prune", "technique.prune.sparsity=0"], "does nothing"),
        (["+technique=prune", "technique.prune.structure.encoder_layers=3"], "more than the model's"),
        (
            ["+technique=prune", "technique.prune.skip=['decoder.block.*']"],
            "prune.skip: no tensor .* 'decoder.block.*'",
        ),
        (["+technique=quantize", "technique.quantize.skip=[output.weight]"], "quantize.skip: no tensor"),
        (["+technique=prune", "technique.prune.skip=['*.blocks.*']"], "prune.skip leaves every weight of the model"),
        (["+technique=quantize", "technique.quantize.skip=['*']"], "quantize.skip leaves every weight of the model"),
        (
            [*INT8, "technique.quantize.layers=['embedding*:8','encoder*:4']"],
            r"layers gives 'encoder\*:4', and activations=int8",
        ),
        (["+technique=quantize", "technique.quantize.aware=true", "trainer.budget.steps=0"], "aware=true acts only"),
        (
            ["+technique=quantize", "technique.quantize.learned_step=true", "trainer.budget.steps=0"],
            "learned_step=true acts only",
        ),
    ],
)
def test_bad_settings_are_refused_with_the_reason(overrides, what):
    def plan():
        _, model, stack = build(*overrides)
        stack.plan_for(model)

    with pytest.raises(UserError, match=what):
        plan()


SIXTEEN = ["+technique=[prune,quantize]", "technique.quantize.group=16"]


@pytest.mark.parametrize(
    ("overrides", "what"),
    [
        ([*SIXTEEN, "technique.prune.structure.heads=0.5"], "group=16 does not divide the 8 inputs"),
        (
            [
                "+technique=prune",
                *("technique.prune.pattern=2:4", "technique.prune.sparsity=0.5", "technique.prune.structure.ffn=0.05"),
            ],
            "4 does not divide the 30 inputs",
        ),
        (
            [
                *SIXTEEN,
                "technique.prune.structure.decoder_layers=1",
                "technique.quantize.layers=['decoder.blocks.1.*:8']",
            ],
            "no quantized tensor matches 'decoder.blocks.1",
        ),
        # Aware from before the parts go: then the shapes that it meets first count too.
        (
            [*SIXTEEN, "model.ffn_width=40", "technique.prune.structure.ffn=0.2", "technique.quantize.start=0.1"],
            "group=16 does not divide the 40 inputs",
        ),
    ],
)
def test_what_does_not_fit_the_shapes_once_parts_have_left_is_refused_before_training(overrides, what):
    _, model, stack = build(*overrides)
    with pytest.raises(UserError, match=what):
        stack.plan_for(model)
    with torch.device("meta"):  # as in a dry run
        model = Transformer(model.architecture)
    with pytest.raises(UserError, match=what):
        stack.plan_for(model)


def test_what_fits_only_once_parts_have_left_is_taken_and_trained():
    words = ["model.ffn_width=40", "technique.prune.structure.ffn=0.2", "technique.prune.start=0.3"]
    _, model, stack = build(*SIXTEEN, *words, "technique.quantize.start=0.3")
    stack.plan_for(model)
    for progress in (0.0, 0.3, 0.6):
        for rewiring in stack.rewire(model, progress, None):
            rewiring.apply(model)
        stack.view.update(model, progress)
    assert finish(model, stack) == ["prune", "quantize"]
    assert stack.evidence()["quantize"]["aware_steps"] == 2


@pytest.mark.parametrize("tied", ["all", "none"])
def test_moments_of_embeddings_and_of_the_output_matrix_are_those_of_their_inputs(tied):
    _, model, _ = build(f"model.tied_embeddings={tied}")
    calibration = calibration_of(model)
    calibration.request(2)
    names = {"embedding.weight", "output.weight", "source_embedding.weight"} & dict(model.named_parameters()).keys()
    groups = list(calibration.inputs(names))
    found = {name: moments for group in groups for name, moments in group.items()}
    hidden_ND = []
    for batch in calibration._batches:
        with torch.no_grad():
            hidden_BTD = model.eval()(batch.target_in_BT, batch.source_BS, batch.source_mask_BS)
        hidden_ND.append(hidden_BTD[batch.target_out_BT >= 0].double())
    hidden_ND = torch.cat(hidden_ND)
    expected = hidden_ND.t() @ hidden_ND / len(hidden_ND)
    identity = torch.eye(model.architecture.width, dtype=torch.float64)
    if tied == "all":
        both = expected + expected.diagonal().mean() * identity
        torch.testing.assert_close(found.pop("embedding.weight"), both, rtol=1e-4, atol=1e-6)
    else:
        torch.testing.assert_close(found.pop("output.weight"), expected, rtol=1e-4, atol=1e-6)
        assert torch.equal(found.pop("embedding.weight"), identity)
        assert torch.equal(found.pop("source_embedding.weight"), identity)
        # What the output matrix sees depends on all other matrices: it comes last.
        assert "output.weight" in groups[-1]
    assert not found


def test_the_plan_names_what_is_left_alone_and_how_much_is_in():
    _, model, stack = build(
        "+technique=[prune,quantize]", "technique.quantize.group=16", "technique.quantize.skip=[encoder*]"
    )
    said = dict(stack.plan_for(model))
    assert "embedding.weight" in said["prune"]
    assert "encoder.blocks.0.attention.q.weight" in said["quantize"]
    assert "% of the model" in said["prune"]


def test_a_split_of_pairs_is_what_calibration_reads():
    # Padding never counts: moments of a padded batch equal those of its sentences one by one.
    _, model, _ = build()
    tokenizer = Tokenizer.train(TokenizerConfig(kind="char", vocab_size=40), ["abcdefgh"], word_initial_space=False)
    ids = Ragged.from_lists([[5, 6, 7, 8, 9], [6, 5]], np.int64)
    pairs = Pairs(ids, ids)
    together = [collate_pairs(pairs, np.array([0, 1]), tokenizer)]
    apart = [collate_pairs(pairs, np.array([row]), tokenizer) for row in (0, 1)]
    found = []
    for batches in (together, apart):
        calibration = Calibration(model, lambda count, batches=batches: batches)
        calibration.request(2)
        matrices = {name for name, parameter in model.named_parameters() if parameter.ndim == 2}
        moments = {name: moment for group in calibration.inputs(matrices) for name, moment in group.items()}
        found.append(moments)
    assert found[0].keys() == matrices
    for name, moment in found[0].items():
        torch.testing.assert_close(moment, found[1][name], rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(
    ("evidence", "said"),
    [
        ({"rate": 3.0, "entropy_bits": 3.01}, None),
        (
            {"rate": 3.0, "entropy_bits": 4.0},
            "4 bits per weight, not the 3 that were aimed at: no step may be so coarse",
        ),
        ({"rate_for_bytes": 4.47, "entropy_bits": 4.57}, None),  # the file keeps its bytes
        ({"rate_for_bytes": 6.0, "entropy_bits": 0.27}, "0.27 bits per weight, and the file may have 6: "),
    ],
)
def test_what_was_aimed_at_and_missed_is_told(evidence, said):
    lines = missed_rate({"quantize": evidence})
    assert len(lines) == (said is not None)
    assert said is None or said in lines[0]
