"""A task that the user types brings a model and metrics for it."""

import pytest

from tfx.config.compose import change, compose
from tfx.errors import UserError

CSV = ["dataset=csv", "dataset.path=."]


@pytest.mark.parametrize(
    ("words", "model", "metrics"),
    [
        (["dataset.task=classification"], "encoder_tiny", ["accuracy", "f1_macro", "calibration_error"]),
        (
            ["dataset.task=classification", "dataset.predict=several"],
            "encoder_tiny",
            ["accuracy", "f1_micro", "f1_macro"],
        ),
        (
            ["dataset.task=classification", "dataset.predict=number"],
            "encoder_tiny",
            ["spearman", "pearson", "squared_error"],
        ),
        (["dataset.task=lm"], "gpt_nano", []),
        (["dataset.task=seq2seq"], "seq2seq_tiny", ["bleu", "chrf"]),
        (["dataset.task=lm", "model=gpt_small"], "gpt_small", []),
        (["dataset.task=classification", "dataset.metrics=[matthews]"], "encoder_tiny", ["matthews"]),
    ],
)
def test_a_task_brings_what_is_not_named(words, model, metrics):
    config = compose([*CSV, *words])
    assert (config.model.name, config.dataset.metrics) == (model, metrics)


def test_other_settings_stay():
    config = compose([*CSV, "dataset.task=classification", "model.width=64", "experiment=small", "optimizer.lr=0.5"])
    assert (config.model.width, config.optimizer.lr, config.schedule.name) == (64, 0.5, "linear")
    # A setting of the experiment for the model holds for the one that the task brings.
    assert config.model.dropout == compose([*CSV, "experiment=small"]).model.dropout


def test_a_data_set_of_the_task_keeps_its_own_metrics():
    config = compose(["dataset=mrpc", "dataset.task=classification"])
    assert config.dataset.metrics == compose(["dataset=mrpc"]).dataset.metrics
    assert change(config, ["seed=3"]).dataset.metrics == config.dataset.metrics


def test_what_is_predicted_needs_labels():
    with pytest.raises(UserError, match=r"dataset\.predict=number is for classification.*dataset\.task=classification"):
        compose([*CSV, "dataset.predict=number"])
