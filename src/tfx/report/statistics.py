"""How sure a difference is: intervals over seeds, seeds and sentences resampled together, many comparisons.

Notation: an arm is one config run with n seeds on the same N sentences. Both are samples: other seeds give
another model, other sentences another score. Arms are taken to be independent given the sentences.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from tfx.record.metric_vocabulary import Scorer

RESAMPLES = 1000
CONFIDENCE = 0.95


def student_tail(t: float, freedom: float) -> float:
    """P(T > t) of Student's t, ``freedom`` may be fractional; by its regularised incomplete beta function."""
    if math.isinf(t):
        return 0.0 if t > 0 else 1.0
    tail = 0.5 * _incomplete_beta(freedom / (freedom + t * t), freedom / 2, 0.5)
    return tail if t >= 0 else 1.0 - tail


def student_quantile(probability: float, freedom: float) -> float:
    """The t that a ``probability`` of Student's distribution lies below, by bisection."""
    if probability < 0.5:
        return -student_quantile(1.0 - probability, freedom)
    low, high = 0.0, 2.0
    while student_tail(high, freedom) > 1.0 - probability:
        low, high = high, 2.0 * high
    for _ in range(80):
        middle = 0.5 * (low + high)
        low, high = (middle, high) if student_tail(middle, freedom) > 1.0 - probability else (low, middle)
    return 0.5 * (low + high)


def _incomplete_beta(x: float, a: float, b: float) -> float:
    """I_x(a, b) by the continued fraction of DLMF 8.17.22, evaluated as Lentz (1976) does."""
    if x <= 0.0 or x >= 1.0:
        return min(max(x, 0.0), 1.0)
    if x > (a + 1.0) / (a + b + 2.0):  # the fraction converges fast on the other side only
        return 1.0 - _incomplete_beta(1.0 - x, b, a)
    log_front = math.lgamma(a + b) - math.lgamma(a) - math.lgamma(b) + a * math.log(x) + b * math.log1p(-x)
    tiny = 1e-300
    c, d = 1.0, 1.0 / max(1.0 - (a + b) * x / (a + 1.0), tiny)
    fraction = d
    for m in range(1, 500):
        for numerator in (
            m * (b - m) * x / ((a + 2 * m - 1) * (a + 2 * m)),
            -(a + m) * (a + b + m) * x / ((a + 2 * m) * (a + 2 * m + 1)),
        ):
            d = 1.0 + numerator * d
            c = 1.0 + numerator / c
            d = 1.0 / (d if abs(d) > tiny else tiny)
            c = c if abs(c) > tiny else tiny
            fraction *= c * d
        if abs(c * d - 1.0) < 1e-15:
            break
    return math.exp(log_front) * fraction / a


def seed_interval(values: Sequence[float]) -> tuple[float, float] | None:
    """Student's interval of the mean over seeds, None for fewer than two of them."""
    count = len(values)
    if count < 2:
        return None
    half = student_quantile(0.5 + CONFIDENCE / 2, count - 1) * float(np.std(values, ddof=1)) / math.sqrt(count)
    mean = float(np.mean(values))
    return mean - half, mean + half


def minimum_detectable_difference(runs: int, comparisons: int = 1, power: float = 0.8) -> float | None:
    """The true difference that a test finds with probability ``power``, in standard deviations between runs.

    For a two-sided test at 5 % of two arms of ``runs`` runs each, shared among the ``comparisons`` (the step that is
    hardest in Holm's method), with runs as the only source of noise and the same spread in both arms: Student's t with
    2 (runs - 1) degrees of freedom under its noncentral distribution. None for single runs, which have no spread.
    """
    if runs < 2:
        return None
    freedom = 2 * (runs - 1)
    critical = student_quantile(1.0 - (1.0 - CONFIDENCE) / (2 * comparisons), freedom)
    # The density of s, the square root of a chi-squared variable over its degrees of freedom.
    s = np.linspace(1e-6, 8.0, 4001)
    log_density = (freedom - 1) * np.log(s) - freedom * s * s / 2
    density = np.exp(log_density - log_density.max())
    density /= density.sum()

    def found(shift: float) -> float:
        above, below = shift - critical * s, -shift - critical * s
        return sum(float(density @ _normal_below(side)) for side in (above, below))

    low, high = 0.0, 1.0
    while found(high) < power:
        high *= 2.0
    for _ in range(60):
        middle = 0.5 * (low + high)
        low, high = (middle, high) if found(middle) < power else (low, middle)
    return high * math.sqrt(2.0 / runs)


