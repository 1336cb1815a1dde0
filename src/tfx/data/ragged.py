"""Sequences of different lengths in one array, and arrays that are written piece by piece."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any, BinaryIO, Protocol

import numpy as np

# Sequences whose values are looked at together.
_AT_ONCE = 1 << 16


@dataclass
class Ragged:
    """Sequences of different lengths in one array: sequence i is ``values[starts[i] : ends[i]]``."""

    values: np.ndarray
    starts: np.ndarray
    ends: np.ndarray

    def __len__(self) -> int:
        return len(self.starts)

    def __getitem__(self, index: int) -> np.ndarray:
        return self.values[self.starts[index] : self.ends[index]]

    @property
    def lengths(self) -> np.ndarray:
        """Length of each sequence."""
        return np.asarray(self.ends - self.starts)

    @classmethod
    def from_offsets(cls, values: np.ndarray, offsets: np.ndarray) -> Ragged:
        """Sequence i goes from ``offsets[i]`` to ``offsets[i + 1]``."""
        return cls(values, offsets[:-1], offsets[1:])

    @classmethod
    def from_lists(cls, sequences: Sequence[Sequence[int]], dtype: Any) -> Ragged:
        """Concatenates lists of ids."""
        offsets = offsets_of([len(sequence) for sequence in sequences])
        values = np.fromiter(chain.from_iterable(sequences), dtype=dtype, count=int(offsets[-1]))
        return cls.from_offsets(values, offsets)

    def take(self, rows: np.ndarray, longest: int | None = None) -> Ragged:
        """The given sequences, each cut to ``longest``, in the same array."""
        starts, ends = self.starts[rows], self.ends[rows]
        return Ragged(self.values, starts, ends if longest is None else np.minimum(ends, starts + longest))

    def between(self, first: int, last: int) -> Ragged:
        """The sequences from ``first`` up to ``last``, exclusive."""
        return Ragged(self.values, self.starts[first:last], self.ends[first:last])

    def pieces(self) -> Iterator[np.ndarray]:
        """The values of all sequences in arrays of many sequences each."""
        for first in range(0, len(self), _AT_ONCE):
            starts, ends = self.starts[first : first + _AT_ONCE], self.ends[first : first + _AT_ONCE]
            if np.array_equal(starts[1:], ends[:-1]):
                yield self.values[starts[0] : ends[-1]]
                continue
            offsets = offsets_of(ends - starts)
            yield self.values[np.repeat(starts - offsets[:-1], ends - starts) + np.arange(offsets[-1])]


def offsets_of(lengths: Any) -> np.ndarray:
    """Where sequences of these lengths begin in one array, and where the last one ends."""
    return np.concatenate([np.zeros(1, dtype=np.int64), np.cumsum(lengths, dtype=np.int64)])


class Arrays(Protocol):
    """Arrays of one dimension that grow; the first piece of each decides its type."""

    def append(self, name: str, values: np.ndarray) -> None:
        """Adds values to the end of an array, which begins empty."""


class ArrayLists:
    """Arrays in memory."""

    def __init__(self) -> None:
        self._pieces: dict[str, list[np.ndarray]] = {}

    def append(self, name: str, values: np.ndarray) -> None:
        """Adds values to the end of an array, which begins empty."""
        self._pieces.setdefault(name, []).append(values)

    def close(self) -> dict[str, np.ndarray]:
        """The arrays."""
        return {name: np.concatenate(pieces, dtype=pieces[0].dtype) for name, pieces in self._pieces.items()}


class ArrayFiles:
    """Arrays in a folder of .npy files."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._files: dict[str, BinaryIO] = {}
        self._types: dict[str, np.dtype[Any]] = {}
        self._lengths: dict[str, int] = {}

    def append(self, name: str, values: np.ndarray) -> None:
        """Adds values to the end of an array, which begins empty."""
        if name not in self._files:
            self._files[name], self._types[name] = open(self.folder / f"{name}.npy", "wb"), values.dtype
            self._lengths[name] = 0
            self._write_header(name)
        self._files[name].write(np.ascontiguousarray(values, dtype=self._types[name]).data)
        self._lengths[name] += len(values)

    def close(self) -> dict[str, list[int]]:
        """Completes the files; returns the shape of each array."""
        for name, file in self._files.items():
            file.seek(0)
            self._write_header(name)
            file.close()
        return {name: [length] for name, length in self._lengths.items()}

    def _write_header(self, name: str) -> None:
        # numpy leaves room in the header for the length to grow, so that it can be written again at the end.
        facts = {"descr": self._types[name].str, "fortran_order": False, "shape": (self._lengths[name],)}
        np.lib.format.write_array_header_1_0(self._files[name], facts)
