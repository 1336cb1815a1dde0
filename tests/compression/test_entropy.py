"""Entropy coding: close to the entropy, exact, with the same bits whatever the library's version."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tfx.compression.entropy import MAX_TABLE_BYTE, PRECISION, Decoder, encode_symbols, fit_table, frequencies


def gaussian(bits: int, spread: float, count: int) -> np.ndarray:
    levels = 2**bits
    codes = np.random.default_rng(bits).normal(levels / 2, levels / spread, count)
    return np.clip(np.rint(codes), 0, levels - 1).astype(np.uint8)


def entropy_bits(symbols: np.ndarray) -> float:
    share = np.bincount(symbols) / len(symbols)
    share = share[share > 0]
    return float(-(share * np.log2(share)).sum() * len(symbols))


@pytest.mark.parametrize("count", [10_000, 300_000])
@pytest.mark.parametrize("spread", [4, 6, 12])
@pytest.mark.parametrize("bits", range(2, 9))
def test_codes_of_a_realistic_histogram_take_at_most_one_percent_more_than_their_entropy(bits, spread, count):
    symbols = gaussian(bits, spread, count)
    table = fit_table(np.bincount(symbols, minlength=2**bits))
    assert 8 * len(encode_symbols([(symbols, table)])) < 1.01 * entropy_bits(symbols)


@given(st.lists(st.integers(0, 2**40), min_size=2, max_size=256).filter(any))
def test_frequencies_are_positive_and_sum_to_two_to_the_24(counts):
    table = fit_table(np.array(counts))
    found = frequencies(table)
    assert found.min() >= 1
    assert found.sum() == 2**PRECISION
    assert table.max() <= MAX_TABLE_BYTE


@given(st.lists(st.tuples(st.integers(1, 8), st.integers(0, 300), st.integers(0, 99)), max_size=5))
def test_sequences_are_restored_in_order_each_with_its_table(kinds):
    parts = []
    for width, count, seed in kinds:
        symbols = np.random.default_rng(seed).integers(0, 2**width, count).astype(np.uint8)
        # A table must also code symbols that it was not fitted to.
        histogram = np.bincount(symbols[: count // 2], minlength=2**width) + np.eye(1, 2**width, dtype=int)[0]
        parts.append((symbols, fit_table(histogram)))
    decoder = Decoder(encode_symbols(parts))
    for symbols, table in parts:
        np.testing.assert_array_equal(decoder.take(table, len(symbols)), symbols)
    assert decoder.is_empty()


def test_the_coder_writes_the_same_bits_as_in_all_earlier_files():
    first = np.array([0, 1, 2, 3, 3, 2, 1, 0, 2, 2] * 4, dtype=np.uint8)
    second = np.array([200, 7, 200, 200, 7, 200] * 3, dtype=np.uint8)
    tables = [fit_table(np.bincount(s, minlength=n)) for s, n in ((first, 4), (second, 256))]
    assert tables[0].tolist() == GOLDEN_TABLE
    assert frequencies(tables[0]).tolist() == GOLDEN_FREQUENCIES
    assert encode_symbols([(first, tables[0]), (second, tables[1])]).hex() == GOLDEN_WORDS


def test_words_that_no_coder_could_make_are_refused():
    with pytest.raises(ValueError):  # noqa: PT011 (the library's own words)
        Decoder(bytes(8))
    with pytest.raises(ValueError):  # noqa: PT011
        Decoder(b"abc")
    with pytest.raises(ValueError, match="frequency table"):
        frequencies(np.zeros(4, dtype=np.uint8))
    with pytest.raises(ValueError, match="frequency table"):
        frequencies(np.full(4, 201, dtype=np.uint8))


GOLDEN_TABLE = [25, 25, 33, 25]
GOLDEN_FREQUENCIES = [3355443, 3355443, 6710886, 3355444]
GOLDEN_WORDS = "e1691f8e021043262f9a1d1c58a60b00"
