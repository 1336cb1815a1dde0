"""Classification: a text or a pair of texts to one label, several labels, or a number, by an encoder.

A text stands between a begin and an end token. The second text of a pair follows, with an end token of its own (Devlin
2019, arXiv 1810.04805).
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import chain
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from tfx.config.schema import DatasetConfig, EvaluationConfig
from tfx.data.batching import bucket
from tfx.data.ragged import Arrays, Ragged, offsets_of
from tfx.data.store import scan
from tfx.data.tokenizer import Tokenizer
from tfx.errors import UserError
from tfx.model.architecture import Outputs
from tfx.model.batch import Batch
from tfx.model.transformer import Transformer, run_batch
from tfx.tasks.contract import UNKNOWN_TOKENS, Answers, Prompts, Split, Task, TimedWork, encoded, id_dtype, timed
from tfx.tasks.labels import numbers_of, numbers_of_labels, outputs_of

if TYPE_CHECKING:
    from datasets import Dataset

    from tfx.data.sources import Corpus


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

    def scored_rows(self, context: int) -> int:
        return len(self)

    def places(self, rows: np.ndarray, context: int) -> np.ndarray:
        return rows

    @property
    def outputs(self) -> Outputs:
        return self.given

    def answers(self, logits: np.ndarray) -> Answers:
        """Probabilities, or numbers, averaged over the windows of each text."""
        assert self.truth is not None
        given, truth = probabilities(self.given, logits), self.truth
        if self.owner is not None:
            given, truth = _averaged(given, self.owner), truth[_firsts(self.owner)]
        if self.given.predicts == "number":
            given = given * self.given.scale + self.given.offset
            truth = truth * self.given.scale + self.given.offset
        return Answers(self.given, truth, given, _losses(self.given, given, truth))

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
            return _logits(model, part, np.asarray([place]), tokenizer)

        def all_of_them() -> None:
            for rows in part.in_order(config.batch_tokens, model.architecture.context):
                _logits(model, part, rows, tokenizer)

        return TimedWork(one, count, 1, device, lambda seconds: (count, timed(all_of_them, device)[1]))

    def attended(
        self, predictions: Sequence[dict[str, Any]], tokenizer: Tokenizer, count: int
    ) -> list[tuple[str | None, str]]:
        return [(" ".join(filter(None, (row["source"], row.get("pair")))), "") for row in predictions[:count]]


@dataclass(frozen=True)
class Classification(Task):
    """Texts in, labels out; ``given`` are the outputs of the models."""

    given: Outputs | None = None

    # A word is one token wherever it stands.
    word_initial_space = True

    def outputs(self, corpora: Sequence[tuple[DatasetConfig, Corpus]], notes: list[str]) -> Outputs:
        return outputs_of(corpora, notes)

    def giving(self, outputs: Outputs | None) -> Classification:
        return Classification(outputs)

    def tokenize(self, dataset: Dataset, tokenizer: Tokenizer, arrays: Arrays, *, is_part: bool = False) -> None:
        for column in ("text", "pair"):
            arrays.append(column, np.zeros(0, id_dtype(tokenizer)))
            arrays.append(f"{column}_offsets", np.zeros(1, np.int64))
            end = 0
            for _, ids in encoded(dataset, column, tokenizer):
                part = Ragged.from_lists(ids, id_dtype(tokenizer))
                arrays.append(column, part.values)
                arrays.append(f"{column}_offsets", part.ends + end)
                end += len(part.values)
        names: dict[str, int] = {}
        arrays.append("labels", np.zeros(0, np.int32))
        arrays.append("labels_offsets", np.zeros(1, np.int64))
        end = 0
        for rows in scan(dataset, ["labels"]):
            own = [[names.setdefault(label, len(names)) for label in labels] for labels in rows["labels"]]
            arrays.append("labels", np.asarray(list(chain.from_iterable(own)), dtype=np.int32))
            arrays.append("labels_offsets", offsets_of([len(labels) for labels in own])[1:] + end)
            end += sum(map(len, own))
        arrays.append("names", np.frombuffer(json.dumps(list(names)).encode(), dtype=np.uint8))

    def split(
        self,
        arrays: dict[str, np.ndarray],
        name: str,
        dataset: Dataset,
        config: DatasetConfig,
        tokenizer: Tokenizer,
        context: int,
        notes: list[str],
    ) -> Texts:
        counts: Counter[str] = Counter()
        texts = self._texts(arrays, name, config, tokenizer, context, counts)
        notes += [f"{name}: {count:,} {what}" for what, count in counts.items() if count]
        return replace(self._weighted(texts, config) if name == "train" else texts, dataset=dataset)

    def part(
        self,
        arrays: dict[str, np.ndarray],
        config: DatasetConfig,
        tokenizer: Tokenizer,
        context: int,
        counts: Counter[str],
    ) -> Texts | None:
        texts = self._texts(arrays, "train", config, tokenizer, context, counts)
        return self._weighted(texts, config) if len(texts) else None

    def _texts(
        self,
        arrays: dict[str, np.ndarray],
        name: str,
        config: DatasetConfig,
        tokenizer: Tokenizer,
        context: int,
        counts: Counter[str],
    ) -> Texts:
        assert self.given is not None
        first, second = (Ragged.from_offsets(arrays[side], arrays[f"{side}_offsets"]) for side in ("text", "pair"))
        texts = Texts(self.given, first, second if self.given.pairs else None, None)
        counts[UNKNOWN_TOKENS] += sum(int((ids == tokenizer.unk).sum()) for ids in texts.tokens_of_all)
        texts.truth = _truth(self.given, arrays, name, config)
        fitted = _in_windows(texts, context) if self.given.windows else _cut(texts, context)
        changed = int((texts.positions > context).sum())
        if fitted.owner is not None:
            counts[f"texts over {context} tokens read in windows: {len(fitted):,} windows in all"] += changed
        else:
            counts[f"texts cut to {context} tokens"] += changed
        return fitted

    def _weighted(self, texts: Texts, config: DatasetConfig) -> Texts:
        """With what each row counts in training: its share of the label's rows, if rare labels are to count more."""
        if config.class_weights == "none":
            return texts
        assert texts.truth is not None
        rows = np.bincount(texts.truth, minlength=texts.given.count)
        weights = len(texts) / (np.count_nonzero(rows) * np.maximum(rows, 1))
        return replace(texts, counts=weights[texts.truth].astype(np.float32))

    def read(self, text: str) -> str:
        return text.strip()

    def generate(
        self, model: Transformer, tokenizer: Tokenizer, prompts: Prompts, config: EvaluationConfig, seed: int
    ) -> list[str]:
        outputs = model.architecture.outputs
        assert outputs is not None
        found = classify(model, tokenizer, prompts, config)
        return ["" if row is None else one_line(named(outputs, row)) for row in found]


