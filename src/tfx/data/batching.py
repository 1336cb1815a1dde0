"""Which rows form a batch, by token count: examples of similar lengths.

Lengths count begin and end tokens.
"""

from __future__ import annotations

import numpy as np


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
    lengths = zip(source_lengths[ranked].tolist(), target_lengths[ranked].tolist(), strict=True)
    for position, (source, target) in enumerate(lengths):
        longest_source, longest_target = max(longest_source, source), max(longest_target, target)
        if position > start and (position - start + 1) * (longest_source + longest_target) > batch_tokens:
            batches.append(ranked[start:position])
            start, longest_source, longest_target = position, source, target
    if start < len(ranked):
        batches.append(ranked[start:])
    return batches
