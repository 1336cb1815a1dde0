"""The contract of a task: how its text becomes tokens and batches, how its model runs, and what is shown.

A task is one file with a `Task` and the `Split` that it prepares, and its entry in `tfx.config.task_facts`. All other
code uses these two, and never asks which task it is.
"""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import torch

from tfx.data.ragged import Ragged
from tfx.data.store import scan
from tfx.errors import UserError
from tfx.processes.group import ALONE, Group

UNKNOWN_TOKENS = "tokens that the tokenizer does not know"

if TYPE_CHECKING:
    from datasets import Dataset

    from tfx.config.schema import DatasetConfig, EvaluationConfig
    from tfx.data.corpus import Corpus
    from tfx.data.ragged import Arrays
    from tfx.data.tokenizer import Tokenizer
    from tfx.model.architecture import Outputs
    from tfx.model.batch import Batch
    from tfx.model.transformer import Transformer


@dataclass(frozen=True)
class TimedWork:
    """How to time a model: ``one(i)`` decodes the i-th of ``count`` inputs, which has ``units`` units.

    ``throughput(seconds)`` gives output tokens and the seconds that they took; ``seconds`` are the times per unit of
    each input, measured before.
    """

    one: Callable[[int], Any]
    count: int
    units: int
    device: torch.device
    throughput: Callable[[list[float]], tuple[int, float]]


@dataclass(frozen=True)
class Prompts:
    """Texts with their ids. ``first`` is the number of the first of them; ``note`` hears what is done to one.

    All outputs begin with ``prefix``. With ``best``, the record of a prompt holds that many outputs.
    """

    texts: Sequence[str]
    ids: list[list[int]]
    first: int
    note: Callable[[str], Any]
    prefix: str = ""
    best: int | None = None

    def say(self, row: int, what: str) -> None:
        """Notes what is done to the prompt of a row."""
        self.note(f"line {self.first + row + 1}: {what}")


@dataclass(frozen=True)
class ScoredText:
    """Bytes of the text of a split's targets, and by scored row the bytes of unknown tokens."""

    text_bytes: int
    unknown_bytes: np.ndarray


@dataclass(frozen=True)
class Retold:
    """A batch in another tokenizer's tokens, and which targets of both spell the same spans of text.

    ``own`` and ``other`` (B, T) have the number of the span of each target, of the batch and of the other one: from 0
    to ``count``, the same in both, or -1 for none. They are None where the outputs are no tokens, so that the targets
    of both are the same.
    """

    batch: Batch
    own_BT: torch.Tensor | None = None
    other_BT: torch.Tensor | None = None
    count: int = 0


@dataclass(frozen=True)
class Answers:
    """What a classifier answers to N texts, what is right, and the loss of each (N,).

    ``given`` are probabilities of the labels (N, C), or numbers (N, 1). ``truth`` are the right labels by number (N,),
    for several at once whether each holds (N, C), or the right numbers (N, 1). ``depth`` is the number of blocks (N,)
    that each text took, where texts leave the model early.
    """

    outputs: Outputs
    truth: np.ndarray
    given: np.ndarray
    loss: np.ndarray
    depth: np.ndarray | None = None


