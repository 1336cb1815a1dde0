"""Evaluation with too little device memory: the same work in smaller batches."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import TypeVar

import torch

Result = TypeVar("Result")


def in_memory(batch_tokens: int, work: Callable[[int], Result]) -> Result:
    """The result of ``work(batch_tokens)``; halves the tokens each time the device runs out of memory.

    Warns each time; raises `torch.OutOfMemoryError` if a single token does not fit.
    """
    while True:
        try:
            return work(batch_tokens)
        except torch.OutOfMemoryError:
            if batch_tokens == 1:
                raise
        # Outside of the handler, which would keep the failed batch alive.
        batch_tokens = max(1, batch_tokens // 2)
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        warnings.warn(f"out of memory: evaluating in batches of {batch_tokens:,} tokens", stacklevel=2)
