"""Sequences of different lengths in one array."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any

import numpy as np


@dataclass
class Ragged:
    """Sequences of different lengths in one array: sequence i is ``values[offsets[i] : offsets[i + 1]]``."""

    values: np.ndarray
    offsets: np.ndarray

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def __getitem__(self, index: int) -> np.ndarray:
        return self.values[self.offsets[index] : self.offsets[index + 1]]

    @property
    def lengths(self) -> np.ndarray:
        """Length of each sequence."""
        return np.diff(self.offsets)

    @classmethod
    def from_lists(cls, sequences: Sequence[Sequence[int]], dtype: Any) -> Ragged:
        """Concatenates lists of ids."""
        offsets = offsets_of([len(sequence) for sequence in sequences])
        return cls(np.fromiter(chain.from_iterable(sequences), dtype=dtype, count=int(offsets[-1])), offsets)

    def take(self, rows: np.ndarray, longest: int | None = None) -> Ragged:
        """The given sequences, each cut to ``longest``."""
        lengths = self.lengths[rows]
        if longest is not None:
            lengths = np.minimum(lengths, longest)
        offsets = offsets_of(lengths)
        shifts = np.repeat(self.offsets[rows] - offsets[:-1], lengths)
        return Ragged(self.values[shifts + np.arange(offsets[-1])], offsets)


def offsets_of(lengths: Any) -> np.ndarray:
    """Where sequences of these lengths begin in one array, and where the last one ends."""
    return np.concatenate([np.zeros(1, dtype=np.int64), np.cumsum(lengths, dtype=np.int64)])
