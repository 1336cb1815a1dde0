"""How a model runs for a while: for scoring, or as it stands, uncompiled."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn


@contextmanager
def scoring(model: nn.Module) -> Iterator[None]:
    """Inside, the model drops nothing out; afterwards, also after an error, it is in its mode of before."""
    was_training = model.training
    model.eval()
    try:
        yield
    finally:
        model.train(was_training)


@contextmanager
def uncompiled(model: nn.Module) -> Iterator[None]:
    """Inside, the model runs as it stands. Compiled code does not look for hooks that were added since it was made."""
    compiled, model._compiled_call_impl = model._compiled_call_impl, None
    try:
        yield
    finally:
        model._compiled_call_impl = compiled
