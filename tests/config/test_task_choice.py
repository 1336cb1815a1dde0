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


def test_data_bring_a_model_for_their_task():
    assert compose(["dataset=stdlib"]).model.name == "gpt_nano"
    assert compose(["dataset=kinds"]).model.family == "classification"
    assert compose(["dataset=normalize"]).model.name == "seq2seq_tiny"
    with pytest.raises(UserError, match="choose a model for it, such as model=gpt_nano"):
        compose(["dataset=stdlib", "model=seq2seq_tiny"])


def test_other_data_of_a_run_bring_the_metrics_of_their_task():
    run = compose(["dataset=kinds"])
    words = ["dataset=csv", "dataset.path=.", "dataset.task=classification", "dataset.label=label"]
    changed = change(run, words)
    assert changed.dataset.metrics == compose([*CSV, "dataset.task=classification"]).dataset.metrics
    assert changed.model == run.model
    assert change(run, [*words, "dataset.metrics=[matthews]"]).dataset.metrics == ["matthews"]


def test_texts_from_data_with_labels_bring_metrics_of_texts():
    words = ["dataset=kinds", "dataset.task=seq2seq", "dataset.format=csv", "dataset.path=."]
    assert compose(words).dataset.metrics == ["bleu", "chrf"]
    assert compose([*CSV, "dataset.task=seq2seq", "dataset.metrics=[exact_match]"]).dataset.metrics == ["exact_match"]
