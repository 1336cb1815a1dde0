"""Where processes divide the weights, each computes its rows of the view: together they are the view of the whole."""

import pytest
import torch

from tfx.config import compose
from tfx.model.architecture import Architecture
from tfx.model.transformer import Transformer, initialise
from tfx.techniques.contract import Technique
from tfx.techniques.prune.movement import MovementScores
from tfx.techniques.rows import Rows
from tfx.techniques.stack import Stack
from tfx.training.parallel import check_sharded

SMALL = ["model.width=16", "model.heads=2", "model.ffn_width=32", "model.encoder_layers=1", "model.decoder_layers=2"]
# As FSDP2 divides rows: here 16 rows are 4, 4, 4, 4 and none.
SIZE = 5


def build(*overrides):
    config = compose.compose([*SMALL, "trainer.budget.steps=10", "optimizer=adamw", *overrides])
    model = Transformer(Architecture.from_config(config.model, 40), config.model)
    initialise(model, 1)
    return config, model, Stack.from_config(config)


class Some(Rows):
    """The rows of one of several processes, whose others are not there."""

    def __init__(self, weight, rank):
        self.count = len(weight)
        each = -(-self.count // SIZE)
        self.own = slice(rank * each, (rank + 1) * each)

    def of(self, value):
        return value[self.own] if len(value) == self.count else value

    def part(self, tensor):
        return tensor.detach()[self.own]

    def leaf(self, weight):
        return self.part(weight).clone().requires_grad_()

    def room(self, part):
        return part.new_zeros(self.count, *part.shape[1:])

    def set_gradient(self, weight, gradient):
        weight.grad[self.own] = gradient


CASES = {
    "masks": ["technique=prune", "technique.prune.vectors=true", "technique.prune.embeddings=true"],
    "pattern": ["technique=prune", "technique.prune.pattern=2:4"],
    "movement": ["technique=prune", "technique.prune.score=movement"],
    "tensor": ["technique=quantize", "technique.quantize.granularity=tensor"],
    "channel": ["technique=[prune,quantize]", "technique.quantize.granularity=channel"],
    "group": ["technique=[prune,quantize]", "technique.quantize.group=8", "technique.quantize.range=affine"],
    "codebook": ["technique=[prune,quantize]", "technique.quantize.method=codebook"],
    "rate": ["technique=quantize", "technique.quantize.rate=3", "technique.quantize.granularity=channel"],
    "trellis": [
        *("technique=quantize", "technique.quantize.method=trellis", "technique.quantize.aware=true"),
        *("technique.quantize.rate=2", "technique.quantize.granularity=channel"),
    ],
}


@pytest.mark.parametrize("name", CASES)
def test_the_views_of_all_rows_and_their_gradients_are_those_of_the_whole(name):
    _, model, stack = build(*CASES[name])
    stack.view.update(model, 0.8)
    whole = stack.view.see(model, 0.8)
    assert whole.values
    weights = dict(model.named_parameters())
    generator = torch.Generator().manual_seed(2)
    gradients = {n: torch.randn(weight.shape, generator=generator) for n, weight in weights.items()}
    for n, leaf in whole.leaves.items():
        leaf.grad = gradients[n].clone()
    whole.pass_back()
    expected = {n: weights[n].grad for n in whole.values}
    own = {n: weight.detach().clone() for n, weight in weights.items()}
    for n, weight in weights.items():
        weight.grad = gradients[n].clone()
    values = {n: [] for n in whole.values}
    for rank in range(SIZE):
        with stack.view.see(model, 0.8, lambda weight, rank=rank: Some(weight, rank)) as seen:
            assert seen.values.keys() == whole.values.keys()
            for n, value in seen.values.items():
                values[n].append(value)
                # A pass would find them in the weights.
                assert torch.equal(Some(weights[n], rank).part(weights[n]), value)
            seen.pass_back()
    for n, parts in values.items():
        assert torch.equal(torch.cat(parts), whole.values[n]), n
        assert torch.equal(weights[n].grad, expected[n]), n
    assert all(torch.equal(weights[n], value) for n, value in own.items())


def test_the_weights_are_their_own_again_where_a_pass_fails():
    _, model, stack = build(*CASES["masks"])
    stack.view.update(model, 0.8)
    own = {name: weight.detach().clone() for name, weight in model.named_parameters()}

    def fail():
        assert not all(torch.equal(weight, own[name]) for name, weight in model.named_parameters())
        raise ValueError("a pass")

    with pytest.raises(ValueError, match="a pass"), stack.view.see(model, 0.8, lambda weight: Some(weight, 0)) as seen:
        seen.run(fail)
    assert all(torch.equal(weight, own[name]) for name, weight in model.named_parameters())


@pytest.mark.parametrize("is_soft", [False, True])
def test_scores_of_rows_are_the_rows_of_the_scores(is_soft):
    generator = torch.Generator().manual_seed(0)
    steps = [torch.randn(2, 7, 4, generator=generator) for _ in range(3)]
    whole = MovementScores(is_soft=is_soft)
    for weight, gradient in steps:
        whole.follow("w", weight, gradient, 0.1)
    for rank in range(SIZE):
        part = MovementScores(is_soft=is_soft)
        for weight, gradient in steps:
            rows = Some(weight, rank)
            part.follow("w", rows.part(weight), rows.part(gradient), 0.1, rows)
        for (_, found), (_, expected) in zip(part.by_rows(), whole.by_rows(), strict=True):
            assert torch.equal(rows.of(found), rows.of(expected))
            assert int((found != 0).sum()) == rows.of(found).numel()


def test_where_no_update_is_due_none_reads_a_weight():
    _, model, stack = build(*CASES["group"], "technique.prune.every=0.1", "technique.quantize.every=0.2")
    nothing = Transformer(model.architecture).to("meta")
    due = []
    for step in range(40):
        if stack.view.is_due(step / 40):
            due.append(step)
            stack.view.update(model, step / 40)
        else:
            stack.view.update(nothing, step / 40)
    assert due == [8, 12, 16, 20, 24, 28, 36]


@pytest.mark.parametrize(
    "overrides",
    [
        *CASES.values(),
        ["technique=prune", "technique.prune.score=wanda"],
        ["technique=prune", "technique.prune.structure.decoder_layers=1", "technique.prune.structure.layers_at=end"],
        ["technique=prune", "technique.prune.structure.vocabulary=true"],
        ["technique=quantize", "technique.quantize.method=gptq"],
        ["trainer.keep_zeros=true", "init_from=run"],
    ],
)
def test_masks_grids_and_what_comes_after_training_go_with_divided_weights(overrides):
    config, _, stack = build("trainer.parallel=fsdp", "trainer.averaging.kind=none", "trainer.keep=last", *overrides)
    check_sharded(config, stack)


def test_a_technique_that_acts_on_weights_and_says_nothing_of_rows_is_refused():
    class Halves(Technique):
        name = "halves"

        def mask(self, name, weight):
            return torch.ones_like(weight, dtype=torch.bool)

    class Loss(Technique):
        name = "loss"

        def objective(self, objective, moment):
            pass

    assert "does not say" in Halves(Halves.Settings()).needs_whole_weights()
    assert Loss(Loss.Settings()).needs_whole_weights() is None
