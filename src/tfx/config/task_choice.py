"""What the task of the data brings with it: a model for it and its metrics, unless these are typed."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import chain

from omegaconf import DictConfig

from tfx.config.hydra_driver import compose_tree
from tfx.config.task_facts import LABEL_METRICS, TASKS, metrics_of

_OF_TEXT = ("bleu", "chrf")
_USUAL = 3  # metrics that a run has where none are named


def follow_task(composed: DictConfig, typed: Sequence[str]) -> DictConfig:
    """The tree composed again where the model is for another task than the data that the user ``typed``.

    The default model is for text to text. A file such as `dataset=csv` has the metrics of one task too, and the user
    may have typed another.
    """
    named = {word.lstrip("+").partition("=")[0] for word in typed}
    dataset = composed.get("dataset")
    if not named & {"dataset", "dataset.task", "dataset.predict"} or not isinstance(dataset, DictConfig):
        return composed
    task, predict, listed = dataset.get("task"), dataset.get("predict"), dataset.get("metrics")
    if task not in TASKS:
        return composed
    brought = []
    if "model" not in named and composed.model.get("family") != task:
        brought.append(f"model={TASKS[task].example}")
    known = metrics_of(task, predict)
    if known is None:  # of generated text, where others may be named
        known = (
            tuple(metric for metric in listed or () if metric not in chain.from_iterable(LABEL_METRICS.values()))
            or _OF_TEXT
        )
    if "dataset.metrics" not in named and not set(listed or ()) <= set(known):
        brought.append(f"dataset.metrics=[{','.join(known[:_USUAL])}]")
    return compose_tree([*brought, *typed]) if brought else composed
