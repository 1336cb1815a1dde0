"""`scripts/bench_train.py`: its tables, its peers' settings, and one real training of its worker."""

import importlib.util
import json
import sys
from pathlib import Path

import pytest
import torch

from tfx.errors import UserError

SCRIPTS = Path(__file__).parents[2] / "scripts"


def load(name):
    spec = importlib.util.spec_from_file_location(name, SCRIPTS / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def bench():
    return load("bench_train")


def test_ratios_are_of_the_same_round(bench):
    rounds = [
        {"peer": {"tokens": 10, "seconds": 1.0}, "tfx": {"tokens": 40, "seconds": 1.0, "flops_per_token": 5.0}},
        {"peer": {"tokens": 10, "seconds": 2.0}, "tfx": {"tokens": 40, "seconds": 4.0, "flops_per_token": 5.0}},
        {"peer": {"tokens": 10, "seconds": 1.0}, "tfx": {"tokens": 40, "seconds": 0.5, "flops_per_token": 5.0}},
    ]
    peer, ours = bench.speed_rows(rounds, rate=1000.0)
    assert peer == {
        "arm": "peer",
        "tokens/s": 10.0,
        "ratio": 1.0,
        "lowest": 1.0,
        "highest": 1.0,
        "share_of_rate": pytest.approx(0.05),
    }
    assert (ours["tokens/s"], ours["ratio"], ours["lowest"], ours["highest"]) == (40.0, 4.0, 2.0, 8.0)


def test_who_never_reaches_the_loss(bench):
    """tfx is infinitely slow then; the peer needed at least all of its time."""
    rounds = [
        {
            "peer": {"seconds_to_loss": 30.0, "seconds": 40.0, "loss": 1.87},
            "tfx": {"seconds_to_loss": None, "seconds": 9.0, "loss": 1.9},
        },
        {
            "peer": {"seconds_to_loss": None, "seconds": 40.0, "loss": 1.89},
            "tfx": {"seconds_to_loss": 5.0, "seconds": 9.0, "loss": 1.8},
        },
    ]
    peer, ours = bench.shakespeare_rows(rounds)
    assert (peer["seconds to the loss"], peer["ratio"], peer["reached"]) == (35.0, 1.0, "1 of 2")
    assert (ours["seconds to the loss"], ours["reached"]) == (float("inf"), "1 of 2")
    assert (ours["lowest"], ours["highest"]) == (0.0, 8.0)


def test_a_python_without_the_peer_is_an_error_that_says_how_to_get_it(bench, tmp_path):
    with pytest.raises(UserError, match="does not run"):
        bench.check_peer(str(tmp_path / "python"))
    bare = tmp_path / "bare"
    bare.write_text("#!/bin/sh\nexit 1\n")
    bare.chmod(0o755)
    with pytest.raises(UserError, match="pip install torch transformers accelerate"):
        bench.check_peer(str(bare))


def test_the_neighbour_computes_only_meanwhile(bench, monkeypatch):
    started = []
    real = bench.subprocess.Popen
    monkeypatch.setattr(bench.subprocess, "Popen", lambda *args: started.append(real(*args)) or started[0])
    assert bench.beside_a_neighbour(lambda: started[0].poll()) is None
    assert started[0].poll() is not None


def test_the_worker_counts_what_follows_the_warm_up(tmp_path, monkeypatch, capsys):
    words = ["dataset.limit.train=200", "dataset.limit.valid=8", "trainer.device=cpu", "dataset.batch_tokens=512"]
    words += ["model.width=16", "model.heads=2", "model.encoder_layers=1", "model.decoder_layers=1"]
    words += ["trainer.budget.steps=6", "trainer.log_every=2", "trainer.validate_every=1"]
    task = tmp_path / "task.json"
    task.write_text(json.dumps({"overrides": words, "warm": 2, "loss": 100.0}))
    monkeypatch.setattr(sys, "argv", ["train_worker.py", str(task)])
    load("train_worker").main()
    found = json.loads(capsys.readouterr().out)
    assert 0 < found["tokens"] <= 4 * 512
    assert found["seconds"] > 0
    assert found["flops_per_token"] > 0
    assert found["seconds_to_loss"] >= found["seconds"]


def test_the_peer_for_language_models_is_nanogpts():
    nanogpt = load("peer_nanogpt")
    model = nanogpt.Model(65)
    # Its program prints "number of parameters: 0.80M", without the positions.
    count = sum(parameter.numel() for parameter in model.parameters()) - model.positions.weight.numel()
    assert round(count / 1e6, 2) == 0.8
    rates = [nanogpt.learning_rate(step) for step in (0, 100, 1050, 1999)]
    assert rates == pytest.approx([1e-3 / 101, 1e-3, 5.5e-4, 1e-4], rel=1e-3)
    ids = torch.randint(65, (2, 64))
    later = ids.clone()
    later[:, 40:] = 0
    torch.testing.assert_close(model(ids)[:, :40], model(later)[:, :40])
