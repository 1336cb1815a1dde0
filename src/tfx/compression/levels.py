"""Levels of dependent quantizers, entropy coded by the magnitudes before them in their row.

The matrices of a file that have equally many columns are stacked, and coded column by column: the context of a level
follows from its quantizer and from the mean magnitude of its row so far. So rows with fine and coarse steps need no
tables of their own, and all rows of a column are decoded at once. Contexts are integer arithmetic, so every reader
finds the same (docs/FORMAT.md).

Shapes: R rows and C columns of a stack, T tables.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tfx.compression.entropy import Decoder, Histogram, Table, bits_per_symbol, fit_table
from tfx.compression.packing import Symbols, pack

# Means are in units of 1 / 256. A row begins as if it had so many levels of the mean that its scale lets expect.
SCALE, HEAD_START = 256, 32
# A mean belongs to the class of the last of these that it reaches: four in each octave.
CLASSES = (
    *(0, 8, 10, 11, 13, 16, 19, 23, 27, 32, 38, 45, 54, 64, 76, 91, 108, 128, 152, 181, 215, 256, 304, 362, 431),
    *(512, 609, 724, 861, 1024, 1218, 1448, 1722, 2048, 2435, 2896, 3444, 4096),
)
CONTEXTS = 2 * len(CLASSES)
MAGNITUDES = 128
_CLASS_OF = np.searchsorted(CLASSES, np.arange(CLASSES[-1] + 1), side="right").astype(np.uint8) - 1
# A matrix' mean is that of a row of exponent 0, in units of 1 / (256 * 2^16), and below this.
MEANS = 2**28
# 2^(e / 2) for e = 0 and 1, in units of 1 / 1024.
_ROOTS = np.array([1024, 1448])

Rows = NDArray[np.int64]


class Contexts:
    """The context of the next level of each row; ``mean_R`` are the means that rows begin with (`starts`)."""

    def __init__(self, mean_R: Rows) -> None:
        self._total_R = HEAD_START * mean_R
        self._count = HEAD_START
        rows = len(mean_R)
        # The quantizer, that of the columns before, and the parity of the column before.
        self._now_R, self._before_R, self._last_R, self._parity_R = (np.zeros(rows, np.uint8) for _ in range(4))

    def next(self) -> NDArray[np.uint8]:
        """The contexts (R,) of the next column."""
        mean_R = np.minimum(self._total_R // self._count, CLASSES[-1])
        return 2 * _CLASS_OF[mean_R] + self._now_R

    def add(self, magnitude_R: Symbols) -> None:
        """Goes on by a column of these magnitudes."""
        self._total_R += SCALE * magnitude_R.astype(np.int64)
        self._count += 1
        following_R = self._now_R ^ self._last_R ^ self._parity_R
        self._last_R, self._before_R, self._now_R = self._before_R, self._now_R, following_R
        self._parity_R = (magnitude_R & 1).astype(np.uint8)


@dataclass(frozen=True)
class Levels:
    """Matrices as they are coded: each piece with its table, the packed signs, the tables, and each context's table."""

    pieces: list[tuple[Symbols, Table]]
    signs: bytes
    tables: list[Table]
    choices: list[int]


def write_levels(levels: Mapping[str, NDArray[np.int16]], begins: Mapping[str, Rows], table_bits: float) -> Levels:
    """Codes matrices of signed levels below `MAGNITUDES`, by name, in the order of the file.

    ``begins`` are the means that their rows begin with. ``table_bits`` is about what a table takes besides its counts.
    """
    stacks = []
    counts = np.zeros((CONTEXTS, MAGNITUDES), np.int64)
    for names in stacks_of({name: matrix.shape for name, matrix in levels.items()}):
        magnitude_RC = np.concatenate([np.abs(levels[name]).astype(np.uint8) for name in names])
        contexts = Contexts(np.concatenate([begins[name] for name in names]))
        magnitude_CR = np.ascontiguousarray(magnitude_RC.T)
        context_CR = np.empty_like(magnitude_CR)
        for column, magnitude_R in enumerate(magnitude_CR):
            context_CR[column] = contexts.next()
            contexts.add(magnitude_R)
        stacks.append((magnitude_CR, context_CR))
        cells = context_CR.astype(np.int64) * MAGNITUDES + magnitude_CR
        counts += np.bincount(cells.ravel(), minlength=counts.size).reshape(counts.shape)
    tables, choices = _merge(counts, table_bits)
    pieces = [
        (magnitude_R[rows], tables[number])
        for magnitude_CR, context_CR in stacks
        for magnitude_R, context_R in zip(magnitude_CR, context_CR, strict=True)
        for number, rows in _by_table(np.array(choices)[context_R])
    ]
    signs = [pack((matrix[matrix != 0] < 0).astype(np.uint8), 1) for matrix in levels.values()]
    return Levels(pieces, b"".join(signs), tables, choices)


