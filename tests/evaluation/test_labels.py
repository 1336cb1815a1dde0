"""Metrics of labels and numbers against SciPy and plain loops, and against what a report makes of the rows."""

import json
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from tfx.errors import UserError
from tfx.evaluation.labels import check_label_metrics, label_metrics, label_rows, metrics_of
from tfx.model.architecture import Outputs
from tfx.record.metric_vocabulary import scorer
from tfx.tasks.contract import Answers


def answers_of(labels: int, truth: list[int], seed: int = 0) -> Answers:
    shares = np.random.default_rng(seed).dirichlet(np.full(labels, 0.4), size=len(truth))
    numbers = np.asarray(truth)
    loss = -np.log(shares[np.arange(len(truth)), numbers])
    return Answers(Outputs("one", tuple(map(str, range(labels)))), numbers, shares, loss)


def numbers_of(truth: list[float], said: list[float], offset: float = 3.0, scale: float = 2.0) -> Answers:
    sides = [np.asarray(side, dtype=np.float64)[:, None] for side in (truth, said)]
    loss = np.square((sides[1] - sides[0]) / scale)[:, 0]
    return Answers(Outputs("number", (), offset, scale), sides[0], sides[1], loss)


def f1_of(truth: list[int], said: list[int], label: int) -> float | None:
    """F1 by counting; None for a label that neither holds nor is said."""
    right = sum(own == other == label for own, other in zip(truth, said, strict=True))
    total = truth.count(label) + said.count(label)
    return 2 * right / total if total else None


@settings(max_examples=30, deadline=None)
@given(st.integers(2, 5), st.lists(st.integers(0, 4), min_size=1, max_size=30), st.integers(0, 1000))
def test_metrics_of_labels_are_those_of_plain_counting(labels, truth, seed):
    truth = [label % labels for label in truth]
    answers = answers_of(labels, truth, seed)
    said = answers.given.argmax(1).tolist()
    found = label_metrics(answers)
    assert found["accuracy"] == pytest.approx(np.mean([own == other for own, other in zip(truth, said, strict=True)]))
    each = [f1_of(truth, said, label) for label in range(labels)]
    assert found["f1_macro"] == pytest.approx(np.mean([value for value in each if value is not None]))
    if labels == 2:
        assert found["f1_binary"] == pytest.approx(each[1] or 0.0)
    # Matthews' correlation is Pearson's of the one-hot matrices, flattened and centred by column.
    held, guessed = (np.eye(labels)[side] for side in (truth, said))
    held, guessed = held - held.mean(0), guessed - guessed.mean(0)
    spread = math.sqrt((held**2).sum() * (guessed**2).sum())
    assert found["matthews"] == pytest.approx((held * guessed).sum() / spread if spread > 1e-12 else 0.0, abs=1e-9)


@settings(max_examples=30, deadline=None)
@given(st.integers(2, 4), st.lists(st.integers(0, 3), min_size=1, max_size=40), st.integers(0, 1000))
def test_a_report_makes_the_same_metrics_of_the_rows_as_the_run(labels, truth, seed):
    answers = answers_of(labels, [label % labels for label in truth], seed)
    rows = [json.loads(json.dumps(row)) for row in label_rows(answers)]
    assert set(label_metrics(answers)) == set(metrics_of(answers.outputs))
    for name, value in label_metrics(answers).items():
        own = scorer(name)
        sums = np.sum([own.sentence(row) for row in rows], axis=0)
        assert float(own.corpus(sums)) == pytest.approx(value, abs=1e-9), name
    loss = scorer("loss")
    assert float(loss.corpus(np.sum([loss.sentence(row) for row in rows], axis=0))) == pytest.approx(
        answers.loss.mean(), abs=1e-4
    )


def test_calibration_error_is_the_mean_gap_of_fifteen_bins():
    answers = answers_of(3, [0, 1, 2, 1, 0, 2, 2, 1] * 25, seed=4)
    share, right = answers.given.max(1), answers.given.argmax(1) == answers.truth
    gap = 0.0
    for low in range(15):
        inside = (share >= low / 15) & (share < (low + 1) / 15)
        if inside.any():
            gap += inside.sum() * abs(share[inside].mean() - right[inside].mean())
    assert label_metrics(answers)["calibration_error"] == pytest.approx(gap / len(share), abs=1e-5)
    sure = Answers(answers.outputs, np.zeros(4, int), np.tile([1.0, 0.0, 0.0], (4, 1)), np.zeros(4))
    assert label_metrics(sure)["calibration_error"] == 0.0


def test_correlations_are_those_of_scipy_with_ties_and_offsets():
    rng = np.random.default_rng(1)
    truth = rng.integers(0, 6, size=80) + 1e4
    said = truth + rng.normal(size=80).round(1)
    found = label_metrics(numbers_of(truth, said, offset=1e4, scale=3.0))
    assert found["pearson"] == pytest.approx(stats.pearsonr(truth, said)[0], abs=1e-9)
    assert found["spearman"] == pytest.approx(stats.spearmanr(truth, said)[0], abs=1e-9)
    assert found["squared_error"] == pytest.approx(np.square(truth - said).mean())
    assert label_metrics(numbers_of([1, 2, 3], [5, 5, 5]))["pearson"] == 0.0


def test_metrics_of_several_labels_count_texts_and_labels():
    truth = np.asarray([[1, 0, 1], [0, 0, 0], [1, 1, 0]], dtype=bool)
    given_ = np.asarray([[0.9, 0.2, 0.4], [0.1, 0.3, 0.2], [0.7, 0.8, 0.1]])
    found = label_metrics(Answers(Outputs("several", ("a", "b", "c")), truth, given_, np.zeros(3)))
    assert found["accuracy"] == pytest.approx(2 / 3)
    assert found["f1_micro"] == pytest.approx(2 * 3 / (2 * 3 + 0 + 1))
    assert found["f1_macro"] == pytest.approx((1 + 1 + 0) / 3)


def test_f1_of_two_labels_is_refused_for_more():
    check_label_metrics(["f1_binary"], Outputs("one", ("a", "b")))
    with pytest.raises(UserError, match="f1_binary is of two labels, and the data has 3: name f1_macro"):
        check_label_metrics(["f1_binary"], Outputs("one", ("a", "b", "c")))
