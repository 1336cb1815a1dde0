"""One weight as sequences of small symbols, and back: sparsity, then floats or a grid of integer codes.

A `Layout` describes a codec. `encode_tensor` turns a tensor into sequences in this order:

1. a bitmask of the stored elements, or the gaps between them; neither if all elements are stored;
2. for a grid, its scales or codebook as byte planes, then its zero points if they differ;
3. the stored elements: symbols of a grid, or byte planes of floats.

`tfx.compression.streams` decides whether a sequence is bit-packed or entropy coded.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass, fields
from math import prod
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from tfx.compression.grid import Grid, spread
from tfx.compression.levels import MAGNITUDES, MEANS, mean_of, starts
from tfx.compression.packing import Symbols, gaps_to_mask, mask_to_gaps, mask_to_symbols, symbols_to_mask
from tfx.compression.trellis import row_scales, split_scales

Value = Tensor | Grid
_FLOATS = {"f16": torch.float16, "f32": torch.float32}
_NAMES = {dtype: name for name, dtype in _FLOATS.items()}
TRELLIS_BITS = 8
_EXPONENT_BITS = 5
_MASK_WIDTHS = (1, 4, 8)
_GAP_WIDTHS = (3, 4, 5, 6, 8)


@dataclass(frozen=True)
class Sequence:
    """Symbols below 2^width."""

    symbols: Symbols
    width: int


@dataclass(frozen=True)
class Layout:
    """How one tensor is stored; the file holds a record of it.

    ``kind`` is ``dense``, ``scaled``, ``codebook`` or ``trellis``. ``floats`` is the type of the dense values, the
    scales or the codebook's entries. ``bits`` is the width of a code. ``grouping`` is the shape of the scales or of the
    codebook. ``zero`` is the code that symbol 0 stands for; None: each scale has a zero point in the file.
    ``sparsity`` is ``none``, ``mask`` or ``gaps``, in symbols of ``sparsity_width`` bits; ``gaps`` counts the
    gap symbols. ``mean`` is that of the magnitudes of a trellis (`tfx.compression.levels`).
    """

    kind: str
    floats: str
    bits: int = 0
    grouping: tuple[int, ...] = ()
    zero: int | None = 0
    sparsity: str = "none"
    sparsity_width: int = 0
    gaps: int = 0
    mean: int = 0

    def to_dict(self) -> dict[str, Any]:
        """The record, without the values that equal their defaults."""
        return {key: value for key, value in asdict(self).items() if value != _DEFAULTS.get(key, _MISSING)}

    @classmethod
    def from_dict(cls, record: dict[str, Any], shape: tuple[int, ...]) -> Layout:
        """Reads a record for a tensor of ``shape``; raises `ValueError` if no writer could have made it."""
        values = dict(record)
        if isinstance(values.get("grouping"), list):
            values["grouping"] = tuple(values["grouping"])
        if not values.keys() <= _DEFAULTS.keys() | {"kind", "floats"} or not {"kind", "floats"} <= values.keys():
            raise ValueError("its codec has unknown or missing entries")
        layout = cls(**values)
        if not layout._is_valid(shape):
            raise ValueError("its codec does not fit its shape")
        return layout

    def _is_valid(self, shape: tuple[int, ...]) -> bool:
        numbers = (self.bits, self.sparsity_width, self.gaps, self.mean, *self.grouping)
        if any(type(number) is not int or number < 0 for number in numbers) or self.floats not in _FLOATS:
            return False
        widths = {"none": (0,), "mask": _MASK_WIDTHS, "gaps": range(2, 9)}.get(self.sparsity, ())
        if self.sparsity_width not in widths or self.gaps > (prod(shape) if self.sparsity == "gaps" else 0):
            return False
        if self.mean >= (MEANS if self.kind == "trellis" else 1):
            return False
        if self.kind == "dense":
            return self.bits == 0 and self.grouping == () and self.zero == 0
        if len(shape) != 2 or len(self.grouping) != 2 or not 2 <= self.bits <= 8:
            return False
        if self.zero is not None and (type(self.zero) is not int or not 0 <= self.zero < 2**self.bits):
            return False
        rows, across = self.grouping
        if rows not in (1, shape[0]):
            return False
        if self.kind == "codebook":
            return across == 2**self.bits and self.zero is not None
        if self.kind == "trellis":
            return across == 1 and self.bits == TRELLIS_BITS and self.zero == 0 and self.sparsity == "none"
        return (
            self.kind == "scaled"
            and across >= 1
            and shape[1] % across == 0
            and (rows > 1 or across == 1 or shape[0] == 1)
        )

    def __str__(self) -> str:
        """The layout as tables show it: ``4 bit, scale f16 x 2,048, gaps``."""
        if self.kind == "dense":
            text = f"dense {self.floats}"
        elif self.kind == "codebook":
            text = f"{self.bits} bit, codebook {self.floats}" + (" per row" if self.grouping[0] > 1 else "")
        elif self.kind == "trellis":
            text = f"trellis, scale {self.floats}" + (" per row" if self.grouping[0] > 1 else "")
        else:
            per = " per tensor" if prod(self.grouping) == 1 else f" x {prod(self.grouping):,}"
            text = f"{self.bits} bit, scale {self.floats}{per}" + (", zero points" if self.zero is None else "")
        return text if self.sparsity == "none" else f"{text}, {self.sparsity}"


_MISSING = object()
_DEFAULTS = {field.name: field.default for field in fields(Layout) if field.name not in ("kind", "floats")}


def encode_trellis(
    grid: Grid,
) -> tuple[Layout, list[Sequence], NDArray[np.int16], NDArray[np.int64]]:
    """The layout of a trellis' grid and its scales; its levels, which `tfx.compression.levels` codes, and with them the
    means that its rows begin with.

    Raises `ValueError` if the layout cannot hold them.
    """
    assert grid.scale is not None
    levels_RC = grid.levels().cpu().numpy()
    scale = _finite(grid.scale.detach().cpu().float())
    if grid.bits != TRELLIS_BITS or int(np.abs(levels_RC).max(initial=0)) >= MAGNITUDES:
        raise ValueError(f"the levels of a trellis must be below {MAGNITUDES}, in codes of {TRELLIS_BITS} bits")
    bases, exponents_R = split_scales(scale)
    floats = torch.float16 if torch.equal(bases.half().float(), bases) else torch.float32
    own = [] if scale.numel() == 1 else [Sequence(exponents_R.to(torch.uint8).numpy(), _EXPONENT_BITS)]
    bases = bases if own else bases[:1]
    rows = exponents_R.expand(len(levels_RC)).numpy()
    layout = Layout("trellis", _NAMES[floats], grid.bits, tuple(scale.shape), mean=mean_of(levels_RC, rows))
    return layout, [*_planes(_float_bits(bases.to(floats))), *own], levels_RC, starts(layout.mean, rows)


@dataclass(frozen=True)
class TrellisHead:
    """What stands before the levels of a trellis: its scales (R, 1) or (1, 1) in fp32, and each row's first mean."""

    scale: Tensor
    begins_R: NDArray[np.int64]


