"""`dataset.batch_tokens=auto`: the number found fits, is kept, and leaves no trace in the training."""

import json

import numpy as np
import pytest
import torch
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from tfx.cli import main
from tfx.config.compose import compose
from tfx.errors import UserError
from tfx.processes.group import ALONE, Group
from tfx.processes.place import Place
from tfx.run.batch_size import _Steps, largest, with_batch_tokens
from tfx.run.setup import Setup
from tfx.training.allocations import peak_of
from tfx.training.step import Stepper

TINY = [
    *("model.width=32", "model.heads=2", "model.ffn_width=64", "model.encoder_layers=2", "model.decoder_layers=2"),
    *("dataset.limit.train=3000", "dataset.limit.valid=5", "dataset.limit.test=5", "dataset.tokenizer.kind=char"),
    *("trainer.budget.steps=3", "evaluation=greedy", "evaluation.latency_inputs=1", "trainer.precision=fp32"),
]
LM = ["model=gpt_nano", "dataset=stdlib", "model.context=64", "model.encoder_layers=0", "dataset.limit.train=null"]
LM += ["dataset.limit.valid=null", "dataset.limit.test=null"]
AUTO = "dataset.batch_tokens=auto"


@pytest.fixture(autouse=True)
def cache(tmp_path_factory, monkeypatch):
    monkeypatch.setenv("TFX_CACHE", str(tmp_path_factory.getbasetemp() / "cache"))


@settings(max_examples=200, deadline=None)
@given(limit=st.integers(0, 300_000), least=st.integers(1, 3000), most=st.integers(1, 200_000))
def test_the_largest_that_fits_is_found_without_trying_much_more(limit, least, most):
    tried = []

    def fits(size):
        tried.append(size)
        return size <= limit

    found = largest(fits, least, most)
    least = min(least, most)
    if limit < least:
        assert found == 0
        return
    assert least <= found <= min(limit, most)
    assert found == most or found + max(1, found // 16) >= min(limit, most)
    assert max(tried) <= max(2 * found, least, 1024)
    assert len(tried) < 40


def steps_of(*words) -> _Steps:
    return _Steps(Setup(compose([*TINY, *words])).prepare({}))


@pytest.mark.parametrize("words", [[], LM, ["technique=mixup", "optimizer=muon"], ["model.dropout=0.1"]], ids=str)
def test_two_small_steps_tell_what_a_large_one_takes(words):
    steps = steps_of(*words)
    needed = steps.prediction()
    for tokens in (6000, 12_000):
        batches = steps._batches(tokens)
        real = max(peak_of(lambda batch=batch: steps._take(batch), torch.device("cpu")) for batch in batches)
        assert real <= 1.1 * needed(tokens)
        assert needed(tokens) <= 1.25 * real


def test_batches_that_ask_for_the_most_are_looked_at():
    steps = steps_of()
    train = steps.parts.data.splits["train"]
    longest, widest = steps._batches(1000)
    assert longest.source_BS.shape[1] * 1.5 > max(train.source.lengths)
    assert len(widest.rows) >= max(map(len, train.epoch(1000, 64, np.random.default_rng(3)))) - 1


def test_a_gpu_grows_the_batch_until_it_runs_out(monkeypatch):
    """Or until the limit that it is given."""
    steps = steps_of()
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: None)
    whole, most = Stepper._loss, 5000

    def loss(self, batch, moment):
        if batch.positions > most:
            raise torch.OutOfMemoryError
        return whole(self, batch, moment)

    monkeypatch.setattr(Stepper, "_loss", loss)
    found = largest(lambda tokens: steps.fits(tokens, 10**12), steps.one_row, 60_000)
    assert 0.85 * most <= found <= 1.1 * most
    one_peak = peak_of(lambda: steps._take(steps._batches(1500)[0]), torch.device("cpu"))
    limited = largest(lambda tokens: steps.fits(tokens, one_peak), steps.one_row, 60_000)
    assert 700 < limited < 2000


def run(folder, *words) -> int:
    return main(["train", *TINY, *words, f"hydra.run.dir={folder}"])


