"""Evaluation on a device that has too little memory for its batches: the same work in smaller ones."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import TypeVar

import torch

Result = TypeVar("Result")


def in_memory(batch_tokens: int, work: Callable[[int], Result]) -> Result:
    """``work(batch_tokens)``, with half as many tokens as often as the device runs out of memory.

    Warns where it does; raises `torch.OutOfMemoryError` where a single token does not fit.
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
