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
ERRORS = ("calibration_error", "squared_error")
# The blocks that a text takes, where texts leave a model early.
DEPTH = "depth"
# Bins of equal width that answers are put in by their probability (Guo 2017, arXiv 1706.04599).
BINS = 15
# Of more labels no statistics by text are read: they would be wider than long.
_MOST_LABELS = 2_000


def higher_is_better(metric: str) -> bool:
    """Whether more is better: false for metrics made from the loss, for errors and costs, true for all others."""
    return metric not in (*LOSS_METRICS, *ERRORS, DEPTH)


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


def _f1(sums: np.ndarray) -> np.ndarray:
    """F1 of counts (..., 3): held and said, said alone, held alone; 0 where there are none."""
    right, wrong, missed = sums[..., 0], sums[..., 1], sums[..., 2]
    return 2.0 * right / np.maximum(2.0 * right + wrong + missed, 1e-300)


def _labels(metric: str) -> Callable[[dict[str, Any]], list[float]]:
    """For C labels: whether each holds, whether the model says so, and both; K = 3 C."""

    def read(row: dict[str, Any]) -> list[float]:
        held, said, count = row[metric]
        if not 0 < count <= _MOST_LABELS or not all(type(n) is int and 0 <= n < count for n in (*held, *said)):
            raise ValueError(f"{metric} is not two lists of labels and at most {_MOST_LABELS:,} labels")
        found = [0.0] * (3 * count)
        for start, numbers in ((0, held), (count, said), (2 * count, set(held) & set(said))):
            for number in numbers:
                found[start + number] = 1.0
        return found

    return read


def _macro_f1(sums: np.ndarray) -> np.ndarray:
    """The mean of the F1 of all labels that hold or are said anywhere; of K = 3 C sums."""
    held, said, both = (sums.reshape(*sums.shape[:-1], 3, -1)[..., part, :] for part in range(3))
    f1 = 2.0 * both / np.maximum(held + said, 1e-300)
    return f1.sum(-1) / np.maximum((held + said > 0).sum(-1), 1)


def _matthews(sums: np.ndarray) -> np.ndarray:
    """Matthews' correlation for C labels (Gorodkin 2004), of K = 3 C sums; 0 where one label is always held or said."""
    held, said, both = (sums.reshape(*sums.shape[:-1], 3, -1)[..., part, :] for part in range(3))
    count, right = held.sum(-1), both.sum(-1)
    spread = (count**2 - (said**2).sum(-1)) * (count**2 - (held**2).sum(-1))
    gain = count * right - (held * said).sum(-1)
    return np.where(spread > 0, gain / np.sqrt(np.maximum(spread, 1e-300)), 0.0)


def _bin(row: dict[str, Any]) -> list[float]:
    """By bin the probability of the answer, then whether it is right; and 1."""
    share, is_right = row["calibration_error"]
    if not 0 <= share <= 1:
        raise ValueError("calibration_error has no probability")
    found = [0.0] * (2 * BINS + 1)
    place = min(int(share * BINS), BINS - 1)
    found[place], found[BINS + place], found[-1] = share, is_right, 1.0
    return found


def _calibration_error(sums: np.ndarray) -> np.ndarray:
    """Expected calibration error (Naeini 2015): the mean gap of probability and accuracy over bins of answers."""
    gaps = np.abs(sums[..., :BINS] - sums[..., BINS : 2 * BINS])
    return gaps.sum(-1) / np.maximum(sums[..., -1], 1e-300)


def _moments(metric: str) -> Callable[[dict[str, Any]], list[float]]:
    def read(row: dict[str, Any]) -> list[float]:
        given, truth = row[metric]
        return [1.0, given, truth, given * given, truth * truth, given * truth]

    return read


def _correlation(sums: np.ndarray) -> np.ndarray:
    """Pearson's correlation of K = 6 moments; 0 where one side does not vary.

    Of ranks it is Spearman's. Resamplings keep the ranks of the whole, which is near theirs.
    """
    count = np.maximum(sums[..., 0], 1e-300)
    given, truth, given2, truth2, both = (sums[..., place] / count for place in range(1, 6))
    spread = (given2 - given**2) * (truth2 - truth**2)
    return np.where(spread > 1e-24, (both - given * truth) / np.sqrt(np.maximum(spread, 1e-300)), 0.0)


SCORERS = {
    "chrf": Scorer(_counts("chrf", 18), _chrf),
    "loss": Scorer(_nll, _mean),
    "perplexity": Scorer(_nll, _perplexity),
    # Bits per token: the factor, tokens per byte, is taken to be the same for every resampling of one text.
    "bits_per_byte": Scorer(_bits, _mean),
    "f1_binary": Scorer(_counts("f1_binary", 3), _f1),
    "f1_micro": Scorer(_counts("f1_micro", 3), _f1),
    "f1_macro": Scorer(_labels("f1_macro"), _macro_f1),
    "matthews": Scorer(_labels("matthews"), _matthews),
    "calibration_error": Scorer(_bin, _calibration_error),
    "pearson": Scorer(_moments("pearson"), _correlation),
    "spearman": Scorer(_moments("spearman"), _correlation),
}
