"""Texts with their targets, as a classifier reads them: rows of tokens, batches of them, and answers.

A text stands between a begin and an end token. The second text of a pair follows, with an end token of its own (Devlin
2019, arXiv 1810.04805).
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import chain
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from tfx.config.schema import DatasetConfig, EvaluationConfig
from tfx.data.batching import bucket, most_rows
from tfx.data.ragged import Ragged
from tfx.data.store import scan
from tfx.data.tokenizer import Tokenizer
from tfx.errors import UserError
from tfx.model.architecture import Outputs
from tfx.model.batch import Batch
from tfx.model.early_exit import label_logits
from tfx.model.transformer import Transformer
from tfx.tasks.contract import Answers, Split, TimedWork, timed
from tfx.tasks.labels import numbers_of, numbers_of_labels

if TYPE_CHECKING:
    from datasets import Dataset


@dataclass
class Texts(Split):
    """Tokenized texts without begin and end tokens; ``second`` are those of pairs.

    Rows are texts, or windows of texts, each of the example ``owner`` (None: row i is of example i). ``truth`` are the
    targets of the rows: numbers of labels (N,), or values (N, C), which are numbers in units of their scale; None:
    there are none. ``counts`` are what the rows count in training.
    """

    given: Outputs
    first: Ragged
    second: Ragged | None
    truth: np.ndarray | None
    counts: np.ndarray | None = None
    owner: np.ndarray | None = None
    dataset: Dataset | None = None

    def __len__(self) -> int:
        return len(self.first)

    @cached_property
    def positions(self) -> np.ndarray:
        """The tokens of each row, begin and end tokens included."""
        lengths = self.first.lengths + 2
        return lengths if self.second is None else lengths + self.second.lengths + 1

    def epoch(self, batch_tokens: int, context: int, rng: np.random.Generator) -> list[np.ndarray]:
        order = rng.permutation(len(self))
        batches = self._bucketed(batch_tokens, order)
        return [batches[i] for i in rng.permutation(len(batches))]

    def in_order(self, batch_tokens: int, context: int) -> Iterator[np.ndarray]:
        yield from self._bucketed(batch_tokens, np.arange(len(self)))

    def _bucketed(self, batch_tokens: int, order: np.ndarray) -> list[np.ndarray]:
        return bucket(self.positions, np.zeros_like(self.positions), batch_tokens, order)

    def collate(self, rows: np.ndarray, context: int, tokenizer: Tokenizer) -> Batch:
        return collate_texts(self, rows, tokenizer)

    def lengths(self, batches: Sequence[np.ndarray]) -> np.ndarray:
        return np.asarray([self.positions[rows].mean() for rows in batches])

    def shortest(self, context: int) -> int:
        return int(self.positions.min())

    def most_rows(self, batch_tokens: int, context: int) -> float:
        return most_rows(self.positions, batch_tokens)

    def scored_rows(self, context: int) -> int:
        return len(self)

    def places(self, rows: np.ndarray, context: int) -> np.ndarray:
        return rows

    @property
    def outputs(self) -> Outputs:
        return self.given

    def answers(self, logits: np.ndarray, depth: np.ndarray | None = None) -> Answers:
        """Probabilities, or numbers, and blocks, averaged over the windows of each text."""
        assert self.truth is not None
        given, truth = probabilities(self.given, logits), self.truth
        if self.owner is not None:
            given, truth = averaged(given, self.owner), truth[_firsts(self.owner)]
            depth = None if depth is None else averaged(depth[:, None], self.owner)[:, 0]
        if self.given.predicts == "number":
            given = given * self.given.scale + self.given.offset
            truth = truth * self.given.scale + self.given.offset
        return Answers(self.given, truth, given, _losses(self.given, given, truth), depth)

    def shown(self, answers: Answers) -> Iterator[dict[str, Any]]:
        assert self.dataset is not None
        number = 0
        for rows in scan(self.dataset, ["text", "pair", "labels"]):
            for text, pair, labels in zip(rows["text"], rows["pair"], rows["labels"], strict=True):
                source = {"source": text, "pair": pair} if self.second is not None else {"source": text}
                reference = labels if self.given.predicts == "several" else labels[0]
                hypothesis = named(self.given, answers.given[number])
                yield {**source, "reference": reference, "hypothesis": hypothesis}
                number += 1

    @property
    def tokens_of_all(self) -> Iterator[np.ndarray]:
        return chain(self.first.pieces(), () if self.second is None else self.second.pieces())

    @property
    def longest(self) -> int:
        return int(self.positions.max(initial=0))

    def timed_work(self, model: Transformer, tokenizer: Tokenizer, config: EvaluationConfig) -> TimedWork:
        """One text at a time, and all of them in batches."""
        count = min(config.latency_inputs, len(self))
        part = replace(self, first=self.first.between(0, count), truth=None, counts=None, owner=None)
        part.second = None if self.second is None else self.second.between(0, count)
        device = model.embedding.weight.device

        def one(place: int) -> Tensor:
            return logits_of(model, part, np.asarray([place]), tokenizer)

        def all_of_them() -> None:
            for rows in part.in_order(config.batch_tokens, model.architecture.context):
                logits_of(model, part, rows, tokenizer)

        return TimedWork(one, count, 1, device, lambda seconds: (count, timed(all_of_them, device)[1]))

    def attended(
        self, predictions: Sequence[dict[str, Any]], tokenizer: Tokenizer, count: int
    ) -> list[tuple[str | None, str]]:
        return [(" ".join(filter(None, (row["source"], row.get("pair")))), "") for row in predictions[:count]]


@torch.inference_mode()
def logits_of(model: Transformer, texts: Texts, rows: np.ndarray, tokenizer: Tokenizer) -> Tensor:
    """The outputs (B, C) of a model for these rows, in fp32."""
    batch = collate_texts(texts, rows, tokenizer).to(model.embedding.weight.device)
    return label_logits(model, batch)[0].float()


def named(outputs: Outputs, given: np.ndarray) -> str | list[str] | float:
    """The likeliest label, the labels that hold rather than not, or the number, of what is given for a text (C,)."""
    if outputs.predicts == "number":
        return float(given[0])
    if outputs.predicts == "several":
        return [label for label, share in zip(outputs.labels, given, strict=True) if share > 0.5]
    return outputs.labels[int(given.argmax())]


def one_line(answer: str | list[str] | float) -> str:
    """An answer as a line: several labels as JSON, line ends inside a label as \\n."""
    if isinstance(answer, float):
        return f"{answer:.6g}"
    if isinstance(answer, list):
        return json.dumps(answer, ensure_ascii=False)
    return answer.replace("\\", "\\\\").replace("\r", "\\r").replace("\n", "\\n") if "\n" in answer else answer


def probabilities(outputs: Outputs, logits: np.ndarray) -> np.ndarray:
    """Probabilities of logits (N, C), in double precision; numbers in units of their scale stay as they are."""
    logits = logits.astype(np.float64)
    if outputs.predicts == "number":
        return logits
    if outputs.predicts == "several":
        return 1.0 / (1.0 + np.exp(-np.clip(logits, -700, 700)))
    shares = np.exp(logits - logits.max(1, keepdims=True))
    return shares / shares.sum(1, keepdims=True)


def collate_texts(texts: Texts, rows: np.ndarray, tokenizer: Tokenizer) -> Batch:
    """Pads the given rows into one batch."""
    lengths = texts.positions[rows]
    longest = int(lengths.max())
    source = np.full((len(rows), longest), tokenizer.pad, dtype=np.int64)
    types = None if texts.second is None else np.zeros((len(rows), longest), dtype=np.int64)
    source[:, 0] = tokenizer.bos
    for i, row in enumerate(rows):
        ids = texts.first[row]
        end = len(ids) + 1
        source[i, 1:end], source[i, end] = ids, tokenizer.eos
        if texts.second is not None and types is not None:
            others = texts.second[row]
            last = end + 1 + len(others)
            source[i, end + 1 : last], source[i, last] = others, tokenizer.eos
            types[i, end + 1 : last + 1] = 1
    real = int(lengths.sum())
    mask = None
    if real != source.size:
        mask = torch.from_numpy(np.arange(longest)[None, :] < lengths[:, None])
    truth = np.zeros(len(rows), dtype=np.int64) if texts.truth is None else texts.truth[rows]
    is_number_of_label = truth.ndim == 1
    target = truth if is_number_of_label else np.zeros(len(rows), dtype=np.int64)
    return Batch(
        target_in_BT=torch.zeros(len(rows), 0, dtype=torch.int64),
        target_out_BT=torch.from_numpy(target).unsqueeze(1),
        source_BS=torch.from_numpy(source),
        source_mask_BS=mask,
        rows=rows,
        tokens=real,
        positions=source.size,
        targets=len(rows),
        special=(tokenizer.pad, tokenizer.bos, tokenizer.eos),
        types_BS=None if types is None else torch.from_numpy(types),
        values_BC=None if is_number_of_label else torch.from_numpy(truth.astype(np.float32)),
        counts_B=None if texts.counts is None else torch.from_numpy(texts.counts[rows]),
    )


# --- targets ----------------------------------------------------------------------------------------


def truth_of(outputs: Outputs, arrays: dict[str, np.ndarray], split: str, config: DatasetConfig) -> np.ndarray:
    """The targets of the rows of a split. Raises `UserError` for a label that the model does not have."""
    names: list[str] = json.loads(arrays["names"].tobytes())
    labels = Ragged.from_offsets(arrays["labels"], arrays["labels_offsets"])
    row_of_label = np.repeat(np.arange(len(labels)), labels.lengths)
    _, first = np.unique(labels.values, return_index=True)
    rows = row_of_label[first]
    if outputs.predicts != "several" and (labels.lengths > 1).any():
        row = int((labels.lengths > 1).argmax())
        shown = ", ".join(names[number] for number in labels[row][:3])
        raise UserError(
            f"the {split} split of dataset '{config.name}', example {row + 1}, has {labels.lengths[row]} labels "
            f"({shown}): set dataset.predict=several"
        )
    if outputs.predicts == "number":
        numbers = numbers_of(config, split, names, rows)[labels.values]
        return ((numbers - outputs.offset) / outputs.scale).astype(np.float32)[:, None]
    numbers = numbers_of_labels(config, split, names, outputs.labels, rows)[labels.values]
    if outputs.predicts == "one":
        return numbers
    held = np.zeros((len(labels), outputs.count), dtype=bool)
    held[row_of_label, numbers] = True
    return held


def _losses(outputs: Outputs, given: np.ndarray, truth: np.ndarray) -> np.ndarray:
    """The loss of each text from the probabilities of its labels, or from its number in units of the scale."""
    if outputs.predicts == "number":
        return np.square((given - truth) / outputs.scale)[:, 0]
    tiny = np.finfo(np.float64).tiny
    if outputs.predicts == "one":
        return -np.log(np.maximum(given[np.arange(len(given)), truth], tiny))
    return -np.log(np.maximum(np.where(truth, given, 1.0 - given), tiny)).mean(1)


# --- long texts -------------------------------------------------------------------------------------


def cut(texts: Texts, context: int) -> Texts:
    """The texts cut to the model's context; of a pair the longer text first, until both are equally long."""
    rows = np.arange(len(texts))
    if texts.second is None:
        return replace(texts, first=texts.first.take(rows, context - 2))
    first, second, room = texts.first.lengths, texts.second.lengths, context - 3
    fits = first + second <= room
    half = room // 2
    kept = np.where(second <= half, room - second, np.where(first <= room - half, first, room - half))
    kept = np.where(fits, first, np.minimum(first, kept))
    return replace(
        texts,
        first=_to_lengths(texts.first, kept),
        second=_to_lengths(texts.second, np.minimum(second, room - kept)),
    )