def _normal_below(x: np.ndarray) -> np.ndarray:
    """The standard normal distribution function."""
    return np.array([0.5 * math.erfc(-value / math.sqrt(2.0)) for value in x])


def sentence_weights(sentences: int, resamples: int = RESAMPLES, seed: int = 0) -> np.ndarray:
    """How often each bootstrap sample draws each sentence: (resamples, sentences), rows that sum to ``sentences``.

    One draw serves all runs, so that comparisons are paired by sentence (Koehn 2004).
    """
    generator = np.random.default_rng(seed)
    draws = generator.integers(0, sentences, (resamples, sentences))
    rows = np.arange(resamples)[:, None] * sentences
    counts = np.bincount((draws + rows).ravel(), minlength=resamples * sentences)
    return counts.reshape(resamples, sentences).astype(np.float32)


def resample_sentences(statistics_NK: np.ndarray, weights_RN: np.ndarray, scorer: Scorer) -> np.ndarray:
    """The metric of one run in each bootstrap sample of its sentences: (resamples,)."""
    return scorer.corpus((weights_RN @ statistics_NK.astype(np.float32)).astype(np.float64))


@dataclass(frozen=True)
class Difference:
    """Arm minus baseline, in the metric's own unit.

    ``p`` is two-sided against no difference; ``p_worse`` one-sided against "loses the margin or more", None
    where no margin is asked for. ``seeds_resampled`` is False where both arms have a single run: then the
    interval knows the sentences only, and says nothing of another training.
    """

    value: float
    low: float
    high: float
    p: float
    p_worse: float | None
    seeds_resampled: bool


def compare(
    arm: Sequence[float],
    baseline: Sequence[float],
    arm_SR: np.ndarray | None,
    baseline_SR: np.ndarray | None,
    *,
    higher_is_better: bool,
    margin: float | None = None,
    confidence: float = CONFIDENCE,
    seed: int = 0,
) -> Difference | None:
    """Tests one difference of means with seeds and sentences resampled together; None where nothing can be said.

    ``arm`` and ``baseline`` are the metrics of the runs; ``arm_SR`` and ``baseline_SR`` (runs, resamples) the
    same runs over common bootstrap samples of sentences, None where no sentence statistics were stored. Nothing can
    be said of single runs without sentence statistics, and where neither seeds nor sentences make any difference.

    Each bootstrap replicate draws sentences and, within each arm, runs with replacement: the pigeonhole
    bootstrap of crossed factors (Owen 2007, arXiv 0711.1402). Three corrections make it honest: deviations
    between runs are widened by sqrt(n / (n - 1)), without which three seeds understate their variance by a third;
    the interaction of runs and sentences, which that bootstrap counts three times, is taken out twice, though never
    below what runs or sentences alone give; and the standard error is read against Student's t with
    Satterthwaite's (1946) degrees of freedom. An arm with one run takes the spread of the other; of arms with
    different numbers of runs the few must not pass for steady by chance, so that the pooled spread counts where
    it gives more.
    """
    arms = [np.asarray(arm, dtype=float), np.asarray(baseline, dtype=float)]
    spreads = [float(np.var(values, ddof=1)) if len(values) > 1 else None for values in arms]
    known = [spread for spread in spreads if spread is not None]
    with_sentences = arm_SR is not None and baseline_SR is not None
    if not known and not with_sentences:
        return None
    generator = np.random.default_rng(seed)
    resamples = arm_SR.shape[1] if with_sentences and arm_SR is not None else RESAMPLES
    replicates = []
    for values, sampled_SR, spread in zip(arms, (arm_SR, baseline_SR), spreads, strict=True):
        count = len(values)
        table_SR = sampled_SR if with_sentences and sampled_SR is not None else np.repeat(values[:, None], resamples, 1)
        centre_R = table_SR.mean(0)
        if count > 1:
            chosen_RS = generator.integers(0, count, (resamples, count))
            drawn_R = table_SR[chosen_RS, np.arange(resamples)[:, None]].mean(1)
            centre_R = centre_R + math.sqrt(count / (count - 1)) * (drawn_R - centre_R)
        elif spread is None and known:
            centre_R = centre_R + math.sqrt(known[0]) * generator.standard_normal(resamples)
        replicates.append(centre_R)
    variance = float(np.var(replicates[0] - replicates[1], ddof=1))
    runs_alone = sum(spread / len(values) for spread, values in zip(spreads, arms, strict=True) if spread)
    if with_sentences and arm_SR is not None and baseline_SR is not None:
        sentences_alone = float(np.var(arm_SR.mean(0) - baseline_SR.mean(0), ddof=1))
        excess = 2.0 * (_interaction(arm_SR) + _interaction(baseline_SR))
        variance = max(variance - excess, runs_alone, sentences_alone)
    if len(known) == 2:
        variance += max(0.0, _pooled(arms) * sum(1 / len(values) for values in arms) - runs_alone)
    error = math.sqrt(variance)
    if error <= 1e-12 * max(1.0, float(np.abs(arms[0]).max())):  # nothing varied: there is no scale to judge by
        return None
    value = float(arms[0].mean() - arms[1].mean())
    freedom = _freedom(variance, arms, known)
    critical = student_quantile(0.5 + confidence / 2, freedom)
    p_worse = None
    if margin is not None:
        gain = value if higher_is_better else -value
        p_worse = student_tail((gain + margin) / error, freedom)
    return Difference(
        value=value,
        low=value - critical * error,
        high=value + critical * error,
        p=min(1.0, 2.0 * student_tail(abs(value) / error, freedom)),
        p_worse=p_worse,
        seeds_resampled=bool(known),
    )


