"""`scripts/bench_train.py`: its tables, its peers' settings, and real trainings of its worker and of nanoGPT's loop."""

import importlib
import json
import sys
from argparse import Namespace
from pathlib import Path

import pytest
import torch

from tfx.config.compose import compose
from tfx.errors import UserError

SCRIPTS = Path(__file__).parents[2] / "scripts"
SMALL_LM = ["model=gpt_nano", "model.width=16", "model.heads=2", "model.ffn_width=64", "model.decoder_layers=1"]
SMALL_LM += ["model.context=16", "dataset=tinyshakespeare", "dataset.batch_tokens=64", "trainer.device=cpu"]


@pytest.fixture(scope="module")
def load():
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(SCRIPTS))
        yield importlib.import_module


@pytest.fixture(scope="module")
def bench(load):
    return load("bench_train")


@pytest.fixture(scope="module")
def peers(load):
    return load("peers")


@pytest.fixture
def characters(tmp_path):
    """A folder with a text of characters."""
    (tmp_path / "input.txt").write_text("To be, or not to be: that is the question.\n" * 60)
    return tmp_path


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


def test_a_python_without_the_peer_is_an_error_that_says_how_to_get_it(peers, tmp_path):
    with pytest.raises(UserError, match="does not run"):
        peers.require_transformers(str(tmp_path / "python"))
    bare = tmp_path / "bare"
    bare.write_text("#!/bin/sh\nexit 1\n")
    bare.chmod(0o755)
    with pytest.raises(UserError, match="pip install torch transformers accelerate"):
        peers.require_transformers(str(bare))


def test_the_neighbour_computes_only_meanwhile(bench, monkeypatch):
    started = []
    real = bench.subprocess.Popen
    monkeypatch.setattr(bench.subprocess, "Popen", lambda *args: started.append(real(*args)) or started[0])
    assert bench.beside_a_neighbour(lambda: started[0].poll()) is None
    assert started[0].poll() is not None


def test_the_worker_counts_what_follows_the_warm_up(load, tmp_path, monkeypatch, capsys):
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


@pytest.mark.parametrize(("name", "millions"), [("gpt_nano", 0.8), ("gpt_baby", 10.65)])
def test_the_peer_for_language_models_is_nanogpts(load, peers, characters, name, millions):
    """Its program prints these numbers of parameters, without the positions, for its 65 characters."""
    nanogpt = load("peer_nanogpt")
    config = compose([f"model={name}", "dataset=tinyshakespeare", f"dataset.path={characters}"])
    data = load("bench_train").prepare_data(config.dataset, config.model.context)
    task = peers.nanogpt_task(config, data, characters)
    settings = nanogpt.Settings(**task["settings"])
    assert name != "gpt_nano" or settings == nanogpt.Settings()
    model = nanogpt.Model(65, settings).eval()
    count = sum(parameter.numel() for parameter in model.parameters()) - model.positions.weight.numel()
    assert round(count / 1e6, 2) == millions
    ids = torch.randint(65, (2, settings.block))
    later = ids.clone()
    later[:, 40:] = 0
    torch.testing.assert_close(model(ids)[:, :40], model(later)[:, :40])


def test_the_learning_rate_of_nanogpt_warms_up_and_falls(load):
    nanogpt = load("peer_nanogpt")
    for steps, middle in ((2000, 1050), (5000, 2550)):
        rates = [nanogpt.learning_rate(step, steps) for step in (0, 100, middle, steps - 1)]
        assert rates == pytest.approx([1e-3 / 101, 1e-3, 5.5e-4, 1e-4], rel=1e-3)


def test_nanogpts_loop_learns_ends_at_its_loss_and_counts_what_follows_the_warm_up(load, peers, characters):
    nanogpt = load("peer_nanogpt")
    config = compose([*SMALL_LM, f"dataset.path={characters}", "dataset.tokenizer.kind=char"])
    data = load("bench_train").prepare_data(config.dataset, config.model.context)
    task = peers.nanogpt_task(config, data, characters)
    short = {**task["settings"], "steps": 7}
    found = nanogpt.train({**task, "settings": short, "warm": 3})
    assert found["tokens"] == 4 * 4 * 16
    assert (found["seconds_to_loss"], found["loss"]) == (None, None)
    found = nanogpt.train({**task, "settings": {**short, "steps": 2000}, "loss": 2.5})
    assert found["loss"] <= 2.5
    assert 0 < found["seconds_to_loss"] == found["seconds"]
    assert found["tokens"] < 2000 * 64
    found = nanogpt.train({**task, "settings": {**short, "look": 2}, "loss": 0.1})
    assert found["seconds_to_loss"] is None
    assert found["loss"] > 2.5


def test_a_model_that_nanogpt_has_not_is_refused(peers):
    config = compose([*SMALL_LM[:1], *SMALL_LM[6:], "model.positions=rotary", "model.ffn_width=100"])
    with pytest.raises(UserError, match=r"no model.positions=rotary, model.ffn_width=100: name gpt_nano"):
        peers.require_nanogpt(config.model)


def test_language_models_are_measured_against_nanogpt_and_labels_against_nobody(bench, characters, monkeypatch):
    tasks = []
    monkeypatch.setattr(bench, "run", lambda script, task, *more, **named: tasks.append((script, task)))
    options = Namespace(part="peers", warm=2, steps=3, threads=1, peer_python=None)
    words = [*SMALL_LM, f"dataset.path={characters}", "dataset.tokenizer.kind=char"]
    arms = bench.peers(options, words, characters)
    assert list(arms) == ["nanoGPT's settings", "tfx", "tfx, Muon in blocks", "tfx, AdamW"]
    for measure in arms.values():
        measure()
    (peer, theirs), (tfx, ours), *_ = tasks
    assert (peer, tfx) == ("peer_nanogpt.py", "train_worker.py")
    sizes = {"layers": 1, "heads": 2, "width": 16, "block": 16, "rows": 4, "dropout": 0.0, "bias": False, "steps": 5}
    assert theirs["settings"] == sizes
    assert (theirs["warm"], theirs["threads"], theirs["device"]) == (2, 1, "cpu")
    assert "trainer.budget.steps=5" in ours["overrides"]
    with pytest.raises(UserError, match="a peer for text to text and for language models"):
        bench.peers(options, ["dataset=kinds", "model=encoder_tiny", "dataset.limit.train=50"], characters)
