"""A process whose main thread waits in a call without end is ended with the reason, where another one is gone.

The call stands for the wait for a GPU: Python's lock is free meanwhile, and no handler of a signal can run.
"""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path
from threading import Event

import pytest

from tfx.processes.watch import Watch

_START = """
import ctypes, functools, os, signal, sys, time
sys.path.insert(0, {here!r})
from tfx.processes import group
from tfx.processes.ending import run_and_end
from tfx.processes.group import join
from tfx.run import life
from tfx.run.life import status_of
from tfx.system.signals import StoppedBySignal
group.Watch = functools.partial(group.Watch, seconds=0.1, patience=20, grace=5, saving=1000)
own, leaver = int(os.environ["RANK"]), int(sys.argv[1])

def wait():
    print("waits", flush=True)
    ctypes.CDLL(None).sleep(100_000)

def report(error):
    print(f"reported: {{error}}", flush=True)

def watched(leaves, stays):
    def work():
        with join().watched(report, on_devices=True):
            join().gather(None)
            (leaves if own == leaver else stays)()
    def told():
        status = status_of(work)[0]
        print("status", status)
        return status

    sys.exit(run_and_end(told))

def fails():
    raise ValueError("a broken disk")

def is_killed():
    os.kill(os.getpid(), signal.SIGKILL)

def is_stopped():
    raise StoppedBySignal(signal.SIGTERM)

def works():
    time.sleep(4)  # longer than patience and grace together
    print("worked", flush=True)

def saves():
    works()
    is_stopped()
"""


def two(words: str, leaver: int, folder: Path) -> list[tuple[int, str]]:
    """The exit status and the output of each of two processes that run these words, of which ``leaver`` ends first."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    running = []
    for rank in (0, 1):
        place = {"RANK": rank, "WORLD_SIZE": 2, "LOCAL_RANK": rank, "LOCAL_WORLD_SIZE": 2, "MASTER_PORT": port}
        running.append(
            subprocess.Popen(
                [sys.executable, "-c", _START.format(here=str(Path(__file__).parent)) + words, str(leaver)],
                env=os.environ | {name: str(value) for name, value in place.items()} | {"MASTER_ADDR": "127.0.0.1"},
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
                cwd=folder,
            )
        )
    try:
        said = [process.communicate(timeout=300)[0] for process in running]
    finally:
        for process in running:
            process.kill()
    return [(process.returncode, each) for process, each in zip(running, said, strict=True)]


@pytest.mark.parametrize("leaver", [0, 1])
def test_where_one_fails_the_other_ends_with_its_reason(leaver, tmp_path):
    found = two("watched(fails, wait)", leaver, tmp_path)
    assert found[leaver][0] == 1
    status, said = found[1 - leaver]
    assert status == 1, said
    assert said.startswith("waits\n")
    # The first process has the store: where that has gone with it, no more is known than that it ended.
    assert f"reported: process {leaver} failed: ValueError: a broken disk" in said or (
        leaver == 0 and "reported: another process of the run ended" in said
    )


def test_where_the_gpu_of_one_fails_in_a_message_the_other_ends_with_that_error(tmp_path):
    broken = """
def breaks():
    import torch
    def fails(*_):
        raise torch.AcceleratorError("CUDA error: an illegal memory access was encountered")
    torch.distributed.all_reduce = fails
    join().any(True)

watched(breaks, wait)
"""
    found = two(broken, 1, tmp_path)
    assert [status for status, _ in found] == [1, 1], found
    assert "reported: process 1 failed: AcceleratorError: CUDA error: an illegal memory access" in found[0][1]


_CLEANING = """
def asks():
    import torch
    global message
    message = torch.distributed.all_reduce(torch.ones(3), async_op=True)

def is_broken():
    raise SystemError("of tfx itself")

class Cleaned:
    def __del__(self, write=os.write):
        write(1, b"Python cleans up\\n")