def _to_lengths(texts: Ragged, lengths: np.ndarray) -> Ragged:
    return Ragged(texts.values, texts.starts, texts.starts + lengths)


def in_windows(texts: Texts, context: int) -> Texts:
    """Each long text as windows of the model's context, evenly spaced from its start to its end."""
    room, lengths = context - 2, texts.first.lengths
    if int(lengths.max(initial=0)) <= room:
        return texts
    windows = np.maximum(1, -(-lengths // room))
    owner = np.repeat(np.arange(len(texts)), windows)
    place = np.arange(len(owner)) - np.repeat(np.cumsum(windows) - windows, windows)
    spare = np.maximum(0, lengths - room)[owner]
    starts = texts.first.starts[owner] + np.rint(place * spare / np.maximum(1, windows - 1)[owner]).astype(np.int64)
    ends = np.minimum(starts + room, texts.first.ends[owner])
    truth = None if texts.truth is None else texts.truth[owner]
    return replace(texts, first=Ragged(texts.first.values, starts, ends), truth=truth, owner=owner)


def _firsts(owner: np.ndarray) -> np.ndarray:
    """The first window of each text."""
    return np.flatnonzero(np.diff(owner, prepend=-1))


def averaged(given: np.ndarray, owner: np.ndarray) -> np.ndarray:
    """The mean of the windows (rows, C) of each text."""
    firsts = _firsts(owner)
    return np.add.reduceat(given, firsts) / np.diff(np.append(firsts, len(owner)))[:, None]
