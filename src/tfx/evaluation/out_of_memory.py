"""Evaluation with too little device memory: the same work in smaller batches."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import TypeVar

import torch

from tfx.processes.group import ALONE, Group

Result = TypeVar("Result")


def in_memory(batch_tokens: int, work: Callable[[int], Result], group: Group = ALONE) -> Result:
    """The result of ``work(batch_tokens)``; halves the tokens each time the device runs out of memory.

    Warns each time; raises `torch.OutOfMemoryError` if a single token does not fit. All processes of a ``group`` use
    the same number: ``work`` must not exchange anything.
    """
    while True:
        result: list[Result] = []
        try:
            result.append(work(batch_tokens))
        except torch.OutOfMemoryError:
            if batch_tokens == 1:
                raise
        if not group.any(not result):
            return result[0]
        result.clear()
        # Outside of the handler, which would keep the failed batch alive.
        batch_tokens = max(1, batch_tokens // 2)
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        warnings.warn(f"out of memory: evaluating in batches of {batch_tokens:,} tokens", stacklevel=2)
