from __future__ import annotations

import math

import pytest
import torch

from tfx.config.schema import ModelConfig
from tfx.model.architecture import Architecture
from tfx.model.positions import alibi_slopes, distances, relative_buckets, rotary_table, rotate, sinusoidal_table


def rotary(context: int, head_width: int, **settings) -> Architecture:
    return Architecture.from_config(ModelConfig(width=head_width, heads=1, context=context, **settings), 2)


def test_sinusoids_are_the_papers_formula():
    table = sinusoidal_table(50, 8)
    for position in (0, 1, 17, 49):
        for i in range(4):
            angle = position / 10000 ** (2 * i / 8)
            assert table[position, 2 * i].item() == pytest.approx(math.sin(angle), abs=1e-6)
            assert table[position, 2 * i + 1].item() == pytest.approx(math.cos(angle), abs=1e-6)


def test_rotary_is_multiplication_by_a_complex_phase():
    cos, sin = rotary_table(rotary(30, 8))
    x = torch.randn(1, 2, 30, 8, dtype=torch.float64)
    pairs = torch.complex(x[..., :4], x[..., 4:])
    angle = torch.arange(30).unsqueeze(1) * 10000.0 ** (-torch.arange(4, dtype=torch.float64) / 4)
    turned = pairs * torch.polar(torch.ones_like(angle), angle)
    expected = torch.cat([turned.real, turned.imag], dim=-1)
    torch.testing.assert_close(rotate(x, cos, sin), expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize("shift", [1, 5, 20])
def test_rotary_scores_depend_on_the_distance_only(shift):
    cos, sin = (table.double() for table in rotary_table(rotary(40, 8)))
    q, k = torch.randn(2, 1, 1, 10, 8, dtype=torch.float64)

    def scores(start):
        rows = slice(start, start + 10)
        return rotate(q, cos[rows], sin[rows]) @ rotate(k, cos[rows], sin[rows]).transpose(-1, -2)

    torch.testing.assert_close(scores(0), scores(shift), atol=1e-5, rtol=0)
    assert not torch.allclose(scores(0), q @ k.transpose(-1, -2), atol=1e-2)


@pytest.mark.parametrize(
    ("settings", "factors"),
    [
        ({"rotary_base": 500.0}, [1, 1, 1, 1]),
        ({"rotary_scaling": "linear"}, [8, 8, 8, 8]),
        # Of 1,000 trained positions the wavelengths 2 pi 10^i fit 159, 15.9, 1.6 and 0.16 times.
        ({"rotary_scaling": "llama3", "rotary_low": 1.0, "rotary_high": 17.0}, [1, None, None, 8]),
        ({"rotary_scaling": "llama3", "rotary_low": 16.0, "rotary_high": 17.0}, [1, 8, 8, 8]),
    ],
)
def test_rotary_frequencies_are_scaled_by_wavelength(settings, factors):
    cos, _ = rotary_table(rotary(2, 8, rotary_context=1000, rotary_factor=8.0, **settings))
    base = settings.get("rotary_base", 10000.0)
    for i, factor in enumerate(factors):
        plain = base ** (-i / 4)
        if factor is not None:
            assert cos[1, i].item() == pytest.approx(math.cos(plain / factor), abs=1e-6)
        else:
            assert math.cos(plain) < cos[1, i].item() < math.cos(plain / 8)


def test_relative_buckets_are_exact_nearby_and_logarithmic_far_away():
    model = rotary(8, 8, relative_buckets=8, relative_distance=32)
    steps = torch.tensor([[-100, -31, -16, -8, -4, -2, -1, 0, 1, 2, 8, 100]])
    # Backwards alone: 0 to 3 exact, then 4 buckets for 4, 4 sqrt(2) … each 8^(1/4) times the last.
    assert relative_buckets(steps, model, is_causal=True).tolist() == [[7, 7, 6, 5, 4, 2, 1, 0, 0, 0, 0, 0]]
    # In both directions 2 exact, and 2 for 2 to 8 and from 8 on; later keys have the upper half.
    assert relative_buckets(steps, model, is_causal=False).tolist() == [[3, 3, 3, 3, 2, 2, 1, 0, 5, 6, 7, 7]]


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
    assert distances(2, 5, 3, torch.device("cpu")).tolist() == [[-3, -2, -1, 0, 1], [-4, -3, -2, -1, 0]]
