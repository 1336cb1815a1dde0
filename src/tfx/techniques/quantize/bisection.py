"""Which step is the finest one that is cheap enough."""

from __future__ import annotations

from collections.abc import Callable

# 0.07 % of the step, about what fp16 holds.
_TOLERANCE = 2.0**-10


def finest(is_cheap: Callable[[float], bool], fine: float = -40.0, coarse: float = 40.0) -> float:
    """The logarithm to base 2 of the finest step that is cheap, between one that is not and one that is."""
    while coarse - fine > _TOLERANCE:
        middle = (fine + coarse) / 2
        fine, coarse = (fine, middle) if is_cheap(middle) else (middle, coarse)
    return coarse
