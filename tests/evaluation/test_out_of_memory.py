"""Evaluation that runs out of memory goes on in smaller batches, and says so."""

import pytest
import torch

from tfx.evaluation.out_of_memory import in_memory


def test_the_work_is_done_in_the_largest_halving_that_fits():
    tried = []

    def work(tokens: int) -> int:
        tried.append(tokens)
        if tokens > 300:
            raise torch.OutOfMemoryError("too many")
        return tokens

    with pytest.warns(UserWarning, match="batches of 256 tokens"):
        assert in_memory(1024, work) == 256
    assert tried == [1024, 512, 256]


def test_what_never_fits_is_an_error():
    def work(tokens: int) -> int:
        raise torch.OutOfMemoryError("too many")

    with pytest.warns(UserWarning, match="out of memory"), pytest.raises(torch.OutOfMemoryError):
        in_memory(8, work)


def test_what_fits_is_done_once_without_a_word(recwarn):
    assert in_memory(7, lambda tokens: tokens) == 7
    assert not recwarn.list
