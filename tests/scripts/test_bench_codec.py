"""Bytes at equal loss are read between the files around it."""

from pathlib import Path

import pytest

POINTS = [{"bytes": 400.0, "loss": 0.02}, {"bytes": 100.0, "loss": 0.3}, {"bytes": 200.0, "loss": 0.1}]


def test_bytes_are_interpolated_in_the_logarithm_and_unknown_outside(monkeypatch):
    monkeypatch.syspath_prepend(str(Path(__file__).parents[2] / "scripts"))
    from results.codec import bytes_at

    assert bytes_at(POINTS, 0.1) == pytest.approx(200.0)
    assert bytes_at(POINTS, 0.06) == pytest.approx((400 * 200) ** 0.5)
    assert bytes_at(POINTS, 0.15) == pytest.approx(200**0.75 * 100**0.25)
    assert bytes_at(POINTS, 0.01) is None
    assert bytes_at(POINTS, 0.31) is None
