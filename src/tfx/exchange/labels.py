"""The labels of a classifier, as config.json of `transformers` says them."""

from __future__ import annotations

from typing import Any

from tfx.model.architecture import Outputs

# The value of ``problem_type`` for each of `Outputs.predicts`.
PROBLEMS = {
    "one": "single_label_classification",
    "several": "multi_label_classification",
    "number": "regression",
}


def config_of_labels(outputs: Outputs) -> dict[str, Any]:
    """Labels by the number of their output, and back; a number has one output of their default name."""
    labels = outputs.labels or ("LABEL_0",)
    return {
        "problem_type": PROBLEMS[outputs.predicts],
        "id2label": {str(number): label for number, label in enumerate(labels)},
        "label2id": {label: number for number, label in enumerate(labels)},
    }
