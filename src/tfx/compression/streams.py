"""All weights of a file in two streams, one bit-packed and one entropy coded, with shared frequency tables.

In a small file, a stream or a table for each tensor would cost too much. So one stream holds all packed sequences in
order, the other holds all coded ones, and sequences with similar statistics share a table.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from tfx.compression.codecs import (
    TRELLIS_BITS,
    Layout,
    Sequence,
    TrellisHead,
    Value,
    decode_tensor,
    decode_trellis_head,
    encode_tensor,
    encode_trellis,
)
from tfx.compression.entropy import Decoder, Histogram, Table, bits_per_symbol, encode_symbols, fit_table
from tfx.compression.grid import Grid
from tfx.compression.levels import CONTEXTS, MAGNITUDES, read_magnitudes, write_levels
from tfx.compression.packing import Symbols, pack, packed_size, unpack

PACKED = -1
_ROUNDS = 4
# About what a table takes in the file, besides a byte for each of its counts.
_TABLE_BITS = 32.0


@dataclass(frozen=True)
class Streams:
    """The two streams, and what a reader needs besides: one record per tensor, the tables, and those of contexts."""

    packed: bytes
    coded: bytes
    tensors: list[dict[str, Any]]
    tables: list[str]
    contexts: list[int] = field(default_factory=list)


@dataclass(frozen=True)
class Stored:
    """A tensor read back, and its share of the bytes of both streams; the shares add up to the whole."""

    value: Value
    layout: Layout
    bytes: int


def write_streams(values: Mapping[str, Value], dtype: torch.dtype, entropy: bool) -> Streams:
    """Chooses codecs and tables for the smallest size; raises `ValueError` if a value cannot be stored exactly."""

    def size(sequence: Sequence) -> float:
        packed = 8.0 * packed_size(sequence.width, len(sequence.symbols))
        if not entropy or not len(sequence.symbols):
            return packed
        histogram = _histogram(sequence)
        return min(packed, float(histogram @ bits_per_symbol(fit_table(histogram))) + _table_bits(histogram))

    levels: dict[str, NDArray[np.int16]] = {}
    begins: dict[str, NDArray[np.int64]] = {}
    encoded: dict[str, tuple[Layout, list[Sequence]]] = {}
    for name, value in values.items():
        if isinstance(value, Grid) and value.trellis:
            layout, parts, levels[name], begins[name] = encode_trellis(value)
            encoded[name] = layout, parts
        else:
            encoded[name] = encode_tensor(value, dtype, size)
    sequences = [sequence for _, parts in encoded.values() for sequence in parts]
    tables, choices = _share_tables(sequences) if entropy else ([], [PACKED] * len(sequences))
    coded, packed = [], []
    for sequence, choice in zip(sequences, choices, strict=True):
        if choice == PACKED:
            packed.append(pack(sequence.symbols, sequence.width))
        else:
            coded.append((sequence.symbols, tables[choice]))
    remaining = iter(choices)
    records = []
    for name, (layout, parts) in encoded.items():
        value = values[name]
        shape = value.shape if isinstance(value, torch.Tensor) else value.codes_RC.shape
        coding = [next(remaining) for _ in parts]
        records.append({"name": name, "shape": list(shape), **layout.to_dict(), "tables": coding})
    contexts: list[int] = []
    if levels:
        in_context = write_levels(levels, begins, _TABLE_BITS)
        contexts = [len(tables) + choice for choice in in_context.choices]
        tables += in_context.tables
        coded += in_context.pieces
        packed.append(in_context.signs)
    texts = [table.tobytes().hex() for table in tables]
    return Streams(b"".join(packed), encode_symbols(coded), records, texts, contexts)


def read_streams(streams: Streams) -> dict[str, Stored]:
    """The inverse of `write_streams`; raises `ValueError` for records or streams that it could not have made.

    The caller must limit the shapes in the records, because they set the size of what is decoded.
    """
    tables = [np.frombuffer(bytes.fromhex(table), dtype=np.uint8) for table in streams.tables]
    prices = [bits_per_symbol(table) for table in tables]
    reader = _Reader(streams, tables, prices)
    values: dict[str, Value] = {}
    layouts: dict[str, Layout] = {}
    heads: dict[str, TrellisHead] = {}
    # Packed bytes and coded bits of each tensor.
    spent: dict[str, list[float]] = {}
    for record in streams.tensors:
        name, shape = record["name"], tuple(record["shape"])
        layout = layouts[name] = read_layout(record)
        before = reader.packed_bytes, reader.coded_bits
        take = reader.tensor(record["tables"])
        if layout.kind == "trellis":
            heads[name] = decode_trellis_head(layout, shape[0], take)
        else:
            values[name] = decode_tensor(layout, shape, take)
        spent[name] = [reader.packed_bytes - before[0], reader.coded_bits - before[1]]
    if heads:
        shapes = {record["name"]: tuple(record["shape"]) for record in streams.tensors if record["name"] in heads}
        for name, (levels_RC, packed, coded) in reader.levels(shapes, heads, streams.contexts).items():
            values[name] = Grid(levels_RC + MAGNITUDES, TRELLIS_BITS, heads[name].scale, trellis=True)
            spent[name] = [spent[name][0] + packed, spent[name][1] + coded]
    reader.finish()
    # The coded stream is one long number. A tensor's share of its bytes is in proportion to its symbols' cost in bits.
    scale = len(streams.coded) / reader.coded_bits if reader.coded_bits else 0.0
    sums = np.cumsum([spent[record["name"]] for record in streams.tensors] or [[0.0, 0.0]], axis=0)
    ends = [0, *(round(packed) + round(coded * scale) for packed, coded in sums.tolist())]
    if ends[-1] != len(streams.packed) + len(streams.coded):
        raise ValueError("its streams hold more than its tensors need")
    return {
        name: Stored(values[name], layouts[name], end - start)
        for name, (start, end) in zip(layouts, pairwise(ends), strict=True)
    }


def read_layout(record: dict[str, Any]) -> Layout:
    """The layout in a tensor's record; raises `ValueError` if no writer could have made it."""
    rest = {key: value for key, value in record.items() if key not in ("name", "shape", "tables")}
    return Layout.from_dict(rest, tuple(record["shape"]))