class Split(ABC):
    """A tokenized split. Rows are its examples, or the starts of windows of a stream."""

    @abstractmethod
    def __len__(self) -> int:
        """Examples, or tokens of a stream."""

    @property
    def size(self) -> int | None:
        """Its length, or None if it is not known."""
        return len(self)

    @property
    def has_one_shape(self) -> bool:
        """Whether all training batches have the same rows and positions."""
        return False

    # --- batches --------------------------------------------------------------------------------------

    @abstractmethod
    def epoch(self, batch_tokens: int, context: int, rng: np.random.Generator) -> list[np.ndarray]:
        """The rows of each batch of one epoch, in random order. Raises `UserError` if there is too little data."""

    @abstractmethod
    def in_order(self, batch_tokens: int, context: int) -> Iterator[np.ndarray]:
        """The rows of batches that hold every example once, in the order that pads least."""

    @abstractmethod
    def collate(self, rows: np.ndarray, context: int, tokenizer: Tokenizer) -> Batch:
        """The given rows as one batch."""

    def lengths(self, batches: Sequence[np.ndarray]) -> np.ndarray | None:
        """The mean length of the examples of each batch; None if all have one length."""
        return None

    def shortest(self, context: int) -> int | None:
        """The positions that its shortest row takes in a training batch; None if it is not known."""
        return None

    def most_rows(self, batch_tokens: int, context: int) -> float | None:
        """What the mean number of rows in a training batch does not exceed; None if it is not known."""
        return None

    # --- scoring --------------------------------------------------------------------------------------

    @abstractmethod
    def scored_rows(self, context: int) -> int:
        """How many rows have their own score."""

    @abstractmethod
    def places(self, rows: np.ndarray, context: int) -> np.ndarray:
        """The numbers of rows among the scored ones."""

    def scored_text(self, tokenizer: Tokenizer, context: int) -> ScoredText | None:
        """The text of the targets, if its bytes are known."""
        return None

    @property
    def texts(self) -> Dataset | None:
        """Source texts and references by row, if outputs are scored as texts."""
        return None

    @property
    def outputs(self) -> Outputs | None:
        """What a model's outputs stand for, if they are no tokens: then those of each scored row are kept."""
        return None

    def answers(self, logits: np.ndarray, depth: np.ndarray | None = None) -> Answers:
        """What the kept outputs (scored rows, C) answer to each example; ``depth`` are the blocks of each row."""
        raise NotImplementedError

    def shown(self, answers: Answers) -> Iterator[dict[str, Any]]:
        """Source, reference and hypothesis of each example."""
        raise NotImplementedError

    def decode(
        self,
        model: Transformer,
        tokenizer: Tokenizer,
        config: EvaluationConfig,
        count: int,
        *,
        seed: int,
        progress: Callable[[int, int], Any] | None = None,
        group: Group = ALONE,
    ) -> list[str]:
        """The model's output for each of the first ``count`` rows, if outputs are scored as texts.

        Each process of a ``group`` decodes its share; the outputs of the others are empty.
        """
        raise NotImplementedError

    # --- what others look at --------------------------------------------------------------------------

    @property
    @abstractmethod
    def tokens_of_all(self) -> Iterator[np.ndarray]:
        """Arrays with every token of the split, each with a part of them."""

    @property
    def longest(self) -> int:
        """Positions of the longest example, begin or end token included; 0 if windows are cut to fit."""
        return 0

    @abstractmethod
    def timed_work(self, model: Transformer, tokenizer: Tokenizer, config: EvaluationConfig) -> TimedWork:
        """How to time a model on the first ``latency_inputs`` inputs."""

    @abstractmethod
    def attended(
        self, predictions: Sequence[dict[str, Any]], tokenizer: Tokenizer, count: int
    ) -> list[tuple[str | None, str]]:
        """Source (None: there is none) and text of ``count`` inputs whose attention is kept."""