def _interaction(sampled_SR: np.ndarray) -> float:
    """The part of an arm's variance that stems from runs doing well on different sentences; 0 for a single run.

    Resampling the same sentences for all runs moves them together, but for this part.
    """
    count = len(sampled_SR)
    apart_SR = sampled_SR - sampled_SR.mean(0)
    return float(apart_SR.var(1, ddof=1).mean()) / (count - 1) if count > 1 else 0.0


def _pooled(arms: Sequence[np.ndarray]) -> float:
    """The variance of a run, estimated from all arms as if it were the same in each."""
    squares = sum(float(((values - values.mean()) ** 2).sum()) for values in arms)
    return squares / sum(len(values) - 1 for values in arms)


def _freedom(variance: float, arms: Sequence[np.ndarray], known: Sequence[float]) -> float:
    """Satterthwaite's degrees of freedom: those of the seeds, more where sentences make most of the variance."""
    many = 1e6  # the sentences, of which there are hundreds, count as normal
    if not known:
        return many
    if len(known) == 1:
        runs = max(map(len, arms))
        part, fraction = known[0] * sum(1 / len(values) for values in arms), float(runs - 1)
        squares = part**2 / fraction
    else:
        parts = [float(np.var(values, ddof=1)) / len(values) for values in arms]
        squares = sum(part**2 / (len(values) - 1) for part, values in zip(parts, arms, strict=True))
    return many if squares <= 0 or variance <= 0 else min(many, max(1.0, variance**2 / squares))


def holm(p_values: Sequence[float]) -> list[float]:
    """Adjusted p-values of Holm (1979): below alpha with at most alpha chance of any false alarm among them."""
    count = len(p_values)
    adjusted = [0.0] * count
    highest = 0.0
    for rank, index in enumerate(sorted(range(count), key=p_values.__getitem__)):
        highest = max(highest, min(1.0, (count - rank) * p_values[index]))
        adjusted[index] = highest
    return adjusted


def pareto_front(costs: Sequence[float], gains: Sequence[float]) -> list[bool]:
    """Which points no other beats: none costs no more and gains no less, with one of the two strict."""
    order = sorted(range(len(costs)), key=lambda i: (costs[i], -gains[i]))
    front = [False] * len(costs)
    best = -math.inf
    for index in order:
        if gains[index] > best:
            best = gains[index]
            front[index] = True
        else:  # an equal twin of a point on the front is on it too
            front[index] = any(front[i] and costs[i] == costs[index] and gains[i] == gains[index] for i in order)
    return front