class _Reader:
    """Reads both streams in order, and counts what each tensor takes."""

    def __init__(self, streams: Streams, tables: list[Table], prices: list[NDArray[np.float64]]) -> None:
        self._packed, self._tables, self._prices = streams.packed, tables, prices
        self._decoder = Decoder(streams.coded)
        self.packed_bytes = 0
        self.coded_bits = 0.0

    def tensor(self, choices: list[int]) -> Any:
        """A function that reads the sequences of one tensor, each as its entry in ``choices`` says."""
        remaining = iter(choices)

        def take(width: int, count: int) -> Symbols:
            choice = next(remaining, None)
            if choice == PACKED:
                return self._unpacked(width, count)
            if type(choice) is not int or not 0 <= choice < len(self._tables):
                raise ValueError("a sequence names a table that does not exist")
            if len(self._tables[choice]) != 2**width:
                raise ValueError("a frequency table has the wrong length")
            symbols = self._decoder.take(self._tables[choice], count)
            self.coded_bits += float(np.bincount(symbols, minlength=2**width) @ self._prices[choice])
            return symbols

        return take

    def levels(
        self, shapes: dict[str, tuple[int, ...]], heads: dict[str, TrellisHead], contexts: list[int]
    ) -> dict[str, tuple[Tensor, int, float]]:
        """The levels (R, C) of all trellises, uint8 modulo 256, with packed bytes and coded bits of each."""
        if len(contexts) != CONTEXTS or any(type(number) is not int for number in contexts):
            raise ValueError("its contexts are not what its format has")
        if not all(0 <= number < min(256, len(self._tables)) for number in contexts):
            raise ValueError("a context names a table that does not exist")
        if any(len(self._tables[number]) != MAGNITUDES for number in contexts):
            raise ValueError("a frequency table has the wrong length")
        begins = {name: head.begins_R for name, head in heads.items()}
        read = read_magnitudes(shapes, begins, self._decoder, self._tables, contexts)
        found = {}
        for name in shapes:
            magnitude_RC, bits = read[name]
            self.coded_bits += bits
            start = self.packed_bytes
            is_stored = magnitude_RC != 0
            level_RC = np.ascontiguousarray(magnitude_RC)
            signs = self._unpacked(1, int(is_stored.sum()))
            level_RC[is_stored] = np.where(signs, -level_RC[is_stored], level_RC[is_stored])
            found[name] = torch.from_numpy(level_RC), self.packed_bytes - start, bits
        return found

    def _unpacked(self, width: int, count: int) -> Symbols:
        start, end = self.packed_bytes, self.packed_bytes + packed_size(width, count)
        if end > len(self._packed):
            raise ValueError("its packed stream is too short")
        self.packed_bytes = end
        return unpack(self._packed[start:end], width, count)

    def finish(self) -> None:
        if not self._decoder.is_empty() or self.packed_bytes != len(self._packed):
            raise ValueError("its streams hold more than its tensors need")


