"""Entropy coding: asymmetric numeral systems (Duda 2013, arXiv 1311.2540) with integer frequency tables.

The coder is the ANS coder of the `constriction` library (Bamler 2022, arXiv 2201.01741): 64-bit state, 32-bit
words, frequencies that sum to 2^24. docs/FORMAT.md specifies its arithmetic, and tests fix its output bits. The
file holds one byte of a table per symbol. Integer arithmetic turns these bytes into 24-bit frequencies, so no
reader depends on the rounding of floats.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

import constriction
import numpy as np
from numpy.typing import NDArray

from tfx.compression.packing import Symbols

PRECISION = 24
# Limits weights to exponent 24: for 256 symbols, cumulative sums times 2^24 then fit in 64 bits.
MAX_TABLE_BYTE = 8 * PRECISION + 8

Table = NDArray[np.uint8]
Histogram = NDArray[np.int64]


def fit_table(histogram: Histogram) -> Table:
    """One byte for each of L symbols, a float with 3 bits of mantissa.

    Byte 0 is weight 0; byte 1 + 8e + m is weight (8 + m) * 2^e. The rounding changes a count by at most 1/16 and
    costs less than 0.001 bits per symbol.
    """
    counts = histogram.astype(np.int64)
    counts = np.where(counts > 0, np.maximum(1, counts >> max(0, int(counts.max()).bit_length() - PRECISION)), 0)
    exponent = np.frexp(counts.astype(np.float64))[1] - 1  # counts in [2^e, 2^(e + 1))
    mantissa = np.rint(np.ldexp(counts.astype(np.float64), 3 - exponent)).astype(np.int64) - 8
    return np.where(counts > 0, 1 + 8 * exponent + mantissa, 0).astype(np.uint8)


def frequencies(table: Table) -> Histogram:
    """The L integer frequencies, each at least 1, that sum to 2^24; raises `ValueError` if the table is not valid."""
    byte = table.astype(np.int64)
    if not 2 <= len(table) <= 256:
        raise ValueError("a frequency table is not valid")
    weight = np.where(byte > 0, (8 + (byte - 1) % 8) << ((byte - 1) // 8), 0)
    ends = np.concatenate([[0], np.cumsum(weight)])
    if ends[-1] == 0 or byte.max() > MAX_TABLE_BYTE:
        raise ValueError("a frequency table is not valid")
    spare = 2**PRECISION - len(table)
    return np.diff(np.arange(len(table) + 1) + ends * spare // ends[-1])


def bits_per_symbol(table: Table) -> NDArray[np.float64]:
    """The cost of each symbol under the table, in bits."""
    return PRECISION - np.log2(frequencies(table))


def encode_symbols(parts: Sequence[tuple[Symbols, Table]]) -> bytes:
    """Codes the parts in order, each with its table, as little-endian 32-bit words."""
    coder = constriction.stream.stack.AnsCoder()
    models = {table.tobytes(): _model(table) for table in {table.tobytes(): table for _, table in parts}.values()}
    for symbols, table in reversed(parts):
        coder.encode_reverse(symbols.astype(np.int32), models[table.tobytes()])
    return np.asarray(coder.get_compressed(), dtype="<u4").tobytes()


class Decoder:
    """Decodes the output of `encode_symbols` part by part, in the same order."""

    def __init__(self, data: bytes) -> None:
        """Raises `ValueError` if no coder could have made these words."""
        words = np.frombuffer(data, dtype="<u4").astype(np.uint32)
        self._coder = constriction.stream.stack.AnsCoder(words)
        self._models: dict[bytes, constriction.stream.model.Model] = {}

    def take(self, table: Table, count: int) -> Symbols:
        """The next ``count`` symbols. Altered data gives wrong symbols, but none outside the table's range."""
        return self.reader(table)(count).astype(np.uint8)

    def reader(self, table: Table) -> Callable[[int], NDArray[np.int32]]:
        """`take` of this table, for many short pieces that share few tables."""
        key = table.tobytes()
        if key not in self._models:
            self._models[key] = _model(table)
        return partial(self._coder.decode, self._models[key])

    def is_empty(self) -> bool:
        """Whether nothing is left. Unaltered data is empty once every symbol is taken."""
        return bool(self._coder.is_empty())


def _model(table: Table) -> constriction.stream.model.Model:
    # The library gives each symbol 1 and spreads 2^24 - L in proportion to these floats. They are integers with
    # exactly that sum, so its factor is 1.0 and it rounds nothing.
    return constriction.stream.model.Categorical((frequencies(table) - 1).astype(np.float64), perfect=False)
