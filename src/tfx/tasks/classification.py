"""Classification: a text or a pair of texts to one label, several labels, or a number, by an encoder."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import chain
from typing import TYPE_CHECKING, Any

import numpy as np

from tfx.config.schema import DatasetConfig, EvaluationConfig
from tfx.data.ragged import Arrays, Ragged, offsets_of
from tfx.data.store import scan
from tfx.data.tokenizer import Tokenizer
from tfx.errors import UserError
from tfx.model.architecture import Outputs
from tfx.model.batch import Batch
from tfx.model.transformer import Transformer
from tfx.tasks.contract import UNKNOWN_TOKENS, Prompts, Retold, Task, write_texts
from tfx.tasks.labels import outputs_of
from tfx.tasks.texts import (
    Texts,
    averaged,
    collate_texts,
    cut,
    in_windows,
    logits_of,
    named,
    one_line,
    probabilities,
    truth_of,
)

if TYPE_CHECKING:
    from datasets import Dataset

    from tfx.data.corpus import Corpus


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
            write_texts(dataset, column, tokenizer, arrays)
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
        texts.truth = truth_of(self.given, arrays, name, config)
        fitted = in_windows(texts, context) if self.given.windows else cut(texts, context)
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

    def unlabelled(self, texts: Dataset) -> Dataset:
        """Lines of text, of pairs the two texts with a tab between them; each gets a label that counts for nothing."""
        from datasets import Dataset

        assert self.given is not None
        sides: list[tuple[str, str]] = []
        for rows in scan(texts, ["text"]):
            for text in rows["text"]:
                sides.append(_two_texts(text, "dataset.monolingual") if self.given.pairs else (text, ""))
        label = {"one": list(self.given.labels[:1]), "several": [], "number": ["0"]}[self.given.predicts]
        first, second = map(list, zip(*sides, strict=True))
        return Dataset.from_dict({"text": first, "pair": second, "labels": [label] * len(sides)})

    def retold(self, batch: Batch, own: Tokenizer, other: Tokenizer, context: int) -> Retold:
        assert batch.source_BS is not None
        sides: list[list[str]] = []
        for row in batch.source_BS.tolist():
            # A begin token, then each text with its end token.
            texts: list[list[int]] = [[]]
            for token in row[1:]:
                if token == own.eos:
                    texts.append([])
                else:
                    texts[-1].append(token)
            sides.append([own.decode(ids) for ids in texts[: 1 if batch.types_BS is None else 2]])
        encoded_sides = [Ragged.from_lists(other.encode(list(side)), np.int64) for side in zip(*sides, strict=True)]
        first, *second = encoded_sides
        told = cut(Texts(Outputs("number"), first, second[0] if second else None, None), context)
        return Retold(collate_texts(told, np.arange(len(told)), other))

    def read(self, text: str) -> str:
        return text.strip()

    def generate(
        self, model: Transformer, tokenizer: Tokenizer, prompts: Prompts, config: EvaluationConfig, seed: int
    ) -> list[str]:
        outputs = model.architecture.outputs
        assert outputs is not None
        found = classify(model, tokenizer, prompts, config)
        return ["" if row is None else one_line(named(outputs, row)) for row in found]

    def records(
        self, model: Transformer, tokenizer: Tokenizer, prompts: Prompts, config: EvaluationConfig, seed: int
    ) -> list[dict[str, Any]]:
        """The output, and the probability of each label; of an empty text nothing."""
        outputs = model.architecture.outputs
        assert outputs is not None
        rows: list[dict[str, Any]] = []
        for found in classify(model, tokenizer, prompts, config):
            rows.append({"output": None if found is None else named(outputs, found)})
            if found is not None and outputs.labels:
                shares = (round(float(share), 6) for share in found)
                rows[-1]["probabilities"] = dict(zip(outputs.labels, shares, strict=True))
        return rows


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
        parts = [_two_texts(prompts.texts[row], f"line {prompts.first + row + 1}") for row in full]
        sides = [tokenizer.encode([pair[side] for pair in parts]) for side in range(2)]
    first, *second = (Ragged.from_lists(side, np.int64) for side in sides)
    texts = Texts(outputs, first, second[0] if second else None, None)
    for row in full:
        if "\t" in prompts.texts[row].strip() and not outputs.pairs:
            prompts.say(row, "the model reads single texts: the tab is a part of this one")
    for row, length in zip(full, texts.positions, strict=True):
        if length > context and not outputs.windows:
            prompts.say(row, f"of {length:,} tokens {context:,} are read, the model's context; the rest is cut")
    texts = in_windows(texts, context) if outputs.windows else cut(texts, context)
    given = np.zeros((len(texts), outputs.count))
    for rows in texts.in_order(config.batch_tokens, context):
        given[rows] = probabilities(outputs, logits_of(model, texts, rows, tokenizer).cpu().numpy())
    if texts.owner is not None:
        given = averaged(given, texts.owner)
    found: list[np.ndarray | None] = [None] * len(prompts.texts)
    for row, values in zip(full, given * outputs.scale + outputs.offset, strict=True):
        found[row] = values
    return found


def _two_texts(text: str, where: str) -> tuple[str, str]:
    """The two texts of a line, with a tab between them, or in a JSON object as ``text`` and ``pair``."""
    parts: list[Any] = text.split("\t")
    if len(parts) != 2 and text.lstrip().startswith("{"):
        try:
            record = json.loads(text)
            parts = [record.get("text"), record.get("pair")]
        except ValueError:
            parts = []
    stripped = [part.strip() for part in parts if isinstance(part, str) and part.strip()]
    if len(stripped) != 2:
        raise UserError(
            f"{where}: the model reads pairs of texts, and this line is none: separate the two texts by one tab, or "
            'write {"text": …, "pair": …}'
        )
    return stripped[0], stripped[1]