cleaned = Cleaned()
"""


@pytest.mark.parametrize(
    ("ends", "expected"),
    [
        ("watched(works, lambda: None)", 0),
        ("watched(works, fails)", 1),
        ("watched(is_killed, wait)", 1),
        ("watched(lambda: (time.sleep(1), is_killed()), lambda: None)", 1),
        # A message that nobody else sends.
        ("watched(works, lambda: (asks(), fails()))", 1),
        ("run_and_end(lambda: (join().gather(None), is_broken()))", 1),
    ],
)
def test_one_of_several_processes_ends_before_python_cleans_up(ends, expected, tmp_path):
    """Threads of their group now and then aborted a process then, and its exit status was that of a signal."""
    status, said = two(_CLEANING + ends, 0, tmp_path)[1]
    assert status == expected, said
    assert "Python cleans up" not in said


def test_a_process_alone_ends_as_python_does():
    alone = [sys.executable, "-c", _START.format(here=str(Path(__file__).parent)) + _CLEANING + "watched(works, works)"]
    place = dict.fromkeys(("RANK", "LOCAL_RANK"), "0") | {"WORLD_SIZE": "1"}
    done = subprocess.run([*alone, "0"], env=os.environ | place, capture_output=True, text=True, timeout=120)
    assert (done.returncode, done.stdout) == (0, "worked\nstatus 0\nPython cleans up\n"), done.stderr


@pytest.mark.parametrize("leaver", [0, 1])
def test_where_one_is_killed_the_other_ends(leaver, tmp_path):
    found = two("watched(is_killed, wait)", leaver, tmp_path)
    assert found[leaver][0] == -9
    status, said = found[1 - leaver]
    assert status == 1, said
    assert said.startswith("waits\n")
    assert "reported: another process of the run ended without a word" in said


@pytest.mark.parametrize("leaver", [0, 1])
def test_where_one_ends_in_order_the_other_works_on(leaver, tmp_path):
    found = two("watched(lambda: None, works)", leaver, tmp_path)
    assert [status for status, _ in found] == [0, 0], found
    assert found[1 - leaver][1] == "worked\nstatus 0\n"


def test_after_a_signal_the_first_may_save_the_state(tmp_path):
    found = two("watched(is_stopped, saves)", 1, tmp_path)
    assert [status for status, _ in found] == [143, 143], found
    assert found[0][1].startswith("worked\n")
    assert found[0][1].endswith("status 143\n")


class Store:
    """A store in which the other process beats; ``fails`` says of which looks, from 1 on, it raises an error."""

    def __init__(self, fails):
        self._fails, self._looks, self.looked = fails, 0, Event()

    def compare_set(self, key, expected, value):
        pass

    def set(self, key, value):
        pass

    def check(self, keys):
        return False

    def multi_get(self, keys):
        self._looks += 1
        if self._looks == 30:
            self.looked.set()
        if self._fails(self._looks):
            raise RuntimeError("wait timeout")
        return [str(self._looks).encode()] * len(keys)


@pytest.mark.parametrize(
    ("fails", "ends"),
    [(lambda look: look == 3, False), (lambda look: look % 4 > 1, False), (lambda look: look >= 3, True)],
)
def test_a_store_is_lost_where_look_after_look_fails(fails, ends, monkeypatch):
    store, ended = Store(fails), Event()
    monkeypatch.setattr(Watch, "_end", lambda self, failure: ended.set())
    watch = Watch(store, lambda *words: "/".join(map(str, words)), 0, 2, None, seconds=0.005, patience=5, grace=2)
    assert store.looked.wait(60)
    watch.stop(in_order=True)
    assert ended.is_set() == ends


_RUN = """
import arms, pathlib, tfx.model.device, tfx.run.setup
from tfx.training import loop

group.Watch = functools.partial(group.Watch, patience=1000)  # what a process loads may keep Python's lock

def validates(*_, **__):
    fails() if own == leaver else wait()

loop.score_loss = validates
# Where a run asks whether its processes are to be watched.
tfx.model.device.is_asynchronous = lambda device: True
sys.exit(run_and_end(lambda: status_of(lambda: life.train(arms.compose(arms.TINY), arms.TINY, pathlib.Path("run")))[0]))
"""


def test_the_summary_and_the_log_of_a_run_say_why_it_was_ended(tmp_path, monkeypatch):
    monkeypatch.setenv("TFX_CACHE", str(tmp_path / "cache"))
    found = two(_RUN, 1, tmp_path)
    assert [status for status, _ in found] == [1, 1], found
    assert "waits" in found[0][1]
    assert "failed: LostProcessError: process 1 failed: ValueError: a broken disk" in found[0][1]
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert summary["status"] == "failed"
    assert "process 1 failed: ValueError: a broken disk" in summary["error"]
    assert "in validates" in (tmp_path / "run" / "train.log").read_text()
