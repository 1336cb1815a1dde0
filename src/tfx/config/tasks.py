"""What a config has to know of each task. What a task does is in the file of its name in `tfx.tasks`."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class TaskFacts:
    """``columns`` are the settings of `dataset` that name what a row must have; ``example`` is a model for the task.

    ``watchable`` are the metrics of the loss, which are there while training. ``decodes`` says whether its outputs are
    texts, which text metrics score and a beam finds; ``is_stream`` whether its texts follow one another in one stream,
    of which any part is an example. ``rows`` and ``input`` are the words for its training examples
    and for one input at a time.
    """

    what: str
    columns: tuple[str, ...]
    example: str
    watchable: tuple[str, ...]
    decodes: bool
    is_stream: bool
    rows: str
    input: str


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
