from __future__ import annotations

import pytest

from tfx.record.seeds import derive_seed


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [((1, "order", 3), 566311224565714898), ((2**63 - 1, "init/embedding.weight"), 2891642078315854950)],
)
def test_seeds_are_the_same_in_every_version(arguments, expected):
    assert derive_seed(*arguments) == expected


def test_seed_purpose_and_indices_all_change_the_result():
    keys = [
        (seed, purpose, *indices)
        for seed in range(5)
        for purpose in ("order", "step", "init/a", "init/b")
        for indices in ((), (0,), (1,), (0, 1), (1, 0), (11,), (1, 1))
    ]
    assert len({derive_seed(*key) for key in keys}) == len(keys)


def test_seeds_fill_63_bits_evenly():
    seeds = [derive_seed(1, "step", index) for index in range(4000)]
    assert all(0 <= seed < 2**63 for seed in seeds)
    for bit in range(63):
        share = sum(seed >> bit & 1 for seed in seeds) / len(seeds)
        assert abs(share - 0.5) < 6 * 0.5 / len(seeds) ** 0.5
