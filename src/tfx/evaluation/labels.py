"""What predicted labels and numbers are worth: sums over texts, which `tfx.record.metric_vocabulary` makes metrics of.

Shapes: N texts, C labels.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from tfx.config.task_facts import LABEL_METRICS
from tfx.errors import UserError
from tfx.model.architecture import Outputs
from tfx.record.metric_vocabulary import BINS, DEPTH, scorer
from tfx.tasks.contract import Answers


def metrics_of(outputs: Outputs) -> list[str]:
    """The metrics that there are for such outputs; the one of two labels is of the second."""
    names = LABEL_METRICS[outputs.predicts]
    return [name for name in names if name != "f1_binary" or outputs.count == 2]


def check_label_metrics(names: list[str], outputs: Outputs) -> None:
    """Raises `UserError` for a metric that there is not for these labels."""
    if "f1_binary" in names and outputs.count != 2:
        raise UserError(f"f1_binary is of two labels, and the data has {outputs.count:,}: name f1_macro")


def label_metrics(answers: Answers) -> dict[str, float]:
    """All metrics of answers by name; what a report makes of `label_rows` is the same."""
    return {name: float(scorer(name).corpus(_sums(name, answers))) for name in _names(answers)}


def label_rows(answers: Answers) -> list[dict[str, Any]]:
    """For each text its loss, and for each metric what the statistics of `tfx.record.metric_vocabulary` need."""
    columns = {name: _by_text(name, answers) for name in _names(answers)}
    rows = []
    for number, loss in enumerate(answers.loss):
        rows.append({"nll": round(float(loss), 4), "targets": 1} | {name: own[number] for name, own in columns.items()})
    return rows


def _names(answers: Answers) -> list[str]:
    return [*metrics_of(answers.outputs), *([] if answers.depth is None else [DEPTH])]


def _sums(name: str, answers: Answers) -> np.ndarray:
    """The sums over all texts that the scorer of a metric reads."""
    count = float(len(answers.loss))
    if name in ("f1_macro", "matthews"):
        held, guessed = _one_hot(answers)
        return np.concatenate([held.sum(0), guessed.sum(0), (held & guessed).sum(0)]).astype(np.float64)
    if name == "calibration_error":
        share, right = _confidence(answers)
        place = np.minimum((share * BINS).astype(int), BINS - 1)
        sums = [np.bincount(place, weights, minlength=BINS) for weights in (share, right)]
        return np.concatenate([*sums, [count]])
    if name in ("pearson", "spearman"):
        given, truth = _pairs(name, answers)
        sums = [given.sum(), truth.sum(), given @ given, truth @ truth, given @ truth]
        return np.asarray([count, *sums])
    values = np.asarray(_by_text(name, answers), dtype=np.float64)
    return values.sum(0) if values.ndim == 2 else np.asarray([values.sum(), count])


def _by_text(name: str, answers: Answers) -> list[Any]:
    """What a row of `predictions.jsonl` holds for a metric."""
    if name in ("f1_macro", "matthews"):
        held, guessed = _one_hot(answers)
        numbers = ([np.flatnonzero(row).tolist() for row in side] for side in (held, guessed))
        return [[own, other, held.shape[1]] for own, other in zip(*numbers, strict=True)]
    if name in ("f1_binary", "f1_micro"):
        held, guessed = _one_hot(answers)
        if name == "f1_binary":
            held, guessed = held[:, 1:], guessed[:, 1:]
        counts = (held & guessed, ~held & guessed, held & ~guessed)
        return np.stack([count.sum(1) for count in counts], axis=1).tolist()
    if name == "calibration_error":
        share, right = _confidence(answers)
        return [[float(own), int(is_right)] for own, is_right in zip(share, right, strict=True)]
    if name in ("pearson", "spearman"):
        return np.stack(_pairs(name, answers), axis=1).tolist()
    if name == "squared_error":
        return np.square(answers.given - answers.truth)[:, 0].tolist()
    if name == DEPTH:
        assert answers.depth is not None
        return answers.depth.tolist()
    held, guessed = _one_hot(answers)
    return (held == guessed).all(1).astype(int).tolist()


def _one_hot(answers: Answers) -> tuple[np.ndarray, np.ndarray]:
    """Whether each label holds (N, C), and whether the model says so."""
    if answers.outputs.predicts == "several":
        return answers.truth, answers.given > 0.5
    numbers = np.arange(answers.outputs.count)
    return answers.truth[:, None] == numbers, answers.given.argmax(1)[:, None] == numbers


def _confidence(answers: Answers) -> tuple[np.ndarray, np.ndarray]:
    """The probability of each likeliest label, to six digits as it is kept, and whether the label is right."""
    return answers.given.max(1).round(6), (answers.given.argmax(1) == answers.truth).astype(np.float64)


def _pairs(name: str, answers: Answers) -> tuple[np.ndarray, np.ndarray]:
    """Numbers given and right, in units of their scale, or their ranks as shares of their count."""
    outputs = answers.outputs
    given, truth = ((side[:, 0] - outputs.offset) / outputs.scale for side in (answers.given, answers.truth))
    if name == "spearman":
        given, truth = _ranks(given), _ranks(truth)
    return given, truth


def _ranks(values: np.ndarray) -> np.ndarray:
    """The rank of each value as a share of their number; equal values share the mean of their ranks."""
    _, place, counts = np.unique(values, return_inverse=True, return_counts=True)
    last = np.cumsum(counts)
    return (last - (counts - 1) / 2)[place] / len(values)
