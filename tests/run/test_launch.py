"""A run in several processes of this machine: what its launcher does where no process of the run can do it."""

import json
import os
import signal
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path
from unittest.mock import Mock

import pytest

from tfx.cli import main
from tfx.config.compose import compose, to_yaml
from tfx.processes import launch as launching
from tfx.processes.failure import LostProcessError
from tfx.processes.group import ALONE
from tfx.processes.launch import _what_failed
from tfx.record.directory import RunDirectory
from tfx.record.summary import Summary
from tfx.run.launch import Order, ReportedError, run_in_processes
from tfx.run.setup import Setup
from tfx.system.signals import StoppedBySignal

COMPLETE = Summary.from_dict(
    {"status": "completed", "task": "seq2seq", "dataset": "normalize", "seed": 1, "test": {"loss": 2.0}}
    | {"bytes": {"file": 7}, "train": {}}
)
RUN = ["train", "model=seq2seq_tiny", "dataset=normalize", "trainer.budget.steps=2", "trainer.devices=2"]


@pytest.fixture
def killed(here, monkeypatch):
    """Lets the processes of a run end with these statuses, after one line of its log."""

    def kill(statuses, *, begun=True, summary=None):
        def launch(arguments, count, threads, folder):
            order = json.loads(Path(arguments[-1], "order.json").read_text())
            assert order["folder"] == str(run.path)
            if begun:
                RunDirectory.create(run.path)
                run.config.write_text("seed: 1\n")
                run.log.write_text("step 1\n")
            if summary is not None:
                summary.write(run.summary)
            raise _what_failed(statuses)

        monkeypatch.setattr("tfx.run.launch.launch", launch)

    run = RunDirectory(here / "run")
    return kill, run


def test_where_the_first_process_was_killed_log_and_summary_say_so(killed, capsys):
    kill, run = killed
    kill({0: -signal.SIGKILL, 1: 1})
    assert main([*RUN, f"hydra.run.dir={run.path}"]) == 1
    why = "process 0 of the run was killed (SIGKILL)"
    summary = run.read_summary()
    assert (summary.status, summary.error) == ("failed", why)
    assert (summary.facts.dataset, summary.facts.techniques) == ("normalize", [])
    line = f"tfx: {why}: continue with `tfx resume {run.path}`\n"
    assert run.log.read_text() == f"step 1\n{line}"
    assert capsys.readouterr().err.endswith(line)


@pytest.mark.parametrize("files", [None, [], ["notes.txt"]])
def test_where_it_was_killed_before_it_began_nothing_is_left(killed, files, capsys):
    kill, run = killed
    if files is not None:  # it has made the folder, or found it there
        run.path.mkdir()
        for file in (run.lock, *(run.path / name for name in files)):
            file.touch()
    kill({0: -signal.SIGKILL, 1: 1}, begun=False)
    assert main([*RUN, f"hydra.run.dir={run.path}"]) == 1
    assert "process 0 of the run was killed (SIGKILL): nothing was saved" in capsys.readouterr().err
    assert [path.name for path in run.path.glob("*")] == (files or [])
    assert run.path.exists() == (files is not None)  # what was there before stays


@pytest.mark.parametrize(
    ("statuses", "what"),
    [
        # The one that ended first, and another one that the launcher ended then.
        ({1: -signal.SIGTERM, 0: -signal.SIGTERM}, "process 1 of the run was killed (SIGTERM)"),
        ({0: -signal.SIGTERM, 1: -signal.SIGTERM}, "process 0 of the run was killed (SIGTERM)"),
        ({1: -signal.SIGINT, 0: -signal.SIGTERM}, "process 1 of the run was killed (SIGINT)"),
    ],
)
def test_where_a_signal_ended_one_before_it_could_tell_the_launcher_does(killed, statuses, what, capsys):
    kill, run = killed
    kill(statuses, begun=False)
    assert main([*RUN, f"hydra.run.dir={run.path}"]) == 1
    assert f"{what}: nothing was saved" in capsys.readouterr().err


