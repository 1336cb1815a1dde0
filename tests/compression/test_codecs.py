"""One tensor as sequences of symbols and back: every shape, width, grouping and share of zeros."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tfx.compression.codecs import Layout, decode_tensor, encode_tensor
from tfx.compression.grid import Grid

FLOATS = {"f16": torch.float16, "f32": torch.float32}


def decoded(layout, shape, sequences):
    """The value read from a layout's record and its sequences; the decoder must ask for every sequence."""
    remaining = iter(sequences)

    def take(width, count):
        sequence = next(remaining)
        assert (sequence.width, len(sequence.symbols)) == (width, count)
        assert sequence.symbols.dtype == np.uint8
        assert not len(sequence.symbols) or int(sequence.symbols.max()) < 2**width
        return sequence.symbols

    value = decode_tensor(Layout.from_dict(layout.to_dict(), shape), shape, take)
    assert next(remaining, None) is None
    return value


def price_preferring(kind):
    """A price that makes one kind of sparsity the cheapest."""

    def price(sequence):
        return {"stored": len(sequence.symbols), "short": sequence.width * len(sequence.symbols)}.get(kind, 1.0)

    return price


shapes = st.one_of(
    st.tuples(st.integers(1, 40)), st.tuples(st.integers(1, 9), st.integers(1, 24)), st.just((2, 3, 4)), st.just((1, 1))
)
zeros = st.sampled_from([0.0, 0.1, 0.5, 0.9, 0.99, 1.0])
prices = st.sampled_from(["stored", "short", "constant"]).map(price_preferring)
seeds = st.integers(0, 2**31)


@given(shapes, zeros, st.sampled_from(["f16", "f32"]), prices, seeds)
@settings(max_examples=250, deadline=None)
def test_dense_tensors_of_any_shape_and_sparsity_are_restored_bit_for_bit(shape, zero, floats, price, seed):
    generator = torch.Generator().manual_seed(seed)
    dtype = FLOATS[floats]
    value = (torch.randn(shape, generator=generator) * (torch.rand(shape, generator=generator) >= zero)).to(dtype)
    layout, sequences = encode_tensor(value.float(), dtype, price)
    found = decoded(layout, shape, sequences)
    assert found.dtype == dtype
    assert found.shape == shape
    assert torch.equal(found, value)


@st.composite
def grids(draw):
    bits, rows, groups = draw(st.integers(2, 8)), draw(st.integers(1, 7)), draw(st.integers(1, 4))
    columns = groups * draw(st.integers(1, 8))
    kind = draw(st.sampled_from(["tensor", "rows", "groups", "affine", "codebook", "codebook rows"]))
    dtype = FLOATS[draw(st.sampled_from(["f16", "f32"]))]
    generator = torch.Generator().manual_seed(draw(seeds))
    codes = torch.randint(0, 2**bits, (rows, columns), generator=generator, dtype=torch.uint8)
    common = torch.rand(rows, columns, generator=generator) < draw(zeros)
    if kind.startswith("codebook"):
        book = torch.randn(rows if "rows" in kind else 1, 2**bits, generator=generator)
        codes = torch.where(common, 2**bits - 1, codes).to(torch.uint8)
        return Grid(codes, bits, codebook=book.to(dtype))
    shape = {"tensor": (1, 1), "rows": (rows, 1)}.get(kind, (rows, groups))
    scale = (torch.rand(shape, generator=generator) + 0.01).to(dtype)
    zero = torch.randint(0, 2**bits, shape, generator=generator, dtype=torch.uint8) if kind == "affine" else None
    nought = 2 ** (bits - 1) if zero is None else zero.repeat_interleave(columns // groups, 1)
    return Grid(torch.where(common, nought, codes).to(torch.uint8), bits, scale, zero)


@given(grids(), prices)
@settings(max_examples=400, deadline=None)
def test_grids_of_any_bits_grouping_and_sparsity_keep_their_values(grid, price):
    layout, sequences = encode_tensor(grid, torch.float32, price)
    found = decoded(layout, tuple(grid.codes_RC.shape), sequences)
    assert isinstance(found, Grid)
    assert torch.equal(found.values(), grid.values())
    assert torch.equal(found.codes_RC, grid.codes_RC)
    assert found.bits == grid.bits


def test_the_prices_lead_to_every_kind_of_sparsity():
    """The prices above do lead to masks, to gaps and to neither."""
    rare = torch.zeros(40)
    rare[7] = 1.0
    kinds = {
        name: encode_tensor(rare, torch.float16, price_preferring(name))[0].sparsity
        for name in ("stored", "short", "constant")
    }
    assert set(kinds.values()) == {"none", "gaps"}
    half = torch.tensor([0.0, 1.0] * 20)
    assert encode_tensor(half, torch.float16, price_preferring("short"))[0].sparsity == "mask"


@pytest.mark.parametrize(("sparsity", "widths"), [("mask", {1, 4, 8}), ("gaps", {2, 3, 4, 5, 6, 7, 8}), ("none", {0})])
def test_exactly_the_specified_widths_are_read(sparsity, widths):
    taken = set()
    for width in range(10):
        record = {"kind": "dense", "floats": "f16", "sparsity": sparsity, "sparsity_width": width}
        try:
            Layout.from_dict(record, (3, 4))
        except ValueError:
            continue
        taken.add(width)
    assert taken == widths