# --- tables -----------------------------------------------------------------------------------------


def _histogram(sequence: Sequence) -> Histogram:
    return np.bincount(sequence.symbols, minlength=2**sequence.width)


def _table_bits(histogram: Histogram) -> float:
    """An estimate of a table's size in the file, in bits."""
    return _TABLE_BITS + 8.0 * np.count_nonzero(histogram)


def _share_tables(sequences: list[Sequence]) -> tuple[list[Table], list[int]]:
    """Tables, and for each sequence the number of the table that codes it smallest, or `PACKED`.

    From the largest sequence to the smallest, each gets its own table unless it costs less to share one. Then, as in
    k-means, tables are fitted to their members and members choose again. The result depends on the sequences alone.
    """
    tables: list[Table] = []
    choices = [PACKED] * len(sequences)
    for width in sorted({sequence.width for sequence in sequences if len(sequence.symbols)}):
        members = [i for i, sequence in enumerate(sequences) if sequence.width == width and len(sequence.symbols)]
        members.sort(key=lambda i: -len(sequences[i].symbols))
        histograms = [_histogram(sequences[i]) for i in members]
        packed = [8.0 * packed_size(width, len(sequences[i].symbols)) for i in members]
        prices: list[NDArray[np.float64]] = []
        for histogram, bits in zip(histograms, packed, strict=True):
            own = bits_per_symbol(fit_table(histogram))
            joined = min((float(histogram @ price) for price in prices), default=np.inf)
            if float(histogram @ own) + _table_bits(histogram) < min(joined, bits):
                prices.append(own)
        fitted: list[Table] = []
        chosen = np.full(len(members), PACKED)
        for _ in range(_ROUNDS):
            costs = np.array(
                [[bits, *(float(h @ p) for p in prices)] for h, bits in zip(histograms, packed, strict=True)]
            )
            chosen = costs.argmin(axis=1) - 1
            used = [number for number in range(len(prices)) if (chosen == number).any()]
            chosen = np.array([used.index(number) if number != PACKED else PACKED for number in chosen])
            unions = [sum(h for h, c in zip(histograms, chosen, strict=True) if c == n) for n in range(len(used))]
            fitted = [fit_table(np.asarray(union)) for union in unions]
            prices = [bits_per_symbol(table) for table in fitted]
        for member, number in zip(members, chosen, strict=True):
            choices[member] = PACKED if number == PACKED else len(tables) + int(number)
        tables += fitted
    return tables, choices
