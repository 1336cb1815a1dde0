"""Codebooks by k-means (Han 2015, arXiv 1510.00149): a few shared values for all weights of a tensor."""

from __future__ import annotations

import torch
from torch import Tensor

from tfx.compression.grid import Grid
from tfx.model.device import running_sums

_MAX_ROUNDS = 100


def cluster(weight_RC: Tensor, bits: int, dtype: torch.dtype) -> Tensor:
    """The codebook (1, 2^bits), sorted: Lloyd's algorithm on the values.

    One entry is exactly 0 throughout, so that what is pruned stays 0. The centres start once at evenly spaced
    quantiles of the values that are not 0, and once evenly spaced over their range, which serves the few large
    ones; the codebook with the smaller squared error is taken.
    """
    values = weight_RC.flatten().double().sort().values
    values = values[values != 0]
    free = 2**bits - 1
    if not len(values):
        return torch.zeros(1, free + 1, dtype=dtype, device=weight_RC.device)
    shares = (torch.arange(free, device=values.device, dtype=torch.float64) + 0.5) / free
    starts = (values[(shares * len(values)).long()], values[0] + shares * (values[-1] - values[0]))
    books = [_lloyd(values, start) for start in starts]
    errors = [float((values - book[_cells(values, book)]).square().sum()) for book in books]
    return books[errors.index(min(errors))].to(dtype).unsqueeze(0)


def _lloyd(values: Tensor, others: Tensor) -> Tensor:
    """Moves each centre to the mean of the sorted values nearest to it, until none moves; the one at 0 stays."""
    sums = torch.cat([values.new_zeros(1), running_sums(values, 0)])
    for _ in range(_MAX_ROUNDS):
        centres = torch.cat([others, others.new_zeros(1)]).sort().values
        bounds = torch.searchsorted(values, (centres[1:] + centres[:-1]) / 2)
        bounds = torch.cat([bounds.new_zeros(1), bounds, bounds.new_full((1,), len(values))])
        counts = bounds.diff()
        means = torch.where(counts > 0, sums[bounds].diff() / counts.clamp(min=1), centres)
        zero = int((centres == 0).nonzero()[0])
        moved = torch.cat([means[:zero], means[zero + 1 :]])
        if torch.equal(moved, torch.cat([centres[:zero], centres[zero + 1 :]])):
            break
        others = moved
    return torch.cat([others, others.new_zeros(1)]).sort().values


def _cells(values: Tensor, book: Tensor) -> Tensor:
    """The number of the entry of a sorted codebook that is nearest to each value."""
    return torch.bucketize(values, (book[1:] + book[:-1]) / 2)


def encode_with(weight_RC: Tensor, codebook_1L: Tensor) -> Grid:
    """Maps each weight to the nearest entry of a sorted codebook, and 0 to the entry that is 0."""
    book = codebook_1L[0].float()
    codes = _cells(weight_RC.contiguous(), book)
    # Entries may coincide: 0 always takes the first that is 0. Nothing is read, for which a GPU would be waited for.
    codes = torch.where(weight_RC == 0, (book == 0).to(torch.uint8).argmax(), codes)
    return Grid(codes.to(torch.uint8), int(codebook_1L.shape[1]).bit_length() - 1, codebook=codebook_1L)
