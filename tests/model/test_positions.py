from __future__ import annotations

import math

import pytest
import torch

from tfx.model.positions import alibi_slopes, distances, rotary_table, rotate, sinusoidal_table


def test_sinusoids_are_the_papers_formula():
    table = sinusoidal_table(50, 8)
    for position in (0, 1, 17, 49):
        for i in range(4):
            angle = position / 10000 ** (2 * i / 8)
            assert table[position, 2 * i].item() == pytest.approx(math.sin(angle), abs=1e-6)
            assert table[position, 2 * i + 1].item() == pytest.approx(math.cos(angle), abs=1e-6)


def test_rotary_is_multiplication_by_a_complex_phase():
    cos, sin = rotary_table(30, 8)
    x = torch.randn(1, 2, 30, 8, dtype=torch.float64)
    pairs = torch.complex(x[..., :4], x[..., 4:])
    angle = torch.arange(30).unsqueeze(1) * 10000.0 ** (-torch.arange(4, dtype=torch.float64) / 4)
    turned = pairs * torch.polar(torch.ones_like(angle), angle)
    expected = torch.cat([turned.real, turned.imag], dim=-1)
    torch.testing.assert_close(rotate(x, cos, sin), expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize("shift", [1, 5, 20])
def test_rotary_scores_depend_on_the_distance_only(shift):
    cos, sin = (table.double() for table in rotary_table(40, 8))
    q, k = torch.randn(2, 1, 1, 10, 8, dtype=torch.float64)

    def scores(start):
        rows = slice(start, start + 10)
        return rotate(q, cos[rows], sin[rows]) @ rotate(k, cos[rows], sin[rows]).transpose(-1, -2)

    torch.testing.assert_close(scores(0), scores(shift), atol=1e-5, rtol=0)
    assert not torch.allclose(scores(0), q @ k.transpose(-1, -2), atol=1e-2)


@pytest.mark.parametrize(
    ("heads", "slopes"),
    [
        (1, [2**-8]),
        (8, [2.0**-n for n in range(1, 9)]),
        (16, [2.0 ** (-n / 2) for n in range(1, 17)]),
        (12, [2.0**-n for n in range(1, 9)] + [2.0**-0.5, 2.0**-1.5, 2.0**-2.5, 2.0**-3.5]),
    ],
)
def test_alibi_slopes_are_those_of_the_paper(heads, slopes):
    assert alibi_slopes(heads).tolist() == pytest.approx(slopes)


def test_distances_count_from_the_offset():
    assert distances(2, 5, 3, torch.device("cpu")).tolist() == [[3, 2, 1, 0, 1], [4, 3, 2, 1, 0]]
