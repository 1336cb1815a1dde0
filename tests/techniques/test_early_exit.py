"""Early exit: a text leaves after the first block whose head is sure, and the threshold keeps the quality."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch.nn import functional

from tfx.config.compose import compose
from tfx.config.schema import ModelConfig, TokenizerConfig
from tfx.data.ragged import Ragged
from tfx.data.tokenizer import Tokenizer
from tfx.errors import UserError
from tfx.evaluation.scoring import score_loss
from tfx.model.architecture import Architecture, Outputs
from tfx.model.early_exit import label_logits, leave_early, logits_of_exits, set_exits
from tfx.model.rewiring import rewire_blocks, whole_block
from tfx.model.transformer import Transformer, initialise, run_batch
from tfx.tasks.texts import Texts, collate_texts
from tfx.techniques.calibration import Validation
from tfx.techniques.early_exit import EarlyExit, EarlyExitSettings, ExitScores
from tfx.techniques.stack import Stack
from tfx.training.step import Stepper

TOKENIZER = Tokenizer.train(TokenizerConfig(kind="char", vocab_size=40), ["abcdefgh"], word_initial_space=False)
OUTPUTS = Outputs("one", ("no", "perhaps", "yes"))
SHAPE = {"width": 16, "heads": 2, "ffn_width": 32, "encoder_layers": 4, "decoder_layers": 0, "context": 16}


def model_of(exits=(1, 2, 3), **settings) -> Transformer:
    """A classifier whose heads differ from each other."""
    config = ModelConfig(**{"family": "classification", "dropout": 0.0, **SHAPE, **settings})
    model = Transformer(Architecture.from_config(config, TOKENIZER.vocab_size, OUTPUTS), config)
    initialise(model, 1)
    set_exits(model, exits)
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.startswith(("exits.", "output.")):
                parameter.normal_(std=0.45, generator=generator)
    return model.eval()


def texts_of(count: int = 40) -> Texts:
    rng = np.random.default_rng(0)
    rows = [rng.integers(4, TOKENIZER.vocab_size, size=rng.integers(1, 9)).tolist() for _ in range(count)]
    return Texts(OUTPUTS, Ragged.from_lists(rows, np.int64), None, rng.integers(0, 3, count))


def batch_of(count: int = 40):
    return collate_texts(texts_of(count), np.arange(count), TOKENIZER)


def by_hand(model: Transformer, batch, row: int) -> list[torch.Tensor]:
    """The logits of each head for one text alone, from torch's own functions and the blocks."""
    length = batch.tokens if batch.source_mask_BS is None else int(batch.source_mask_BS[row].sum())
    x, bias, rotary = model.entering(batch.source_BS[row : row + 1, :length], None)
    found = []
    for depth, block in enumerate(model.encoder.blocks, start=1):
        x = block(x, bias, None, None, rotary)
        last = depth == len(model.encoder.blocks)
        if not last and depth not in model.architecture.exits:
            continue
        own = model if last else model.exits[model.architecture.exits.index(depth)]
        norm = model.encoder.norm if last else own.norm
        state = x[0]
        if model.architecture.norm_position == "pre":
            state = functional.layer_norm(state, (16,), norm.weight, norm.bias, norm.eps)
        pooled = {"mean": state.mean(0), "first": state[0], "max": state.amax(0)}[model.architecture.pooling]
        if model.architecture.pooler:
            pooled = torch.tanh(functional.linear(pooled, own.pooling.dense.weight, own.pooling.dense.bias))
        found.append(functional.linear(pooled, own.output.weight, own.output.bias))
    return found


