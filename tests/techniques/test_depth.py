"""Which layers stay: LayerDrop's every other one, or those that the validation loss needs, at the end of training."""

from copy import deepcopy
from itertools import combinations

import pytest
import torch
from omegaconf import OmegaConf
from torch import nn

from tfx.config.compose import compose
from tfx.errors import UserError
from tfx.model.architecture import Architecture
from tfx.model.transformer import Transformer, initialise
from tfx.techniques.calibration import Calibration
from tfx.techniques.prune import Prune
from tfx.techniques.prune.depth import every_other, layers_by_loss
from tfx.techniques.prune.settings import PruneSettings
from tfx.techniques.stack import Stack

MODEL = ["model.width=16", "model.heads=2", "model.ffn_width=16", "model.encoder_layers=4", "model.decoder_layers=3"]


@pytest.fixture(scope="module")
def config():
    return compose([*MODEL, "trainer.budget.steps=10", "model.layer_dropout=0.2"])


@pytest.fixture(scope="module")
def whole(config):
    model = Transformer(Architecture.from_config(config.model, 30), config.model)
    initialise(model, 1)
    with torch.no_grad():
        for stack in (model.encoder, model.decoder):
            for number, block in enumerate(stack.blocks):
                block.ffn.up.weight[0, 0] = number  # to know a layer again
    return model


def built(config, whole, *words):
    asked = OmegaConf.merge(OmegaConf.structured(PruneSettings), OmegaConf.from_dotlist(["sparsity=0", *words]))
    return deepcopy(whole), Stack([Prune(OmegaConf.to_object(asked))], config)


def numbers(model, stack):
    return [int(block.ffn.up.weight[0, 0]) for block in getattr(model, stack).blocks]


@pytest.mark.parametrize(
    ("kept", "layers", "expected"),
    # Fan 2020: of 12 layers at a rate of 1/2 those at odd depths stay, counted from 1; at 1/3 each third goes.
    [
        (6, 12, [0, 2, 4, 6, 8, 10]),
        (8, 12, [0, 1, 3, 4, 6, 7, 9, 10]),
        (2, 4, [0, 2]),
        (3, 4, [0, 1, 2]),
        (4, 4, [0, 1, 2, 3]),
    ],
)
def test_every_other_layer_goes_by_the_rule_of_the_paper(kept, layers, expected):
    assert every_other(kept, layers, "x") == expected


def test_a_number_that_the_rule_does_not_leave_is_refused_with_those_that_it_does(config, whole):
    model, stack = built(config, whole, "structure.encoder_layers=1", "structure.layers_by=every_other")
    with pytest.raises(UserError, match=r"encoder_layers=1: .* of 4 layers can leave 2, 3, 4") as error:
        stack.plan_for(model)
    assert "\n" not in str(error.value)


def test_one_by_one_those_go_without_which_the_loss_is_lowest(whole):
    model = deepcopy(whole)
    worth = {"encoder": [5.0, 1.0, 7.0, 2.0], "decoder": [1.0, 9.0, 4.0]}

    def loss():
        return 100.0 - sum(worth[stack][number] for stack in worth for number in numbers(model, stack))

    found, lowest = layers_by_loss(model, {"encoder": 2, "decoder": 1}, loss)
    # With losses that add up, one by one finds the best of all choices.
    best = {
        stack: list(max(combinations(range(len(values)), count), key=lambda chosen: sum(values[i] for i in chosen)))
        for (stack, values), count in zip(worth.items(), (2, 1), strict=True)
    }
    assert found == best == {"encoder": [0, 2], "decoder": [1]}
    assert lowest == 100.0 - (5 + 7 + 9)
    # The model is as it was.
    assert numbers(model, "encoder") == [0, 1, 2, 3]
    assert [name for name, _ in model.named_parameters()] == [name for name, _ in whole.named_parameters()]


@pytest.mark.parametrize("by", ["every_other", "loss"])
def test_at_the_end_the_chosen_layers_are_the_model(config, whole, by):
    words = ["structure.encoder_layers=2", "structure.layers_at=end", f"structure.layers_by={by}", "structure.ffn=0.5"]
    model, stack = built(config, whole, *words)
    worth = [3.0, 1.0, 2.0, 8.0]
    calibration = Calibration(model, None, lambda: -sum(worth[n] for n in numbers(model, "encoder")))
    assert not stack.settled()
    assert not stack.compresses_now(0.1)
    for rewiring in stack.rewire(model, 0.5, calibration):
        rewiring.apply(model)
    assert len(model.encoder.blocks) == 4  # units went at the start, layers are still there
    assert model.encoder.blocks[0].ffn.up.weight.shape == (8, 16)
    # To know them again: the units that stayed may be others.
    with torch.no_grad():
        for number, block in enumerate(model.encoder.blocks):
            block.ffn.up.weight[0, 0] = number
    for rewiring in stack.rewire(model, 1.0, calibration):
        rewiring.apply(model)
    assert numbers(model, "encoder") == ([0, 2] if by == "every_other" else [0, 3])
    assert len(model.architecture.encoder) == 2
    assert len(model.decoder.blocks) == 3
    assert stack.settled()
    evidence = stack.evidence()["prune"]
    assert evidence["parameters_removed"] == sum(p.numel() for p in whole.parameters()) - sum(
        p.numel() for p in model.parameters()
    )
    assert evidence.get("layers_loss") == (None if by == "every_other" else -11.0)
    # A resumed run knows that both are done.
    _, again = built(config, whole, *words)
    again.load_state_dict(stack.state_dict())
    assert list(again.rewire(model, 1.0, calibration)) == []


def test_a_language_model_has_one_stack_to_choose_from():
    config = compose(
        [
            "model.family=lm",
            "dataset.task=lm",
            *MODEL[:3],
            "model.encoder_layers=0",
            "model.decoder_layers=3",
            "dataset.metrics=[]",
        ]
    )
    model = Transformer(Architecture.from_config(config.model, 30), config.model)
    initialise(model, 1)
    asked = PruneSettings(sparsity=0)
    asked.structure.decoder_layers, asked.structure.layers_by = 1, "loss"
    stack = Stack([Prune(asked)], config)
    blocks = list(model.decoder.blocks)
    calibration = Calibration(model, None, lambda: 1.0 if blocks[1] in list(model.decoder.blocks) else 2.0)
    before = blocks[1].ffn.up.weight.clone()
    for rewiring in stack.rewire(model, 0.3, calibration):
        rewiring.apply(model)
    assert torch.equal(model.decoder.blocks[0].ffn.up.weight, before)
    assert isinstance(model.decoder.blocks, nn.ModuleList)


@pytest.mark.parametrize("word", ["structure.layers_by=loss", "structure.layers_at=end"])
def test_settings_of_layers_that_all_stay_are_refused(config, whole, word):
    with pytest.raises(UserError, match=f"{word} is about layers that go"):
        built(config, whole, "structure.ffn=0.5", word)
