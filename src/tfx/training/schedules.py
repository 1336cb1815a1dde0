"""Learning-rate schedules, as a factor of the peak over progress (the fraction of the budget that is spent)."""

from __future__ import annotations

import math

from tfx.config.schema import ScheduleConfig


def schedule_factor(config: ScheduleConfig, progress: float) -> float:
    """The factor in [0, 1] at ``progress`` in [0, 1]: a linear warm-up from 0, then the schedule's shape.

    ``constant`` stays at the peak. ``inverse_sqrt`` is Vaswani 2017, equation 3: it falls as the square root
    of warm-up over progress, does not reach zero, and is constant without a warm-up. The others reach
    ``final`` at progress 1; ``wsd`` (Hu 2024, arXiv 2404.06395) stays at the peak until its linear decay,
    which a long warm-up shortens.
    """
    progress = min(1.0, max(0.0, progress))
    if progress < config.warmup:
        return progress / config.warmup
    if config.name == "constant":
        return 1.0
    if config.name == "inverse_sqrt":
        return math.sqrt(config.warmup / progress) if config.warmup > 0 else 1.0
    if config.name == "wsd":
        span = min(config.decay, 1.0 - config.warmup)
        left = min(1.0, (1.0 - progress) / span) if span > 0 else 0.0
        return config.final + (1.0 - config.final) * left
    left = (1.0 - progress) / (1.0 - config.warmup) if config.warmup < 1 else 0.0
    if config.name == "cosine":
        left = 0.5 * (1.0 - math.cos(math.pi * left))
    elif config.name == "polynomial":
        left = left**config.power
    return config.final + (1.0 - config.final) * left
