"""How a process of a run ends: what it tells the others, and what is left alone once the result is there."""

from __future__ import annotations

import os
import signal
from dataclasses import replace
from types import SimpleNamespace

import pytest

from tfx.cli import main
from tfx.config.compose import compose
from tfx.processes.failure import Failure, LostProcessError
from tfx.processes.group import ALONE, Group
from tfx.processes.place import NO_LAUNCHER
from tfx.record.directory import RunDirectory
from tfx.record.summary import COMPLETED, Facts, Summary
from tfx.run import life
from tfx.run.launch import ReportedError
from tfx.run.train import train
from tfx.system.signals import StoppedBySignal, leave_signals, leaving_on_signals

TINY = [
    *("model=seq2seq_tiny", "model.width=16", "model.heads=2", "model.ffn_width=32", "dataset.tokenizer.kind=char"),
    *("dataset.limit.train=20", "dataset.limit.valid=5", "dataset.limit.test=5", "evaluation.latency_inputs=1"),
    *("trainer.device=cpu", "trainer.budget.steps=2", "trainer.save.every_steps=1"),
]
FACTS = Facts(1, "lm", None, [], "gpt_nano", "tinyshakespeare", [], [], 1, "loss")


class Told(Group):
    """A first process, or another one, that remembers what it tells; its last meeting ends as ``leaving`` says."""

    def __init__(self, *, is_first=True, leaving=None, folder=None):
        super().__init__(replace(NO_LAUNCHER, rank=0 if is_first else 1, size=2))
        self.words, self._leaving, self._folder = [], leaving, folder

    def cause(self, error):
        return error

    def fail(self, failure):
        self.words.append(failure)

    def leave(self):
        if self._leaving is not None:
            raise self._leaving

    def began(self):
        return self._folder

    def first(self, value):
        return value


@pytest.mark.parametrize(
    ("error", "word"),
    [
        (LostProcessError(None), None),
        (LostProcessError(Failure(1, "error", "no space", "", 1)), "process 1 failed: no space"),
        (ValueError("wrong"), "ValueError: wrong"),
    ],
)
def test_that_another_process_was_killed_is_nobodys_last_word(error, word):
    group = Told()
    with pytest.raises(type(error)), life._telling(group):
        raise error
    (told,) = group.words
    assert (told is None) == (word is None)
    assert word is None or word in told.message


def test_a_process_that_is_lost_after_the_end_does_not_fail_a_complete_run(capsys):
    with life._telling(Told(leaving=LostProcessError(None))):
        pass
    assert "the run is complete; after that another process" in capsys.readouterr().err
    with pytest.raises(ReportedError), life._telling(Told(is_first=False, leaving=LostProcessError(None))):
        pass


@pytest.mark.parametrize(
    "error",
    [
        LostProcessError(Failure(1, "user", "its data differ", "", 2)),
        LostProcessError(None),
        StoppedBySignal(signal.SIGTERM),
    ],
)
def test_where_another_process_ends_before_the_run_lives_nothing_is_left(error, here, monkeypatch):
    group = Told()

    def first(_):
        assert (here / "run").is_dir()
        raise error

    monkeypatch.setattr(group, "first", first)
    monkeypatch.setattr(life, "join", lambda: group)
    config = compose(["model=seq2seq_tiny", "dataset=normalize", "trainer.budget.steps=2", "trainer.device=cpu"])
    with pytest.raises(type(error)):
        life.train(config, [], here / "run")
    assert not (here / "run").exists()


def test_a_complete_run_is_not_begun_again_by_processes_that_start_again(tmp_path, monkeypatch):
    run = RunDirectory(tmp_path)
    run.config.write_text("seed: 1\n")
    run.summary.touch()
    monkeypatch.setattr(RunDirectory, "read_summary", lambda _: Summary(COMPLETED, FACTS))
    monkeypatch.setattr(life, "join", lambda: Told(folder=str(tmp_path)))
    monkeypatch.setattr(life, "resume", lambda *_: pytest.fail("it resumes"))
    found = life.begin(None, [], tmp_path)
    assert found is not None
    assert found.status == COMPLETED


def train_and_fail(group):
    """A training that fails, and a signal that comes while its files are closed."""

    def fails():
        raise OSError("no space")

    recorder = SimpleNamespace(
        console=SimpleNamespace(training_started=lambda: None, training_ended=lambda: None),
        close=lambda: os.kill(os.getpid(), signal.SIGTERM),
    )
    with leaving_on_signals(once=group.size > 1):
        train(SimpleNamespace(train=fails, group=group), recorder)


def test_a_signal_while_the_files_are_closed_does_not_replace_the_failure_of_one_of_several_processes():
    before = {number: signal.getsignal(number) for number in leave_signals()}
    try:
        with pytest.raises(OSError, match="no space"):
            train_and_fail(Told())
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    with pytest.raises(StoppedBySignal):
        train_and_fail(ALONE)


def test_a_signal_after_the_run_is_complete_says_so(here, monkeypatch, capfd):
    """While Python frees what a run held, an error of a handler of signals is printed, and lost."""
    defer = life.defer_signals

    def complete():
        defer()
        os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr(life, "defer_signals", complete)
    run = RunDirectory(here / "run")
    assert main(["train", *TINY, f"hydra.run.dir={run.path}"]) == 143
    assert run.read_summary().status == COMPLETED
    assert capfd.readouterr().err.endswith("tfx: stopped by SIGTERM after the run was complete\n")


@pytest.mark.parametrize(("is_gone", "why"), [(False, "stopped by SIGTERM"), (True, "the tfx process that started")])
def test_a_stop_before_the_run_began_says_whether_the_launcher_was_killed(monkeypatch, capsys, is_gone, why):
    monkeypatch.setattr(life, "launcher_is_gone", lambda: is_gone)

    def stopped():
        raise StoppedBySignal(signal.SIGTERM)

    assert life.status_of(stopped) == (143, None)
    said = capsys.readouterr().err
    assert said.startswith(f"tfx: {why}")
    assert said.endswith("before training began: nothing new was saved\n")


def test_a_stop_that_was_told_stays_one_where_another_process_is_gone(monkeypatch, capsys):
    group = Told()
    group.cause = lambda error: LostProcessError(None)
    monkeypatch.setattr(life, "join", lambda: group)

    def stopped():
        error = StoppedBySignal(signal.SIGTERM)
        error.is_told = True
        raise error

    assert life.status_of(stopped) == (143, None)
    assert capsys.readouterr().err == ""


def test_the_end_of_a_teachers_training_defers_no_signal_of_the_run(here, monkeypatch):
    monkeypatch.setattr(life, "train", lambda *_: life.defer_signals())
    with leaving_on_signals():
        life.train_teacher(compose([]), here / "teacher")
        with pytest.raises(StoppedBySignal):
            os.kill(os.getpid(), signal.SIGTERM)


def test_a_run_that_was_killed_has_no_summary_that_could_still_describe_it(here, capsys):
    run = RunDirectory(here / "run")
    (here / "text.txt").write_text("a text of ten words, and no more than that " * 40)
    words = ["model=gpt_nano", "model.context=16", "dataset=text", "dataset.tokenizer.kind=char", *TINY[-3:]]
    assert main(["train", *words, f"dataset.path={here}/text.txt", f"hydra.run.dir={run.path}"]) == 0
    (here / "text.txt").write_text("another text " * 80)
    run.summary.unlink()
    capsys.readouterr()
    assert main(["resume", str(run.path)]) == 2
    assert "still describes" not in capsys.readouterr().err