def decode_trellis_head(layout: Layout, rows: int, take: Callable[[int, int], Symbols]) -> TrellisHead:
    """The scales of a trellis with ``rows`` rows; ``take(width, count)`` returns the next sequence."""
    floats = _FLOATS[layout.floats]
    by_row = layout.grouping[0] > 1
    bases = _finite(torch.from_numpy(_take_bits(floats, 1 + by_row, take)).view(floats)).float()
    exponents_R = torch.zeros(1, dtype=torch.int64)
    if by_row:
        exponents_R = torch.from_numpy(take(_EXPONENT_BITS, rows).astype(np.int64))
    return TrellisHead(row_scales(bases, exponents_R), starts(layout.mean, exponents_R.expand(rows).numpy()))


def encode_tensor(value: Value, dtype: torch.dtype, size: Callable[[Sequence], float]) -> tuple[Layout, list[Sequence]]:
    """The smallest layout of a grid, or of a tensor stored as ``dtype``; ``size`` gives a sequence's size in bits.

    Raises `ValueError` if the layout cannot hold the value exactly. Negative zeros become zeros.
    """
    if isinstance(value, Grid):
        layout, head, body, width = _grid_parts(value)
    else:
        layout, head = Layout("dense", _NAMES[dtype]), []
        body, width = _float_bits(_exact(value, dtype).flatten()), 8
    is_stored = body != 0
    stored = _planes(body[is_stored]) if layout.kind == "dense" else [Sequence(body[is_stored], width)]
    everything = _planes(body) if layout.kind == "dense" else [Sequence(body, width)]
    candidates: list[tuple[Layout, list[Sequence]]] = [(layout, [*head, *everything])]
    if not is_stored.all():
        for width in _MASK_WIDTHS:
            mask = Sequence(mask_to_symbols(is_stored, width), width)
            candidates.append((_sparse(layout, "mask", width), [mask, *head, *stored]))
        for width in _GAP_WIDTHS:
            gaps = Sequence(mask_to_gaps(is_stored, width), width)
            candidates.append((_sparse(layout, "gaps", width, len(gaps.symbols)), [gaps, *head, *stored]))
    return min(candidates, key=lambda candidate: sum(size(sequence) for sequence in candidate[1]))


