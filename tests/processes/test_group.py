"""What an error in a message between processes is taken for: the loss of another one, or a failure of this one."""

import pytest
import torch
from torch import distributed

from tfx.processes.failure import Failure, LostProcessError
from tfx.processes.group import _Several
from tfx.processes.place import Place

OTHERS = Failure(1, "error", "ValueError: a broken disk", "", 1)


class Connected(_Several):
    """The second of two processes, whose messages fail, after what the other one has said."""

    def __init__(self, word):
        self.place, self._word = Place(1, 2, 1, 2, "127.0.0.1", 1), word

    def _last_word(self):
        return self._word


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
