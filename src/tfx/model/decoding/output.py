"""One output of a decoding."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass
class Output:
    """An output without begin and end tokens, and its score: the log-probability, normalised by length in a beam."""

    tokens: list[int]
    score: float