def read_magnitudes(
    shapes: Mapping[str, tuple[int, ...]],
    begins: Mapping[str, Rows],
    decoder: Decoder,
    tables: Sequence[Table],
    choices: Sequence[int],
) -> dict[str, tuple[Symbols, float]]:
    """The magnitudes (R, C) of the matrices of these shapes, by name, and the bits that they took."""
    found: dict[str, tuple[Symbols, float]] = {}
    table_of = np.array(choices, np.uint8)
    readers = {number: decoder.reader(tables[number]) for number in set(choices)}
    price_TM = np.zeros((max(choices) + 1, MAGNITUDES))
    for number in readers:
        price_TM[number] = bits_per_symbol(tables[number])
    for names in stacks_of(shapes):
        rows, columns = sum(shapes[name][0] for name in names), shapes[names[0]][1]
        contexts = Contexts(np.concatenate([begins[name] for name in names]))
        magnitude_CR, table_CR = (np.empty((columns, rows), np.uint8) for _ in range(2))
        for magnitude_R, table_R in zip(magnitude_CR, table_CR, strict=True):
            table_R[:] = table_of[contexts.next()]
            for number, places in _by_table(table_R):
                magnitude_R[places] = readers[number](len(places))
            contexts.add(magnitude_R)
        begin = 0
        for name in names:
            own = np.s_[:, begin : begin + shapes[name][0]]
            cells = table_CR[own].astype(np.int64) * MAGNITUDES + magnitude_CR[own]
            found[name] = magnitude_CR[own].T, float(price_TM.take(cells).sum())
            begin += shapes[name][0]
    return found


def mean_of(levels_RC: NDArray[np.int16], exponents_R: Rows) -> int:
    """The mean magnitude of a matrix as its record has it: of a row with exponent 0."""
    if not levels_RC.size:
        return 0
    weight = float((2.0 ** (exponents_R / 2)).sum())
    total = float(np.abs(levels_RC).sum()) / levels_RC.shape[1]
    return min(MEANS - 1, round(SCALE * 2**16 * total / weight))


def starts(mean: int, exponents_R: Rows) -> Rows:
    """The means (R,) that rows of these exponents begin with, in units of 1 / 256."""
    mean_R = (mean * _ROOTS[exponents_R & 1] << (exponents_R >> 1)) >> 26
    return np.minimum(mean_R, CLASSES[-1])


def stacks_of(shapes: Mapping[str, tuple[int, ...]]) -> list[list[str]]:
    """The names of each stack: matrices of equally many columns in their order, those with the fewest first."""
    return [
        [name for name, shape in shapes.items() if shape[1] == columns]
        for columns in sorted({shape[1] for shape in shapes.values()})
    ]


def _by_table(table_R: NDArray[Any]) -> Iterator[tuple[int, NDArray[np.int64]]]:
    """The numbers of the tables that occur, in order, each with its rows in order."""
    order = np.argsort(table_R.astype(np.uint8), kind="stable")
    counts = np.bincount(table_R)
    ends = np.cumsum(counts)
    for number in np.flatnonzero(counts):
        yield int(number), order[ends[number] - counts[number] : ends[number]]


def _merge(counts_KM: Histogram, table_bits: float) -> tuple[list[Table], list[int]]:
    """Tables, and the number of each context's: two are joined as long as that takes fewer bits than both."""

    def size(counts_M: Histogram) -> float:
        own = table_bits + 8.0 * np.count_nonzero(counts_M)
        return own + float(counts_M @ bits_per_symbol(fit_table(counts_M)))

    groups = [[context] for context in np.flatnonzero(counts_KM.sum(1)).tolist()] or [[0]]
    counts_KM = counts_KM + (counts_KM.sum() == 0) * np.eye(1, counts_KM.shape[1], dtype=np.int64)
    sums = [counts_KM[group[0]] for group in groups]
    sizes = [size(total) for total in sums]
    saved = {(a, b): sizes[a] + sizes[b] - size(sums[a] + sums[b]) for b in range(len(groups)) for a in range(b)}
    while saved and max(saved.values()) > 0:
        (a, b) = max(saved, key=lambda pair: saved[pair])
        groups[a] += groups[b]
        sums[a] = sums[a] + sums[b]
        sizes[a] = size(sums[a])
        groups[b] = []
        saved = {pair: value for pair, value in saved.items() if not {a, b} & {*pair}}
        for c in range(len(groups)):
            if c != a and groups[c]:
                saved[min(a, c), max(a, c)] = sizes[a] + sizes[c] - size(sums[a] + sums[c])
    groups_left = sorted((sorted(group), number) for number, group in enumerate(groups) if group)
    choices = [0] * CONTEXTS
    for place, (group, _) in enumerate(groups_left):
        for context in group:
            choices[context] = place
    return [fit_table(sums[number]) for _, number in groups_left], choices