TASK = Classification()


def classify(
    model: Transformer, tokenizer: Tokenizer, prompts: Prompts, config: EvaluationConfig
) -> list[np.ndarray | None]:
    """Probabilities of the labels, or a number, for each text (C,); None for an empty text.

    The two texts of a pair are separated by a tab.
    """
    outputs, context = model.architecture.outputs, model.architecture.context
    assert outputs is not None
    full = [row for row, text in enumerate(prompts.texts) if text.strip()]
    sides = [[prompts.ids[row] for row in full]]
    if outputs.pairs:
        parts = [_two_texts(prompts, row) for row in full]
        sides = [tokenizer.encode([pair[side] for pair in parts]) for side in range(2)]
    first, *second = (Ragged.from_lists(side, np.int64) for side in sides)
    texts = Texts(outputs, first, second[0] if second else None, None)
    for row, length in zip(full, texts.positions, strict=True):
        if length > context and not outputs.windows:
            prompts.say(row, f"of {length:,} tokens {context:,} are read, the model's context; the rest is cut")
    texts = _in_windows(texts, context) if outputs.windows else _cut(texts, context)
    given = np.zeros((len(texts), outputs.count))
    for rows in texts.in_order(config.batch_tokens, context):
        given[rows] = probabilities(outputs, _logits(model, texts, rows, tokenizer).cpu().numpy())
    if texts.owner is not None:
        given = _averaged(given, texts.owner)
    found: list[np.ndarray | None] = [None] * len(prompts.texts)
    for row, values in zip(full, given * outputs.scale + outputs.offset, strict=True):
        found[row] = values
    return found


def _two_texts(prompts: Prompts, row: int) -> list[str]:
    parts = [part.strip() for part in prompts.texts[row].split("\t")]
    if len(parts) != 2 or not all(parts):
        raise UserError(
            f"line {prompts.first + row + 1}: the model reads pairs of texts, and this line is none: separate the two "
            "texts by one tab"
        )
    return parts


@torch.inference_mode()
def _logits(model: Transformer, texts: Texts, rows: np.ndarray, tokenizer: Tokenizer) -> Tensor:
    batch = collate_texts(texts, rows, tokenizer).to(model.embedding.weight.device)
    return model.project(run_batch(model, batch)).squeeze(1).float()


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


def _truth(outputs: Outputs, arrays: dict[str, np.ndarray], split: str, config: DatasetConfig) -> np.ndarray:
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


def _cut(texts: Texts, context: int) -> Texts:
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


def _in_windows(texts: Texts, context: int) -> Texts:
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


def _averaged(given: np.ndarray, owner: np.ndarray) -> np.ndarray:
    """The mean of the windows (rows, C) of each text."""
    firsts = _firsts(owner)
    return np.add.reduceat(given, firsts) / np.diff(np.append(firsts, len(owner)))[:, None]