class Task(ABC):
    """What differs between tasks."""

    # The value of ``trainer.label_smoothing=null``.
    label_smoothing: ClassVar[float] = 0.0
    # Whether words are tokens with the space before them, also at the start of a text.
    word_initial_space: ClassVar[bool] = False

    def outputs(self, corpora: Sequence[tuple[DatasetConfig, Corpus]], notes: list[str]) -> Outputs | None:
        """What a model's outputs stand for, if they are no tokens; raises `UserError` for data that cannot tell."""
        return None

    def giving(self, outputs: Outputs | None) -> Task:
        """The task for models with these outputs."""
        return self

    @abstractmethod
    def tokenize(self, dataset: Dataset, tokenizer: Tokenizer, arrays: Arrays, *, is_part: bool = False) -> None:
        """Writes the arrays of a split, or of a part of one."""

    @abstractmethod
    def split(
        self,
        arrays: dict[str, np.ndarray],
        name: str,
        dataset: Dataset,
        config: DatasetConfig,
        tokenizer: Tokenizer,
        context: int,
        notes: list[str],
    ) -> Split:
        """The split of these arrays, for a model of this context; ``notes`` say what that changes.

        Raises `UserError` if nothing is left to train on.
        """

    @abstractmethod
    def part(
        self,
        arrays: dict[str, np.ndarray],
        config: DatasetConfig,
        tokenizer: Tokenizer,
        context: int,
        counts: Counter[str],
    ) -> Split | None:
        """What can be trained on of the arrays of a part of the training split; None if that is nothing.

        ``counts`` are added to: how many rows or tokens something is said of, in the words of the note.
        """

    def unlabelled(self, texts: Dataset) -> Dataset:
        """Texts without references, in the column ``text``, as rows that `tokenize` reads; what is no input is made up.

        Raises `UserError` where only a technique can say what the targets are.
        """
        raise UserError(
            "dataset.monolingual has no targets to learn from: have the teacher write them "
            "(technique.distill.sequence_level=true)"
        )

    def retold(self, batch: Batch, own: Tokenizer, other: Tokenizer, context: int) -> Retold:
        """A batch in the tokens of another tokenizer, cut to the context of a model that reads those.

        Raises `UserError` for a task whose targets are no texts.
        """
        raise UserError("the targets are no texts that another tokenizer could spell")

    def ends_documents(self, train: Dataset) -> bool:
        """Whether an end token follows each text of the training split."""
        return False

    def read(self, text: str) -> str:
        """A text as the data of the task are read: what the model has seen in training."""
        return text

    def sampled(self, model: Transformer, batch: Batch, tokenizer: Tokenizer, seed: int) -> Batch:
        """A training batch on the CPU with targets that the model itself draws, keyed by the seed; not labelled.

        Raises `UserError` for a task whose outputs are no texts.
        """
        raise UserError("the model writes no texts that it could learn from")

    @abstractmethod
    def generate(
        self, model: Transformer, tokenizer: Tokenizer, prompts: Prompts, config: EvaluationConfig, seed: int
    ) -> list[str]:
        """One output for each prompt; see `tfx.evaluation.generation.generate`."""

    def records(
        self, model: Transformer, tokenizer: Tokenizer, prompts: Prompts, config: EvaluationConfig, seed: int
    ) -> list[dict[str, Any]]:
        """The same as JSON objects, with what else the model says of each output."""
        return [{"output": output} for output in self.generate(model, tokenizer, prompts, config, seed)]


def encoded(dataset: Dataset, column: str, tokenizer: Tokenizer) -> Iterator[tuple[list[str], list[list[int]]]]:
    """The texts of a column with their ids, some rows at a time."""
    for batch in scan(dataset, [column]):
        yield batch[column], tokenizer.encode(batch[column])


def write_texts(dataset: Dataset, column: str, tokenizer: Tokenizer, arrays: Arrays) -> None:
    """Writes the ids of the texts of a column one after the other under its name, and where each of them ends."""
    arrays.append(column, np.zeros(0, id_dtype(tokenizer)))
    arrays.append(f"{column}_offsets", np.zeros(1, np.int64))
    end = 0
    for _, ids in encoded(dataset, column, tokenizer):
        part = Ragged.from_lists(ids, id_dtype(tokenizer))
        arrays.append(column, part.values)
        arrays.append(f"{column}_offsets", part.ends + end)
        end += len(part.values)


def id_dtype(tokenizer: Tokenizer) -> type[np.unsignedinteger[Any]]:
    """The narrowest type that holds the tokenizer's ids."""
    return np.uint16 if tokenizer.vocab_size <= 1 << 16 else np.uint32


def timed(work: Callable[[], Any], device: torch.device) -> tuple[Any, float]:
    """The result of ``work``, and the seconds until the device finished it."""
    start = time.perf_counter()
    result = work()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return result, time.perf_counter() - start