KINDS = {
    "rotary": {},
    "alibi, the maximum, a convolution": {"positions": "alibi", "pooling": "max", "convolution": 3},
    "relative, norm behind, pooler": {
        **{"positions": "relative", "norm_position": "post", "pooling": "first"},
        **{"pooler": True, "embedding_norm": True},
    },
}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("threshold", [0.6, 0.75])
@torch.inference_mode()
def test_a_text_leaves_by_the_first_head_that_is_sure(kind, threshold):
    model, batch = model_of(**KINDS[kind]), batch_of()
    logits, depth = leave_early(model, batch, threshold)
    every = logits_of_exits(model, batch)
    for row in range(40):
        heads = by_hand(model, batch, row)
        place = next((i for i, head in enumerate(heads[:-1]) if head.softmax(0).max() >= threshold), len(heads) - 1)
        assert depth[row] == place + 1
        torch.testing.assert_close(logits[row], heads[place], rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(every[:, row], torch.stack(heads), rtol=1e-4, atol=1e-5)
    assert len(set(depth.tolist())) > 1, "all texts leave at one place: the test shows nothing"


@torch.inference_mode()
def test_a_block_runs_for_the_texts_alone_that_are_still_inside():
    model, batch = model_of(), batch_of()
    seen = []
    for block in model.encoder.blocks:
        block.register_forward_pre_hook(lambda _, inputs: seen.append(len(inputs[0])))
    _, depth = leave_early(model, batch, 0.75)
    expected = [int((depth > number).sum()) for number in range(4)]
    assert seen == [count for count in expected if count]
    assert seen[0] > seen[-1]
    seen.clear()
    model.exits_at(0.75)
    label_logits(model, batch)
    assert seen == [count for count in expected if count]
    # Whoever asks for the states of the whole model gets them.
    seen.clear()
    run_batch(model, batch)
    assert seen == [40] * 4


def config_of(*words):
    shape = [f"model.{name}={value}" for name, value in SHAPE.items()]
    base = ["dataset=kinds", *shape, "model.dropout=0", "trainer.precision=fp32", "trainer.budget.steps=10"]
    return compose([*base, *words])


@pytest.mark.parametrize("joint", [True, False])
def test_each_head_learns_and_the_layers_with_it_if_joint(joint):
    config = config_of()
    technique = EarlyExit(EarlyExitSettings(layers=[1, 3], weight=0.5, joint=joint))
    model, batch = model_of(exits=()), batch_of()
    stack = Stack([technique], config)
    stack.prepare_model(model)
    assert model.architecture.exits == (1, 3)
    stepper = Stepper(config, model.train(), torch.nn.Module(), torch.device("cpu"), stack, 0.1, print)
    stepper.optimizers.step = lambda *_: None
    stepper.optimizers.zero_grad = lambda: None
    stepper.take([batch], 1.0, 0, 0.5)
    found = {n: torch.zeros_like(p) if p.grad is None else p.grad for n, p in model.named_parameters()}
    norm = torch.stack([gradient.norm() for gradient in found.values()]).norm()

    model.zero_grad(set_to_none=True)
    *heads, last = logits_of_exits(model, batch)
    target = batch.target_out_BT[:, 0]
    loss = functional.cross_entropy(last, target, label_smoothing=0.1)
    sides = 0.5 * sum(functional.cross_entropy(head, target, label_smoothing=0.1) for head in heads)
    parameters = dict(model.named_parameters())
    expected = torch.autograd.grad(loss, list(parameters.values()), retain_graph=True, allow_unused=True)
    side = torch.autograd.grad(sides, list(parameters.values()), allow_unused=True)
    # Both are clipped to a norm of 1, the default: directions are what can be compared.
    whole = []
    for name, own, other in zip(parameters, expected, side, strict=True):
        value = torch.zeros_like(parameters[name]) if own is None else own
        if other is not None and (joint or name.startswith("exits.")):
            value = value + other
        whole.append(value)
    length = torch.stack([value.norm() for value in whole]).norm()
    for name, value in zip(parameters, whole, strict=True):
        torch.testing.assert_close(found[name] / norm, value / length, rtol=1e-3, atol=1e-5, msg=name)


@pytest.mark.parametrize(("progress", "learns"), [(0.1, False), (0.5, True), (0.9, False)])
def test_heads_learn_between_start_and_end_alone(progress, learns):
    config = config_of()
    technique = EarlyExit(EarlyExitSettings(start=0.3, end=0.8))
    model, stack = model_of().train(), Stack([technique], config)
    stepper = Stepper(config, model, torch.nn.Module(), torch.device("cpu"), stack, 0.0, print)
    stepper.optimizers.step = stepper.optimizers.zero_grad = lambda *_: None
    stepper.take([batch_of()], 1.0, 0, progress)
    assert all((parameter.grad is not None) == learns for parameter in model.exits.parameters())


def test_the_threshold_is_the_lowest_from_which_on_quality_holds():
    rng = np.random.default_rng(3)
    truth = rng.integers(0, 3, 200)
    # A first head that is right where it is sure, and wrong below: a head sees what it sees.
    sure = rng.uniform(0.34, 1.0, 200)
    right = np.where(sure > 0.8, True, rng.uniform(size=200) < 0.5)
    logits = np.zeros((2, 200, 3), dtype=np.float32)
    said = np.where(right, truth, (truth + 1) % 3)
    logits[0, np.arange(200), said] = np.log(2 * sure / (1 - sure))
    logits[1, np.arange(200), truth] = 5.0
    confidence = np.exp(logits).max(2) / np.exp(logits).sum(2)

    def judge(logits_NC, depth_N):
        return {"accuracy": float((logits_NC.argmax(1) == truth).mean())}

    scores = ExitScores(logits, confidence.astype(np.float32), np.asarray([1, 4]), judge)
    for most_lost in (0.0, 0.02, 0.1, 1.0):
        threshold = scores.lowest_threshold("accuracy", most_lost)
        leaves = confidence[0] >= threshold
        lost = float((leaves & ~right).mean())
        assert lost <= most_lost + 1e-9
        metrics, depth = scores.at(threshold)
        assert metrics["accuracy"] == pytest.approx(1 - lost)
        assert depth.tolist() == np.where(leaves, 1, 4).tolist()
        if most_lost == 1.0:
            assert leaves.all()
            continue
        # Of the next texts, about as many as lie between two thresholds, one is wrong and too many.
        order = np.argsort(-confidence[0])
        wrong = np.cumsum(~right[order]) / 200
        most = int((wrong <= most_lost + 1e-9).sum())
        assert most - 2 <= leaves.sum() <= most


@pytest.mark.parametrize(("most_lost", "threshold"), [(0.0, None), (0.5, 1.0)])
def test_where_wrong_probabilities_are_rounded_to_1_no_text_leaves(most_lost, threshold):
    logits = np.zeros((2, 2, 3), dtype=np.float32)
    logits[0, :, 0] = 200.0
    logits[1, [0, 1], [0, 1]] = 5.0

    def judge(logits_NC, depth_N):
        return {"accuracy": float((logits_NC.argmax(1) == [0, 1]).mean())}

    scores = ExitScores(logits, np.ones((2, 2), dtype=np.float32), np.asarray([1, 4]), judge)
    found = scores.lowest_threshold("accuracy", most_lost)
    assert found == threshold
    assert scores.at(found)[0]["accuracy"] >= 1 - most_lost


@pytest.mark.parametrize("threshold", [0.5, 0.8])
def test_what_is_chosen_is_what_the_scored_model_does(threshold):
    model, texts = model_of(), texts_of(60)
    technique = EarlyExit(EarlyExitSettings(threshold=threshold))
    technique.check(config_of())
    validation = Validation(texts, TOKENIZER, 64)
    technique.tune(model, model, validation)
    assert model.architecture.exit_threshold == threshold
    score = score_loss(model, texts, TOKENIZER, batch_tokens=64, device=torch.device("cpu"))
    proof = technique.evidence()
    assert score.metrics["accuracy"] == pytest.approx(proof["accuracy"])
    assert score.metrics["depth"] == pytest.approx(proof["depth"])
    assert proof["left_early"] == pytest.approx(float((score.depth < 4).mean()))
    whole = score_loss(model_of(), texts, TOKENIZER, batch_tokens=64, device=torch.device("cpu"))
    assert whole.depth is None
    assert whole.metrics["accuracy"] == pytest.approx(proof["whole_accuracy"])


def test_heads_that_learned_are_there_even_if_no_text_may_leave_by_them():
    """That none is good enough is a result, and no reason to throw the training away."""
    technique = EarlyExit(EarlyExitSettings())
    config, model = config_of(), model_of().train()
    stepper = Stepper(config, model, torch.nn.Module(), torch.device("cpu"), Stack([technique], config), 0.0, print)
    assert not technique.acted()
    stepper.take([batch_of()], 1.0, 0, 0.0)
    assert technique.acted()
    technique._chosen = {"threshold": 1.0, "left_early": 0.0}
    assert technique.acted()


def test_heads_follow_the_layers_that_stay():
    model, batch = model_of(), batch_of()
    states = [block for number, block in enumerate(model.encoder.blocks) if number != 1]
    plans = [whole_block(number, model.architecture.encoder[number]) for number in (0, 2, 3)]
    heads = [{name: value.clone() for name, value in model.exits[place].state_dict().items()} for place in (1, 2)]
    weights = [block.ffn.up.weight.clone() for block in states]
    rewire_blocks(model, plans, []).apply(model)
    # After the first two blocks only one is left: of two heads that meet there the deeper one stays.
    assert model.architecture.exits == (1, 2)
    for place, kept in enumerate(heads):
        assert all(torch.equal(value, kept[name]) for name, value in model.exits[place].state_dict().items())
    assert all(torch.equal(b.ffn.up.weight, w) for b, w in zip(model.encoder.blocks, weights, strict=True))
    logits_of_exits(model, batch)


def test_a_header_with_exits_that_no_model_has_is_refused():
    architecture = model_of().architecture
    assert Architecture.from_dict(replace(architecture, exit_threshold=0.9).to_dict()).exits == (1, 2, 3)
    assert "exits" not in replace(architecture, exits=()).to_dict()
    for wrong in ({"exits": (4,)}, {"exits": (2, 1)}, {"exits": (True,)}, {"exits": (), "exit_threshold": 0.5}):
        with pytest.raises(UserError, match="not readable"):
            Architecture.from_dict(replace(architecture, **wrong).to_dict())
    with pytest.raises(UserError, match="does not predict one label"):
        Architecture.from_dict(replace(architecture, outputs=Outputs("number")).to_dict())


@pytest.mark.parametrize(
    ("layers", "settings", "says"),
    [
        ([], {"encoder_layers": 1}, "needs a model of two layers or more: set model.encoder_layers=2"),
        ([4], {}, "of 4 layers the last has the model's own head, so name numbers from 1 to 3"),
    ],
)
def test_places_that_a_model_does_not_have_are_refused(layers, settings, says):
    with pytest.raises(UserError, match=says):
        EarlyExit(EarlyExitSettings(layers=layers)).plan(model_of(exits=(), **settings))
