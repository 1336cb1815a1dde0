"""What a config needs to know about each task. The task itself is the file of its name in `tfx.tasks`."""

from __future__ import annotations

from dataclasses import dataclass

from tfx.errors import UserError


@dataclass(frozen=True)
class TaskFacts:
    """``columns`` are the settings of `dataset` that name what a row must have; ``example`` is a model for the task.

    ``watchable`` are the metrics from the loss, which exist during training. ``decodes`` says whether its outputs are
    texts, for text metrics and beam search; ``is_stream`` whether its texts form one stream, any part of which is an
    example. ``rows`` and ``input`` are the words for its training examples and for one input.
    """

    what: str
    columns: tuple[str, ...]
    example: str
    watchable: tuple[str, ...]
    decodes: bool
    is_stream: bool
    rows: str
    input: str


def facts_of(family: str, what: object) -> TaskFacts:
    """The task of a family of models; raises `UserError`, which names the model, for one that no task uses."""
    if family not in TASKS:
        raise UserError(
            f"{what} is an encoder alone, and no task uses one yet: only `tfx inspect` and `tfx export` read it"
        )
    return TASKS[family]


TASKS = {
    "seq2seq": TaskFacts(
        what="text to text",
        columns=("source", "target"),
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
        example="gpt_nano",
        watchable=("loss", "perplexity", "bits_per_byte"),
        decodes=False,
        is_stream=True,
        rows="tokens",
        input="a token",
    ),
}
