"""Packing: every width and length is restored, in the bit order of the specification."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tfx.compression import packing
from tfx.compression.packing import (
    gaps_to_mask,
    mask_to_gaps,
    mask_to_symbols,
    pack,
    packed_size,
    symbols_to_mask,
    unpack,
)


@given(width=st.integers(1, 8), data=st.data())
def test_packed_symbols_are_restored_and_have_the_specified_bit_order(width, data):
    values = data.draw(st.lists(st.integers(0, 2**width - 1), max_size=70))
    packed = pack(np.array(values, dtype=np.uint8), width)
    assert len(packed) == packed_size(width, len(values))
    whole = int.from_bytes(packed, "little")
    assert [whole >> (i * width) & (2**width - 1) for i in range(len(values))] == values
    assert whole >> (len(values) * width) == 0
    assert unpack(packed, width, len(values)).tolist() == values


@pytest.mark.parametrize("width", range(1, 9))
def test_long_sequences_are_packed_in_chunks_without_gaps(width, monkeypatch):
    symbols = np.random.default_rng(width).integers(0, 2**width, 1003).astype(np.uint8)
    whole = pack(symbols, width)
    monkeypatch.setattr(packing, "_CHUNK", 64)
    assert pack(symbols, width) == whole
    np.testing.assert_array_equal(unpack(whole, width, len(symbols)), symbols)


@given(st.lists(st.booleans(), max_size=600), st.integers(2, 8), st.sampled_from([1, 4, 8]))
def test_masks_are_restored_from_bits_and_from_gaps(bits, gap_width, mask_width):
    mask = np.array(bits, dtype=bool)
    np.testing.assert_array_equal(symbols_to_mask(mask_to_symbols(mask, mask_width), mask_width, len(mask)), mask)
    gaps = mask_to_gaps(mask, gap_width)
    np.testing.assert_array_equal(gaps_to_mask(gaps, gap_width, len(mask)), mask)


def test_gaps_beyond_the_end_are_refused():
    with pytest.raises(ValueError, match="beyond"):
        gaps_to_mask(np.array([3, 3], dtype=np.uint8), 3, 7)