def test_an_interrupt_ends_a_process_that_still_loads_without_a_traceback(tmp_path):
    # What the process loads first stands for all of it.
    (tmp_path / "hydra.py").write_text("import os, signal\nos.kill(os.getpid(), signal.SIGINT)\n")
    paths = os.pathsep.join([str(tmp_path), *sys.path])
    # As a terminal starts it: in the background of a shell the tests themselves may ignore an interrupt.
    heeds = "import signal; signal.signal(signal.SIGINT, signal.default_int_handler)"
    words = [sys.executable, "-c", f"{heeds}; from tfx.cli import main; main(['worker', 'nowhere'])"]
    ended = subprocess.run(words, env=os.environ | {"PYTHONPATH": paths}, capture_output=True, text=True)
    assert (ended.returncode, ended.stdout, ended.stderr) == (-signal.SIGINT, "", "")


@pytest.mark.parametrize(
    "statuses",
    [
        {1: -signal.SIGABRT},
        {0: -signal.SIGKILL},
        # The launcher ends the first one while that is about to end.
        {1: -signal.SIGKILL, 0: -signal.SIGTERM},
    ],
)
def test_where_one_was_killed_after_the_end_the_result_stays(killed, statuses, capsys):
    kill, run = killed
    kill(statuses, summary=COMPLETE)
    assert main([*RUN, f"hydra.run.dir={run.path}"]) == 1
    assert f"its result is in {run.path}" in capsys.readouterr().err
    assert run.log.read_text() == "step 1\n"
    assert run.read_summary() == COMPLETE


def test_where_one_was_killed_that_continued_a_complete_run_it_is_said_to_be_resumed(killed, monkeypatch, capsys):
    kill, run = killed
    kill({0: -signal.SIGKILL}, begun=False)
    RunDirectory.create(run.path)
    run.config.write_text(to_yaml(compose(RUN[1:])))
    COMPLETE.write(run.summary)
    with pytest.raises(ReportedError):
        run_in_processes("resume", Setup(compose(RUN[1:]), ALONE), [], run.path, extends=True)
    assert f"continue with `tfx resume {run.path}`" in capsys.readouterr().err
    assert run.read_summary() == COMPLETE


def test_where_another_one_was_killed_before_the_run_began_one_line_says_so(here, monkeypatch, capsys):
    def lost(*_, **__):
        raise LostProcessError(None)

    monkeypatch.setattr("tfx.run.setup.Setup", lost)
    assert main([*RUN[:-1], f"hydra.run.dir={here / 'run'}"]) == 1
    assert capsys.readouterr().err == (
        "tfx: another process of the run ended without a word: it was killed, or its machine failed; this was before "
        "training began: nothing new was saved\n"
    )


def test_where_the_launcher_was_killed_the_run_says_so_and_its_folder_is_removed(here, monkeypatch):
    place, run = here / "place", RunDirectory(here / "run")
    place.mkdir()
    words = [*RUN[1:-1], *(f"dataset.limit.{split}=10" for split in ("train", "valid", "test"))]
    order = Order("train", words, str(run.path), [], extends=False, quiet=False)
    (place / "config.yaml").write_text(to_yaml(compose(words)))
    (place / "order.json").write_text(json.dumps(asdict(order)))

    def orphaned(*_):
        monkeypatch.setattr("os.getppid", lambda: 1)
        raise StoppedBySignal(signal.SIGTERM)

    monkeypatch.setenv("TFX_LAUNCHED", "1")
    monkeypatch.setattr(launching, "_launcher", None)
    monkeypatch.setattr(launching, "asks_for_signal", Mock())
    monkeypatch.setattr("os.getppid", lambda: 4711)
    monkeypatch.setattr("tfx.training.loop.Trainer.train", orphaned)
    assert main(["worker", str(place)]) == 143
    summary = run.read_summary()
    assert (summary.status, summary.error) == ("interrupted", "the tfx process that started this one was killed")
    assert not place.exists()
