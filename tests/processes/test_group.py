"""What an error in a message between processes is taken for: the loss of another one, or a failure of this one."""

import os
import signal
import subprocess
import sys

import pytest
import torch
from torch import distributed

from tfx.processes.failure import FAILURE, Failure, LostProcessError
from tfx.processes.group import _PROCESS, _numbering, _Several
from tfx.processes.place import Place
from tfx.system.signals import StoppedBySignal, leave_signals, leaving_on_signals

OTHERS = Failure(1, "error", "ValueError: a broken disk", "", 1)


class Connected(_Several):
    """The second of two processes, whose messages fail, after what the other one has said."""

    def __init__(self, word):
        self.place, self._word = Place(1, 2, 1, 2, "127.0.0.1", 1), word

    def _last_word(self):
        return self._word


class Beside(_Several):
    """The first of two processes on this machine, or ``elsewhere``; the other one has this number."""

    def __init__(self, number, elsewhere=""):
        self.place, self._store = Place(0, 2, 0, 2, "127.0.0.1", 1), distributed.HashStore()
        self._store.set(self._key(_PROCESS, 1), f"{elsewhere or _numbering()} {number}")


@pytest.fixture
def handlers():
    """Puts back what a process that has failed ignores."""
    before = {number: signal.getsignal(number) for number in leave_signals()}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


def fail_with(error, monkeypatch):
    def fails(*_, **__):
        raise error

    monkeypatch.setattr(distributed, "all_reduce", fails)


@pytest.mark.parametrize(
    "error",
    [
        torch.AcceleratorError("CUDA error: an illegal memory access was encountered"),
        RuntimeError("CUDA error: device-side assert triggered"),
        distributed.DistBackendError("NCCL error: unhandled cuda error, Last error: Cuda failure 'an illegal access'"),
        torch.OutOfMemoryError("CUDA out of memory"),
    ],
)
def test_an_error_of_its_own_gpu_is_no_loss_of_another_process(error, monkeypatch):
    fail_with(error, monkeypatch)
    for message in (lambda group: group.any(True), lambda group: group.add_up([torch.ones(2)])):
        with pytest.raises(RuntimeError) as raised:
            message(Connected(None))
        assert raised.value is error


def test_one_that_follows_from_the_failure_of_another_process_tells_that(monkeypatch):
    fail_with(torch.AcceleratorError("CUDA error: unspecified launch failure"), monkeypatch)
    with pytest.raises(LostProcessError, match="process 1 failed: ValueError: a broken disk"):
        Connected(OTHERS).any(True)


@pytest.mark.parametrize("words", ["Connection closed by peer [127.0.0.1]:9", "NCCL error: ncclRemoteError"])
def test_a_broken_connection_is_the_loss_of_another_process(words, monkeypatch):
    fail_with(RuntimeError(words), monkeypatch)
    with pytest.raises(LostProcessError, match="ended without a word"):
        Connected(None).any(True)


def close_files_while_the_launcher_ends_the_others():
    try:
        Connected(None).any(True)
    finally:
        os.kill(os.getpid(), signal.SIGTERM)


def test_a_signal_that_follows_a_loss_does_not_replace_it(handlers, monkeypatch):
    fail_with(RuntimeError("Connection closed by peer [127.0.0.1]:9"), monkeypatch)
    with pytest.raises(LostProcessError, match="ended without a word"), leaving_on_signals(once=True):
        close_files_while_the_launcher_ends_the_others()


@pytest.mark.skipif(sys.platform != "linux", reason="numbers of processes are compared on Linux")
def test_a_signal_that_comes_before_the_loss_is_heard_of_tells_the_loss(handlers):
    ended = subprocess.Popen(["true"])
    ended.wait()
    stopped = StoppedBySignal(signal.SIGTERM)
    with leaving_on_signals(once=True):
        assert isinstance(Beside(ended.pid).cause(stopped), LostProcessError)
    for there in (Beside(os.getpid()), Beside(1), Beside(ended.pid, elsewhere="another machine")):
        with leaving_on_signals(once=True):
            assert there.cause(stopped) is stopped
    with leaving_on_signals(once=True):
        told = Beside(ended.pid)
        Failure.of(stopped, 1).tell(told._store, told._key(FAILURE))
        assert isinstance(told.cause(stopped), StoppedBySignal)
