from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from tfx.config.schema import AveragingConfig
from tfx.training.averaging import Averager


def walk(config, progresses, seed=1):
    """Averages random weights over the given progresses; returns model, averager and the weights of each step."""
    model = nn.Linear(3, 2)
    averager = Averager(config, model)
    generator = np.random.default_rng(seed)
    history = []
    for progress in progresses:
        values = generator.normal(size=(2, 3)).astype(np.float32)
        with torch.no_grad():
            model.weight.copy_(torch.from_numpy(values))
        history.append(values)
        averager.update(progress)
    return model, averager, history


def averaged(model, averager):
    with averager.applied():
        return model.weight.detach().numpy().copy()


@pytest.mark.parametrize("decay", [0.5, 0.9, 0.999])
def test_ema_is_the_recursion_with_its_warm_up(decay):
    model, averager, history = walk(AveragingConfig(kind="ema", decay=decay), np.linspace(0.02, 1, 50))
    expected = history[0]
    for n, values in enumerate(history[1:], start=1):
        rate = min(decay, (1 + n) / (10 + n))
        expected = rate * expected + (1 - rate) * values
    np.testing.assert_allclose(averaged(model, averager), expected, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(
    ("steps", "start", "snapshots", "taken"),
    [
        (20, 0.5, 5, [12, 14, 16, 18, 20]),
        (10, 0.8, 2, [9, 10]),
        (10, 0.8, 10, [9, 10]),  # more snapshots than steps: every step
        (10, 0.0, 1, [10]),
        (1000, 0.9, 10, list(range(910, 1001, 10))),
        (7, 0.3, 3, [4, 6, 7]),
    ],
)
def test_last_is_the_mean_of_evenly_spaced_snapshots_up_to_the_end(steps, start, snapshots, taken):
    config = AveragingConfig(kind="last", start=start, snapshots=snapshots)
    model, averager, history = walk(config, [step / steps for step in range(1, steps + 1)])
    expected = np.mean([history[step - 1] for step in taken], axis=0)
    np.testing.assert_allclose(averaged(model, averager), expected, rtol=1e-4, atol=1e-6)
    assert averager.updates == len(taken)


def test_a_long_step_past_several_snapshots_is_one_of_them():
    config = AveragingConfig(kind="last", start=0.5, snapshots=5)
    model, averager, history = walk(config, [0.3, 0.85, 0.86, 0.87, 0.9, 1.0])
    expected = np.mean([history[1], history[4], history[5]], axis=0)
    np.testing.assert_allclose(averaged(model, averager), expected, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("config", [AveragingConfig(kind="none"), AveragingConfig(kind="last", start=0.9)])
def test_without_an_average_the_weights_are_their_own(config):
    model, averager, history = walk(config, [0.1, 0.5])
    assert np.array_equal(averaged(model, averager), history[-1])
    averager.apply()
    assert np.array_equal(model.weight.detach().numpy(), history[-1])


def test_applied_gives_the_own_weights_back_also_after_an_error():
    model, averager, history = walk(AveragingConfig(kind="ema"), [0.1, 0.2, 0.3])
    seen = []

    def validate():
        with averager.applied():
            seen.append(model.weight.detach().numpy().copy())
            raise RuntimeError

    with pytest.raises(RuntimeError):
        validate()
    assert not np.array_equal(seen[0], history[-1])
    assert np.array_equal(model.weight.detach().numpy(), history[-1])


def test_apply_keeps_the_average_and_does_not_tie_it_to_later_training():
    model, averager, _ = walk(AveragingConfig(kind="ema"), [0.1, 0.2, 0.3])
    expected = averaged(model, averager)
    averager.apply()
    assert np.array_equal(model.weight.detach().numpy(), expected)
    with torch.no_grad():
        model.weight.zero_()
    assert np.array_equal(averaged(model, averager), expected)


def test_snapshots_of_what_was_the_end_are_forgotten_where_a_longer_budget_has_it_yet_to_come():
    model = nn.Linear(1, 1, bias=False)
    averager = Averager(AveragingConfig(kind="last", start=0.5, snapshots=2), model)
    with torch.no_grad():
        for value, progress in ((8.0, 0.75), (16.0, 1.0)):
            model.weight.fill_(value)
            averager.update(progress)
        averager.go_back(1.0)
        assert averager.updates == 2  # nothing changed
        averager.go_back(0.4)
        for value, progress in ((1.0, 0.75), (3.0, 1.0)):
            model.weight.fill_(value)
            averager.update(progress)
        averager.apply()
    assert float(model.weight) == 2.0
