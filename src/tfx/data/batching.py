"""Which rows form a batch, by token count: examples of similar lengths.

Lengths count begin and end tokens.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

_AT_ONCE = 1 << 16


def bucket(
    source_lengths: np.ndarray, target_lengths: np.ndarray, batch_tokens: int, order: np.ndarray
) -> list[np.ndarray]:
    """Cuts examples into batches of similar lengths, at most ``batch_tokens`` positions each, padding included.

    ``order`` breaks ties, so that another permutation gives other batches. Lengths count begin and end
    tokens. A single example longer than ``batch_tokens`` forms its own batch.
    """
    # Sorted by target; inside one target length by source, up and down in turn, so that a batch that spans
    # two target lengths does not span all source lengths.
    snake = np.where(target_lengths % 2 == 0, source_lengths, -source_lengths)
    ranked = np.lexsort((order, snake, target_lengths))
    batches: list[np.ndarray] = []
    start, longest_source, longest_target = 0, 0, 0
    for position, (source, target) in enumerate(_pairs(source_lengths, target_lengths, ranked)):
        longest_source, longest_target = max(longest_source, source), max(longest_target, target)
        if position > start and (position - start + 1) * (longest_source + longest_target) > batch_tokens:
            batches.append(ranked[start:position])
            start, longest_source, longest_target = position, source, target
    if start < len(ranked):
        batches.append(ranked[start:])
    return batches


def most_rows(lengths: np.ndarray, batch_tokens: int) -> float:
    """What the mean number of examples in a batch of `bucket` never exceeds: that of batches without padding."""
    return len(lengths) / float(np.minimum(lengths / batch_tokens, 1.0).sum())


def _pairs(sources: np.ndarray, targets: np.ndarray, ranked: np.ndarray) -> Iterator[tuple[int, int]]:
    """The lengths in this order, as Python's numbers, which loops are faster with, of some examples at a time."""
    for start in range(0, len(ranked), _AT_ONCE):
        rows = ranked[start : start + _AT_ONCE]
        yield from zip(sources[rows].tolist(), targets[rows].tolist(), strict=True)
