"""Corpus metrics from statistics that add up over sentences.

A row of `predictions.jsonl` holds, for each metric, numbers whose sum over any sentences gives the metric of
those sentences together. So resampling sentences is a matrix product, and nothing is scored again.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

LOSS_METRICS = ("loss", "perplexity", "bits_per_byte")


def higher_is_better(metric: str) -> bool:
    """Whether more is better: true for all text metrics, false for those made from the loss."""
    return metric not in LOSS_METRICS


@dataclass(frozen=True)
class Scorer:
    """``sentence``: the statistics (K,) in a row; ``corpus``: metrics (...,) of summed statistics (..., K).

    ``sentence`` raises `KeyError`, `TypeError` or `ValueError` on a row that does not hold them.
    """

    sentence: Callable[[dict[str, Any]], list[float]]
    corpus: Callable[[np.ndarray], np.ndarray]


def scorer(metric: str) -> Scorer:
    """The scorer of a metric: BLEU, whatever its tokenizer, those of `SCORERS`, and means over sentences."""
    if metric.startswith("bleu"):
        return Scorer(_counts(metric, 10), _bleu)
    return SCORERS.get(metric) or Scorer(lambda row: [float(row[metric]), 1.0], _mean)


def _mean(sums: np.ndarray) -> np.ndarray:
    return sums[..., 0] / np.maximum(sums[..., 1], 1e-300)


def _perplexity(sums: np.ndarray) -> np.ndarray:
    return np.exp(np.minimum(_mean(sums), 700.0))


def _bleu(sums: np.ndarray) -> np.ndarray:
    """BLEU with sacreBLEU's default, exponential smoothing (Post 2018, arXiv 1804.08771): 0-100.

    K = 10: output length, reference length, matches of 1- to 4-grams, their totals.
    """
    length, reference = sums[..., 0], sums[..., 1]
    matches, totals = sums[..., 2:6], sums[..., 6:10]
    # The k-th order without a match counts as 1 / 2^k of a match.
    misses = np.cumsum((matches == 0) & (totals > 0), axis=-1)
    smoothed = np.where(matches > 0, matches, 0.5**misses)
    logs = np.log(smoothed / np.maximum(totals, 1)).mean(-1)
    brevity = np.minimum(0.0, 1.0 - reference / np.maximum(length, 1e-300))
    score = 100.0 * np.exp(logs + np.maximum(brevity, -700.0))
    return np.where((totals > 0).all(-1) & (matches > 0).any(-1), score, 0.0)


def _chrf(sums: np.ndarray) -> np.ndarray:
    """chrF2 of sacreBLEU's defaults (Popović 2015): 0-100. K = 18: for n = 1 to 6 ours, theirs, common."""
    ours, theirs, common = sums[..., 0::3], sums[..., 1::3], sums[..., 2::3]
    counted = (ours > 0) & (theirs > 0)
    orders = np.maximum(counted.sum(-1), 1)
    precision = np.where(counted, common / np.maximum(ours, 1), 0.0).sum(-1) / orders
    recall = np.where(counted, common / np.maximum(theirs, 1), 0.0).sum(-1) / orders
    return 100.0 * 5.0 * precision * recall / np.maximum(4.0 * precision + recall, 1e-300)


def _counts(metric: str, length: int) -> Callable[[dict[str, Any]], list[float]]:
    def read(row: dict[str, Any]) -> list[float]:
        values = row[metric]
        if not isinstance(values, list) or len(values) != length:
            raise ValueError(f"{metric} is not a list of {length} counts")
        return values

    return read


def _nll(row: dict[str, Any]) -> list[float]:
    return [row["nll"], row["targets"]]


def _bits(row: dict[str, Any]) -> list[float]:
    """Bits of a window as bits_per_byte counts them: 8 for each byte of unknown characters besides the model's."""
    return [row["nll"] / math.log(2) + 8 * row.get("unknown_bytes", 0), row["targets"]]


SCORERS = {
    "chrf": Scorer(_counts("chrf", 18), _chrf),
    "loss": Scorer(_nll, _mean),
    "perplexity": Scorer(_nll, _perplexity),
    # Bits per token: the factor, tokens per byte, is taken to be the same for every resampling of one text.
    "bits_per_byte": Scorer(_bits, _mean),
}
