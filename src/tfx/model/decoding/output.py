"""One output of a decoding."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field


@dataclass
class Output:
    """Tokens without begin and end, and how likely the search found them.

    ``log_probs`` has the log-probability of each token, and that of the end token if the output ended. The rules of the
    decoding are part of it: what they forbid has none, and a forced token has 0. ``score`` is the sum, normalised by
    length. Both are empty unless they were asked for.
    """

    tokens: list[int]
    score: float | None = None
    log_probs: list[float] = field(default_factory=list)


def length_penalty(length: int, alpha: float) -> float:
    """((5 + length) / 6)^alpha (Wu 2016, arXiv 1609.08144, equation 14)."""
    return float(((5.0 + length) / 6.0) ** alpha)


def scored(tokens: list[int], log_probs: Sequence[float], alpha: float) -> Output:
    """An output with the score of a search with this length penalty."""
    return Output(tokens, sum(log_probs) / length_penalty(len(log_probs), alpha), list(log_probs))
