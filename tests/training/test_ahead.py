"""Batches that a thread makes ahead: the same ones, with the same states, errors where they belong, no thread left."""

import json
import threading
from itertools import islice

import pytest
import torch

from tfx.cli import main
from tfx.config.compose import compose
from tfx.config.schema import DatasetConfig, TokenizerConfig, TrainerConfig
from tfx.errors import UserError
from tfx.run.setup import Setup
from tfx.system import signals
from tfx.tasks.batches import TrainingBatches, training_batches
from tfx.tasks.prepare import prepare_data
from tfx.training import loop
from tfx.training.ahead import Ahead, made_ahead
from tfx.training.stability import UnstableError

CPU = torch.device("cpu")
TINY = [
    *("model.width=16", "model.heads=2", "model.ffn_width=16", "model.encoder_layers=1", "model.decoder_layers=1"),
    *("dataset.limit.train=60", "dataset.limit.valid=5", "dataset.limit.test=5", "dataset.batch_tokens=128"),
    *("trainer.budget.steps=6", "trainer.save.every_steps=2", "evaluation.latency_inputs=1", "evaluation=greedy"),
]


def threads() -> list[str]:
    return [thread.name for thread in threading.enumerate() if thread.name.startswith("tfx-batches")]


@pytest.fixture(params=[False, True], ids=["prepared", "streamed"])
def make(request, tmp_path, monkeypatch):
    """Makes the batches of one data set, from a state on; a streamed one is read in buffers of less than a pass."""
    monkeypatch.setenv("TFX_CACHE", str(tmp_path / "cache"))
    for name, count in (("train", 40), ("valid", 3)):
        rows = [{"source": f"{i * i % 31} {'x' * (i % 7)}", "target": f"{i}"} for i in range(count)]
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    config = DatasetConfig(path=str(tmp_path), format="json", tokenizer=TokenizerConfig(kind="char"), buffer=15)
    config.streaming = request.param
    data = prepare_data(config, context=32)

    def made(start: int = 0, state=None) -> TrainingBatches:
        options = {"batch_tokens": 60, "context": 32, "seed": 3, "start": start, "state": state}
        return training_batches(data.splits["train"], data.tokenizer, **options)

    return made


def same(first, second) -> bool:
    return torch.equal(first.source_BS, second.source_BS) and torch.equal(first.target_out_BT, second.target_out_BT)


def test_batches_states_and_notes_are_those_of_the_batches_taken(make):
    plain, ahead = make(), Ahead(make(), CPU)
    assert ahead.state_dict() == plain.state_dict()
    for _ in range(40):
        assert same(next(plain), next(ahead))
        assert (ahead.state_dict(), ahead.notes(), ahead.shares()) == (
            plain.state_dict(),
            plain.notes(),
            plain.shares(),
        )
    ahead.close()


def test_it_goes_on_from_the_state_of_any_batch(make):
    whole = list(islice(make(), 30))
    ahead = Ahead(make(), CPU)
    for taken in range(1, 25):
        next(ahead)
        again = Ahead(make(taken, json.loads(json.dumps(ahead.state_dict()))), CPU)
        assert all(same(batch, next(again)) for batch in whole[taken : taken + 5])
        again.close()
    ahead.close()


def test_one_batch_is_made_before_it_is_asked_for_and_no_more(make):
    made, batches = [], make()
    ready = threading.Semaphore(0)

    class Counted(TrainingBatches):
        def __next__(self):
            made.append(threading.current_thread().name)
            ready.release()
            return next(batches)

        def __init__(self):
            self.state_dict, self.notes, self.shares = batches.state_dict, batches.notes, batches.shares

    ahead = Ahead(Counted(), CPU)
    assert made == []
    for count in (1, 2, 3):
        next(ahead)
        for _ in range(1 if count > 1 else 2):
            assert ready.acquire(timeout=10)
        assert len(made) == count + 1
    assert all(name.startswith("tfx-batches") for name in made)
    ahead.close()
    assert threads() == []


def test_an_error_comes_where_its_batch_is_asked_for(make):
    batches, count = make(), 0

    class Broken(TrainingBatches):
        def __next__(self):
            nonlocal count
            count += 1
            if count == 3:
                raise UserError("row 7 is broken")
            return next(batches)

        def __init__(self):
            self.state_dict, self.notes, self.shares = batches.state_dict, batches.notes, batches.shares

    ahead = Ahead(Broken(), CPU)
    next(ahead), next(ahead)
    for _ in range(2):
        with pytest.raises(UserError, match="row 7 is broken"):
            next(ahead)
    ahead.close()


@pytest.mark.parametrize(("choice", "device", "is_ahead"), [
    ("auto", "cpu", False), ("auto", "cuda", True), ("on", "cpu", True), ("off", "cuda", False)
])  # fmt: skip
def test_it_is_the_default_on_a_gpu_alone(make, choice, device, is_ahead):
    found = made_ahead(make(), TrainerConfig(prefetch=choice), torch.device(device))
    assert isinstance(found, Ahead) == is_ahead
    found.close()


def test_a_run_has_the_same_bits_with_and_without(here):
    for choice in ("on", "off"):
        assert main(["train", *TINY, f"trainer.prefetch={choice}", f"hydra.run.dir={choice}"]) == 0
    assert threads() == []
    states = [sorted((here / choice / "state").glob("step-*")) for choice in ("on", "off")]
    assert [path.name for path in states[0]] == [path.name for path in states[1]] != []
    files = [(here / choice / "model.safetensors").read_bytes() for choice in ("on", "off")]
    assert files[0] == files[1]


@pytest.mark.parametrize("end", [UnstableError("diverged"), signals.StoppedBySignal(15), KeyboardInterrupt()])
def test_no_thread_is_left_however_a_training_ends(here, monkeypatch, end):
    parts = Setup(compose([*TINY, "trainer.prefetch=on"])).prepare({})
    trainer = loop.Trainer(parts.config, parts.model, parts.data, parts.device, loop.Observer(), parts.stack)
    taken = []

    def take(batches, *rest):
        taken.append(threads())
        raise end

    monkeypatch.setattr(trainer.stepper, "take", take)
    with pytest.raises(type(end)):
        trainer.train()
    assert len(taken[0]) == 1
    assert threads() == []
