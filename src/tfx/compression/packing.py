"""Symbols as bits: packed n-bit integers, and two ways to mark the stored elements of a sparse tensor.

All functions work on flat uint8 numpy arrays, with little-endian bit order.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Symbols = NDArray[np.uint8]

# Symbols per pass. They fill whole bytes at every width, and limit memory, because each bit takes a byte in between.
_CHUNK = 1 << 20


def packed_size(width: int, count: int) -> int:
    """Size in bytes of ``count`` packed symbols of ``width`` bits."""
    return -(-width * count // 8)


def pack(symbols: Symbols, width: int) -> bytes:
    """Packs symbols of ``width`` bits (1 to 8) in order, from the lowest bit of the first byte."""
    if width == 8:
        return symbols.tobytes()
    pieces = []
    for start in range(0, len(symbols), _CHUNK):
        bits = np.unpackbits(symbols[start : start + _CHUNK, None], axis=1, count=width, bitorder="little")
        pieces.append(np.packbits(bits, bitorder="little").tobytes())
    return b"".join(pieces)


def unpack(data: bytes, width: int, count: int) -> Symbols:
    """The inverse of `pack`; ``data`` holds ``packed_size(width, count)`` bytes."""
    packed = np.frombuffer(data, dtype=np.uint8)
    if width == 8:
        return packed[:count].copy()
    symbols = np.empty(count, dtype=np.uint8)
    for start in range(0, count, _CHUNK):
        size = min(_CHUNK, count - start)
        first = start * width // 8
        piece = packed[first : first + packed_size(width, size)]
        bits = np.unpackbits(piece, count=size * width, bitorder="little").reshape(size, width)
        symbols[start : start + size] = np.packbits(bits, axis=1, bitorder="little")[:, 0]
    return symbols


def mask_to_symbols(is_stored: NDArray[np.bool_], width: int) -> Symbols:
    """A bitmask in symbols of ``width`` elements (1, 4 or 8), the first element in the lowest bit.

    Zeros fill the last symbol. Wider symbols take no more space when packed, and show patterns such as 2:4 to an
    entropy coder.
    """
    return unpack(pack(is_stored.astype(np.uint8), 1), width, -(-len(is_stored) // width))


def symbols_to_mask(symbols: Symbols, width: int, size: int) -> NDArray[np.bool_]:
    """The inverse of `mask_to_symbols` for ``size`` elements."""
    return unpack(pack(symbols, width), 1, size).astype(bool)


def mask_to_gaps(is_stored: NDArray[np.bool_], width: int) -> Symbols:
    """A sparse mask as symbols of ``width`` bits.

    A symbol g below 2^width - 1 means g zeros and then a stored element; 2^width - 1 means that many zeros alone.
    Zeros after the last stored element have no symbol.
    """
    most = 2**width - 1
    gaps = np.diff(np.flatnonzero(is_stored), prepend=-1) - 1
    ends = np.cumsum(gaps // most + 1)
    symbols = np.full(ends[-1] if len(ends) else 0, most, dtype=np.uint8)
    symbols[ends - 1] = gaps % most
    return symbols


def gaps_to_mask(symbols: Symbols, width: int, size: int) -> NDArray[np.bool_]:
    """The inverse of `mask_to_gaps`; raises `ValueError` if the gaps reach beyond ``size`` elements."""
    most = 2**width - 1
    ends = np.cumsum(np.where(symbols == most, most, symbols.astype(np.int64) + 1))
    if len(ends) and ends[-1] > size:
        raise ValueError("its gaps reach beyond its end")
    mask = np.zeros(size, dtype=bool)
    mask[ends[symbols != most] - 1] = True
    return mask