def test_a_run_keeps_the_number_and_is_that_of_the_number(tmp_path, capsys):
    assert run(tmp_path / "auto", AUTO, "trainer.memory_gb=0.01", "trainer.averaging.kind=ema") == 0
    config = yaml.safe_load((tmp_path / "auto" / "config.yaml").read_text())
    number = config["dataset"]["batch_tokens"]
    assert isinstance(number, int)
    assert f"dataset.batch_tokens=auto: {number:,}, the most that fits into 0.01 GB" in capsys.readouterr().err
    assert "batch_tokens=auto" in (tmp_path / "auto" / "overrides.yaml").read_text()
    assert json.loads((tmp_path / "auto" / "summary.json").read_text())["train"]["batch_tokens"] == number
    assert run(tmp_path / "named", f"dataset.batch_tokens={number}", "trainer.averaging.kind=ema") == 0
    files = [(tmp_path / name / "model.safetensors").read_bytes() for name in ("auto", "named")]
    assert files[0] == files[1]
    assert main(["resume", str(tmp_path / "auto"), "trainer.budget.steps=4"]) == 0
    assert yaml.safe_load((tmp_path / "auto" / "config.yaml").read_text())["dataset"]["batch_tokens"] == number
    assert main(["reproduce", str(tmp_path / "named")]) == 0


def test_more_memory_gives_a_larger_batch_up_to_the_limit(tmp_path):
    found = []
    for more in (["trainer.memory_gb=0.01"], ["trainer.memory_gb=0.02"], ["dataset.batch_tokens_limit=3000"]):
        setup = Setup(compose([*TINY, AUTO, *more]))
        found.append(with_batch_tokens(setup, {}, print).dataset.batch_tokens)
    assert found[0] < found[1]
    assert found[2] == 3000


def test_copies_of_the_weights_that_a_training_holds_leave_less_for_its_batches(monkeypatch):
    size = 4 * sum(weight.numel() for weight in steps_of().parts.model.parameters())
    # Three tenths of the memory are for one copy of the weights, and 10,000 tokens take all of it.
    monkeypatch.setattr(_Steps, "prediction", lambda self: lambda tokens: tokens * size / 3000)

    def found(*more):
        setup = Setup(compose([*TINY, AUTO, f"trainer.memory_gb={10 / 3 * size / 1e9}", *more]))
        return with_batch_tokens(setup, {}, print).dataset.batch_tokens

    best, average = "trainer.keep=best", "trainer.averaging.kind=ema"
    for most, words in ((10_000, ["trainer.keep=last"]), (7000, [best]), (7000, [average]), (4000, [best, average])):
        assert most * 15 / 16 - 1 <= found(*words) <= most


class Two(Group):
    """This process's part of two, of which the other has found another number."""

    def __init__(self, other: float) -> None:
        super().__init__(Place(0, 2, 0, 2, "", 0))
        self.other, self.asked = other, 0

    def greatest(self, *numbers):
        self.asked += 1
        return [max(numbers[0], -self.other)] if self.asked == 1 else super().greatest(*numbers)


def test_processes_agree_on_the_smaller_number(monkeypatch):
    alone = Setup(compose([*TINY, AUTO, "trainer.memory_gb=0.01"]))
    own = with_batch_tokens(alone, {}, print).dataset.batch_tokens
    for other, found in ((700, 2 * 700), (10**9, 2 * own)):
        setup = Setup(alone.config, Two(other))
        assert with_batch_tokens(setup, {}, print).dataset.batch_tokens == found


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["dataset.batch_tokens=many"], "must be a number or auto"),
        (["dataset.batch_tokens=0"], "at least 1"),
        (["dataset.batch_tokens=2.5"], "batch_tokens"),
        ([AUTO, "trainer.memory_gb=0.0001"], "does not fit into 0.00 GB"),
    ],
)
def test_what_cannot_be_is_told(tmp_path, capsys, words, told):
    assert run(tmp_path / "run", *words) == 2
    assert told in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_divided_weights_need_a_number():
    words = [*TINY, AUTO, "trainer.parallel=fsdp", "optimizer=adamw", "trainer.averaging.kind=none"]
    Setup(compose(words))
    for more, group in ((["trainer.devices=2"], ALONE), ([], Two(0))):
        with pytest.raises(UserError, match="name a number"):
            Setup(compose([*words, *more]), group)


def test_a_comparison_needs_a_number(tmp_path, capsys):
    assert main(["ablate", "+technique=mixup", *TINY, AUTO, f"hydra.sweep.dir={tmp_path}"]) == 2
    assert "name a number for dataset.batch_tokens" in capsys.readouterr().err


def test_a_plan_says_that_it_is_found_later(tmp_path, capsys):
    assert run(tmp_path / "run", AUTO, "dry_run=true") == 0
    assert "as many tokens per batch as fit into memory" in "".join(capsys.readouterr())
