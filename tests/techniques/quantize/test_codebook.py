import itertools

import numpy as np
import pytest
import torch

from tfx.techniques.quantize.codebook import cluster, encode_with


def test_few_distinct_values_are_kept_exactly():
    values = torch.tensor([-1.5, 0.0, 0.25, 2.0])
    weight = values[torch.randint(4, (10, 12), generator=torch.Generator().manual_seed(0))]
    grid = encode_with(weight, cluster(weight, 2, torch.float32))
    torch.testing.assert_close(grid.values(), weight)


@pytest.mark.parametrize("bits", [2, 3])
def test_it_is_a_fixed_point_of_lloyds_algorithm_with_a_level_at_zero(bits):
    weight = torch.randn(30, 20, generator=torch.Generator().manual_seed(bits))
    book = cluster(weight, bits, torch.float32)
    codes = encode_with(weight, book).codes_RC.long()
    assert bool((book == 0).any())
    for level in range(2**bits):
        members = weight[codes == level]
        if book[0, level] != 0 and len(members):
            torch.testing.assert_close(book[0, level], members.mean(), rtol=1e-4, atol=1e-5)
    distance = (weight.unsqueeze(-1) - book[0]).abs()
    torch.testing.assert_close(distance.gather(-1, codes.unsqueeze(-1)).squeeze(-1), distance.amin(-1))


def test_it_is_close_to_the_best_clustering_there_is():
    weight = torch.tensor([[-3.0, -2.9, -0.1, 0.1, 0.2, 1.9, 2.0, 2.2, 5.0]])
    values = weight[0].numpy()
    # Brute force: three free centres at means of contiguous runs, and 0.
    best = np.inf
    for cuts in itertools.combinations(range(1, len(values)), 3):
        runs = np.split(values, cuts)
        for skipped in range(4):
            centres = [0.0] + [run.mean() for i, run in enumerate(runs) if i != skipped]
            best = min(best, float((np.abs(values[:, None] - np.array(centres)).min(1) ** 2).sum()))
    ours = float((encode_with(weight, cluster(weight, 2, torch.float32)).values() - weight).square().sum())
    assert ours <= 1.2 * best


def test_zeros_stay_zero():
    weight = torch.randn(16, 16, generator=torch.Generator().manual_seed(3))
    weight[weight.abs() < 0.5] = 0
    grid = encode_with(weight, cluster(weight, 2, torch.float16))
    assert bool((grid.values()[weight == 0] == 0).all())


def test_a_tensor_of_zeros_has_a_codebook_too():
    weight = torch.zeros(4, 4)
    assert bool((encode_with(weight, cluster(weight, 3, torch.float16)).values() == 0).all())
