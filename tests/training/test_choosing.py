"""Which weights are kept, and when training stops early, while techniques change what is compared."""

import numpy as np
import pytest
import torch

from tfx.config.compose import compose
from tfx.evaluation.scoring import LossScore
from tfx.run.setup import build_model, read_inputs
from tfx.techniques.calibration import Calibration
from tfx.techniques.stack import Stack
from tfx.techniques.weight_view import SeenWeights
from tfx.training import loop
from tfx.training.loop import Observer, Trainer

TINY = [
    *("model.width=16", "model.heads=2", "model.ffn_width=16", "model.encoder_layers=1", "model.decoder_layers=1"),
    *("dataset.limit.train=40", "dataset.limit.valid=5", "dataset.limit.test=5", "dataset.batch_tokens=64"),
    *("trainer.budget.steps=10", "trainer.validate_every=0.1", "trainer.keep=best", "optimizer.lr=0.01"),
]
PRUNE = ["+technique=prune", "technique.prune.start=0.2", "technique.prune.end=0.5"]


class Notes(Observer):
    def __init__(self):
        self.notes = []

    def noted(self, message):
        self.notes.append(message)


@pytest.fixture
def run(tmp_path, monkeypatch):
    """Trains with these validation losses, one a step; gives trainer, result, views by step, and notes."""
    monkeypatch.setenv("TFX_CACHE", str(tmp_path / "cache"))

    def run(losses, *overrides):
        config = compose([*TINY, *overrides])
        stack = Stack.from_config(config)
        origin, data = read_inputs(config)
        model = build_model(config, data, torch.device("cpu"), origin)
        observer = Notes()
        trainer = Trainer(config, model, data, torch.device("cpu"), observer, stack)
        views = {}

        def score(viewed, *_, **__):
            step = trainer.clock.steps
            views[step] = {name: weight.detach().clone() for name, weight in viewed.named_parameters()}
            return LossScore(None, np.asarray([losses[step - 1]]), np.asarray([1]))

        monkeypatch.setattr(loop, "score_loss", score)
        return trainer, trainer.train(), views, observer.notes

    return run


# The best of all while pruning has not ended; after that, the eighth.
LOSSES = [0.1, 0.2, 0.3, 0.4, 0.5, 3.0, 2.5, 2.0, 2.2, 2.4]


def test_the_best_weights_are_chosen_among_those_that_are_fully_pruned(run):
    trainer, result, views, notes = run(LOSSES, *PRUNE)
    assert (result.best_step, result.final_weights) == (8, "best")
    list(trainer.stack.finish(trainer.model, Calibration(trainer.model, None)))
    stored = {name: weight.half().float() for name, weight in views[8].items()}
    for name, weight in trainer.model.named_parameters():
        assert torch.equal(weight, stored[name]), name
    assert not notes


@pytest.mark.parametrize(
    ("overrides", "first"),
    [
        ([], 1),
        (["+technique=quantize", "technique.quantize.start=0.7", "technique.quantize.group=16"], 8),
        # Not aware: what is compared is never on the grid, and the last word is said on whatever is kept.
        (["+technique=quantize", "technique.quantize.aware=false", "technique.quantize.group=16"], 1),
        ([*PRUNE, "technique.prune.schedule=once"], 3),
        ([*PRUNE, "technique.prune.sparsity=0", "technique.prune.structure.ffn=0.5"], 3),
        (["+technique=[prune,quantize]", "technique.quantize.start=0.3", "technique.quantize.group=16"], 8),
    ],
    ids=["dense", "aware", "not aware", "once", "structure", "both"],
)
def test_candidates_begin_where_the_last_technique_has_its_final_form(run, overrides, first):
    # Ever worse: the best is the first that counts.
    _, result, _, _ = run([float(step) for step in range(1, 11)], *overrides)
    assert result.best_step == first


def test_early_stopping_does_not_count_what_pruning_makes_worse(run):
    rising = [float(step) for step in range(1, 11)]
    stopping = ["trainer.early_stopping.metric=loss", "trainer.early_stopping.patience=2"]
    _, result, _, _ = run(rising, *stopping)
    assert (result.steps, result.stopped_early) == (3, True)
    _, result, _, _ = run(rising, *PRUNE, *stopping)
    assert (result.steps, result.stopped_early) == (8, True)


def test_learned_scales_are_kept_with_the_best_weights(run):
    words = ["technique.quantize.start=0.2", "technique.quantize.learned_step=true", "technique.quantize.group=16"]
    losses = [9.0, 9.0, 9.0, 9.0, 1.0, 5.0, 5.0, 5.0, 5.0, 5.0]
    trainer, result, views, _ = run(losses, "+technique=quantize", *words)
    assert result.best_step == 5
    list(trainer.stack.finish(trainer.model, Calibration(trainer.model, None)))
    for name, weight in trainer.model.named_parameters():
        if weight.ndim == 2:
            assert torch.equal(weight, views[5][name]), name
            assert not torch.equal(weight, views[10][name]), name


@pytest.mark.parametrize("asked", [["trainer.keep=best"], ["trainer.keep=last", "trainer.early_stopping.metric=loss"]])
def test_where_nothing_could_be_chosen_the_log_says_so(run, asked):
    _, result, _, notes = run(LOSSES, *PRUNE, "technique.prune.end=1.0", *asked)
    assert (result.best_step, result.final_weights, result.stopped_early) == (0, "last", False)
    assert len(notes) == 1
    assert "before the stack had its final form" in notes[0]
    assert not run(LOSSES, *PRUNE, "technique.prune.end=1.0", "trainer.keep=last")[3]


def test_a_refused_step_teaches_a_rate_nothing(run, monkeypatch):
    pass_back, calls = SeenWeights.pass_back, []

    def broken(seen):
        calls.append(seen)
        if len(calls) == 5:
            seen.leaves["embedding.weight"].grad[0, 0] = float("nan")
        pass_back(seen)

    monkeypatch.setattr(SeenWeights, "pass_back", broken)
    rate = ["+technique=quantize", "technique.quantize.rate=2", "technique.quantize.start=0"]
    trainer, *_, notes = run(LOSSES, *rate, "trainer.instability.policy=skip")
    assert len(notes) == 2
    assert "examples" in notes[0]
    sensitivities = trainer.stack.state_dict()["quantize"]["sensitivities"]
    assert sensitivities.keys() == {name for name, weight in trainer.model.named_parameters() if weight.ndim == 2}
    assert all(0 < float(square.mean()) < float("inf") for square in sensitivities.values())