def decode_tensor(layout: Layout, shape: tuple[int, ...], take: Callable[[int, int], Symbols]) -> Value:
    """The tensor or grid of a layout; ``take(width, count)`` returns the next sequence.

    Raises `ValueError` if `encode_tensor` could not have made the sequences.
    """
    size = prod(shape)
    is_stored = None
    if layout.sparsity == "mask":
        count = -(-size // layout.sparsity_width)
        is_stored = symbols_to_mask(take(layout.sparsity_width, count), layout.sparsity_width, size)
    elif layout.sparsity == "gaps":
        is_stored = gaps_to_mask(take(layout.sparsity_width, layout.gaps), layout.sparsity_width, size)
    stored = size if is_stored is None else int(is_stored.sum())
    floats = _FLOATS[layout.floats]

    def scatter(elements: NDArray[Any]) -> NDArray[Any]:
        if is_stored is None:
            return elements
        full = np.zeros(size, dtype=elements.dtype)
        full[is_stored] = elements
        return full

    if layout.kind == "dense":
        bits = scatter(_take_bits(floats, stored, take))
        return _finite(torch.from_numpy(bits).view(floats)).view(shape)
    bits_N = _take_bits(floats, prod(layout.grouping), take)
    per_group = _finite(torch.from_numpy(bits_N).view(floats)).view(layout.grouping)
    zero = None
    if layout.zero is None:
        zero = torch.from_numpy(take(layout.bits, prod(layout.grouping))).view(layout.grouping)
    symbols = torch.from_numpy(scatter(take(layout.bits, stored))).view(shape)
    if layout.kind == "codebook":
        return Grid(_shift(symbols, layout.zero or 0, layout.bits), layout.bits, codebook=per_group)
    if zero is None and layout.zero != 2 ** (layout.bits - 1):
        assert layout.zero is not None
        zero = torch.full(layout.grouping, layout.zero, dtype=torch.uint8)
    offset = 2 ** (layout.bits - 1) if zero is None else spread(zero, shape[1])
    return Grid(_shift(symbols, offset, layout.bits), layout.bits, scale=per_group, zero=zero)


# --- pieces -----------------------------------------------------------------------------------------


def _sparse(layout: Layout, sparsity: str, width: int, gaps: int = 0) -> Layout:
    return Layout(layout.kind, layout.floats, layout.bits, layout.grouping, layout.zero, sparsity, width, gaps)


def _grid_parts(grid: Grid) -> tuple[Layout, list[Sequence], Symbols, int]:
    """Layout, scales or codebook with zero points, symbols, and their width.

    A symbol is the code minus the code of zero, modulo 2^bits. So zeros have the same symbol in all groups, and
    groups with different zero points share their statistics.
    """
    codes, bits = grid.codes_RC.cpu(), grid.bits
    if grid.codes_RC.dtype != torch.uint8 or int(codes.max()) >= 2**bits:
        raise ValueError(f"the codes of a grid must be uint8 below 2^{bits}")
    zero: int | None
    if grid.codebook is not None:
        floats = grid.codebook.cpu()
        zero = int(torch.bincount(codes.flatten()).argmax())
        offset: Tensor | int = zero
    else:
        assert grid.scale is not None
        floats = grid.scale.cpu()
        zeros = torch.full_like(floats, 2 ** (bits - 1), dtype=torch.uint8) if grid.zero is None else grid.zero.cpu()
        zero = int(zeros[0, 0]) if bool((zeros == zeros[0, 0]).all()) else None
        offset = spread(zeros, codes.shape[1])
    kind = "scaled" if grid.codebook is None else "codebook"
    layout = Layout(kind, _NAMES[floats.dtype], bits, tuple(floats.shape), zero)
    head = _planes(_float_bits(_finite(floats).flatten()))
    if zero is None:
        head.append(Sequence(zeros.flatten().numpy(), bits))
    return layout, head, _shift(codes, 2**bits - offset, bits).flatten().numpy(), bits


def _shift(codes: Tensor, offset: Tensor | int, bits: int) -> Tensor:
    shifted = codes.to(torch.int16) + (offset.to(torch.int16) if isinstance(offset, Tensor) else offset)
    return (shifted & (2**bits - 1)).to(torch.uint8)


def _exact(value: Tensor, dtype: torch.dtype) -> Tensor:
    """The tensor as ``dtype``, without negative zeros; raises `ValueError` if a value would change."""
    stored = _finite(value.detach().cpu().to(dtype)) + 0.0
    if not torch.equal(stored.to(value.dtype), value.detach().cpu()):
        raise ValueError(f"some values would change if stored as {dtype}: round them first")
    return stored


def _finite(values: Tensor) -> Tensor:
    if not bool(torch.isfinite(values).all()):
        raise ValueError("its values are not finite")
    return values


def _float_bits(values: Tensor) -> NDArray[Any]:
    """The bit patterns as signed integers of the same width."""
    return values.contiguous().view(torch.int16 if values.dtype == torch.float16 else torch.int32).numpy()


def _planes(patterns: NDArray[Any]) -> list[Sequence]:
    """Bit patterns as byte planes: the highest byte of every element, then the next lower byte, and so on.

    The highest byte, with sign and exponent, compresses well; the low ones are nearly random.
    """
    bytes_NB = patterns.astype(patterns.dtype.newbyteorder("<")).view(np.uint8).reshape(-1, patterns.itemsize)
    return [Sequence(np.ascontiguousarray(bytes_NB[:, plane]), 8) for plane in reversed(range(bytes_NB.shape[1]))]


def _take_bits(floats: torch.dtype, count: int, take: Callable[[int, int], Symbols]) -> NDArray[Any]:
    bytes_NB = np.empty((count, floats.itemsize), dtype=np.uint8)
    for plane in reversed(range(floats.itemsize)):
        bytes_NB[:, plane] = take(8, count)
    little = bytes_NB.reshape(-1).view(np.dtype(f"<i{floats.itemsize}"))
    return little.astype(little.dtype.newbyteorder("="))
