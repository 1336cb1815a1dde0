"""How a process of a run ends: what it tells the others, and what is left alone once the result is there."""

from __future__ import annotations

import signal
from dataclasses import replace

import pytest

from tfx.config.compose import compose
from tfx.processes.failure import Failure, LostProcessError
from tfx.processes.group import Group
from tfx.processes.place import NO_LAUNCHER
from tfx.record.directory import RunDirectory
from tfx.record.summary import COMPLETED, Facts, Summary
from tfx.run import life
from tfx.run.launch import ReportedError
from tfx.system.signals import StoppedBySignal

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
