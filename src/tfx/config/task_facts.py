"""What a config needs to know about each task. The task itself is the file of its name in `tfx.tasks`."""

from __future__ import annotations

from dataclasses import dataclass

from tfx.errors import UserError


@dataclass(frozen=True)
class TaskFacts:
    """``columns`` are the settings of `dataset` that name what a row has (null: nothing); ``texts`` are the columns of
    text that rows are kept in, and ``example`` is a model for the task.

    ``watchable`` are the metrics that exist during training; ``metrics`` those that `dataset.metrics` may name, None:
    those of generated text. ``decodes`` says whether its outputs are texts, for text metrics and beam search;
    ``is_stream`` whether its texts form one stream, any part of which is an example; ``spreads`` whether validation
    rows that are cut from the training split come from all of it, for it may be sorted by label. ``starts_from`` are
    the families of models that a model of the task can start from besides its own. ``rows`` and ``input`` are the words
    for its training examples and for one input, ``empty`` those for the rows that `dataset.empty` is about, ``output``
    is the unit of throughput, and ``target`` what a loss is the mean over.
    """

    what: str
    columns: tuple[str, ...]
    texts: tuple[str, ...]
    example: str
    watchable: tuple[str, ...]
    decodes: bool
    is_stream: bool
    rows: str
    input: str
    empty: str = "pairs with an empty side"
    output: str = "output tokens"
    target: str = "a token"
    metrics: tuple[str, ...] | None = None
    starts_from: tuple[str, ...] = ()
    spreads: bool = False


def facts_of(family: str, what: object) -> TaskFacts:
    """The task of a family of models; raises `UserError`, which names the model, for one that no task uses."""
    if family not in TASKS:
        raise UserError(
            f"{what} is an encoder alone, without what a task needs on top: `tfx inspect` and `tfx export` read it, "
            "and init_from=… starts a classifier from it (dataset.task=classification)"
        )
    return TASKS[family]


# What `tfx.evaluation.labels` computes, by what is predicted (``dataset.predict``); the usual ones first.
LABEL_METRICS = {
    "one": ("accuracy", "f1_macro", "calibration_error", "f1_binary", "matthews"),
    "several": ("accuracy", "f1_micro", "f1_macro"),
    "number": ("spearman", "pearson", "squared_error"),
}

_ALL_LABEL_METRICS = tuple(dict.fromkeys(name for names in LABEL_METRICS.values() for name in names))

TASKS = {
    "seq2seq": TaskFacts(
        what="text to text",
        columns=("source", "target"),
        texts=("source", "target"),
        example="seq2seq_tiny",
        watchable=("loss", "perplexity"),
        decodes=True,
        is_stream=False,
        rows="pairs",
        input="a sentence",
    ),
    "lm": TaskFacts(
        what="a language model",
        columns=("text",),
        texts=("text",),
        example="gpt_nano",
        watchable=("loss", "perplexity", "bits_per_byte"),
        decodes=False,
        is_stream=True,
        rows="tokens",
        input="a token",
        metrics=(),
    ),
    "classification": TaskFacts(
        what="classification",
        columns=("text", "pair", "label"),
        texts=("text", "pair"),
        example="encoder_tiny",
        watchable=("loss", *_ALL_LABEL_METRICS),
        decodes=False,
        is_stream=False,
        rows="texts",
        input="a text",
        empty="rows with an empty text or label",
        output="texts",
        target="a text",
        metrics=_ALL_LABEL_METRICS,
        starts_from=("encoder",),
        spreads=True,
    ),
}


def metrics_of(task: str, predict: str) -> tuple[str, ...] | None:
    """The metrics that `dataset.metrics` may name, the usual ones first; None: those of generated text."""
    return LABEL_METRICS.get(predict) if TASKS[task].metrics else TASKS[task].metrics
