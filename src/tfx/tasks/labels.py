"""What the outputs of a classifier stand for: the labels of a training split in a fixed order, or scaled numbers."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import chain
from typing import TYPE_CHECKING

import numpy as np

from tfx.config.schema import DatasetConfig
from tfx.data.rows import where
from tfx.data.store import scan
from tfx.errors import UserError, suggest
from tfx.model.architecture import MAX_LABELS, Outputs

if TYPE_CHECKING:
    from datasets import Dataset

    from tfx.data.corpus import Corpus

# With fewer different labels than this, a column is taken for one of labels, however few rows there are.
_FEW = 50


def outputs_of(corpora: Sequence[tuple[DatasetConfig, Corpus]], notes: list[str]) -> Outputs:
    """The outputs for the training splits of all corpora.

    Raises `UserError` where they do not agree on what is predicted, for labels that are none, and for a streamed split
    whose labels are not named.
    """
    first = corpora[0][0]
    pairs, windows = first.pair is not None, first.long_texts == "windows"
    for config, _ in corpora[1:]:
        if (config.predict, config.pair is not None, config.long_texts) != (first.predict, pairs, first.long_texts):
            raise UserError(
                f"'{config.name}' and '{first.name}' of dataset.mix differ in predict, pair or long_texts: the corpora "
                "of a mixture have one kind of input and of output"
            )
    if pairs and windows:
        raise UserError("dataset.long_texts=windows is for single texts: pairs are cut (dataset.long_texts=cut)")
    return replace(_outputs(corpora, notes), pairs=pairs, windows=windows)


def _outputs(corpora: Sequence[tuple[DatasetConfig, Corpus]], notes: list[str]) -> Outputs:
    first = corpora[0][0]
    if first.predict == "number":
        return _scale(corpora)
    named = tuple(dict.fromkeys(chain.from_iterable(config.labels for config, _ in corpora)))
    if named:
        _check_named(first, named)
        return Outputs(first.predict, named)
    counts: Counter[str] = Counter()
    for config, corpus in corpora:
        if corpus.stream is not None:
            raise UserError(
                f"dataset '{config.name}' is streamed, so that its labels are not known before training: name them "
                "with dataset.labels=[…], or prepare the data with dataset.streaming=false"
            )
        own = _counted(corpus.splits["train"])
        _check_labels(config, own, len(corpus.splits["train"]))
        counts += own
    labels = in_order(counts)
    if len(labels) < 2 and first.predict == "one":
        valid = [corpus.splits["valid"] for _, corpus in corpora if "valid" in corpus.splits]
        others = any(set(_counted(split)) - set(labels) for split in valid)
        how = "those for validation have others: set another dataset.valid_fraction, or shuffle the rows of the file"
        raise UserError(
            f"all training texts of dataset '{first.name}' have the label '{_short(labels[0])}' ({where(first)}): "
            f"{how if others else 'there is nothing to tell apart; dataset.label names the column'}"
        )
    rare = [label for label in labels if counts[label] == 1]
    if rare:
        shown = ", ".join(f"'{_short(label)}'" for label in rare[:3]) + (", …" if len(rare) > 3 else "")
        notes.append(f"train: {len(rare):,} of {len(labels):,} labels have one text only: {shown}")
    return Outputs(first.predict, labels)


def in_order(labels: Sequence[str] | Counter[str]) -> tuple[str, ...]:
    """Labels in their order: numbers by value, words by the alphabet of Unicode."""
    try:
        return tuple(sorted(labels, key=lambda label: (float(label), label)))
    except ValueError:
        return tuple(sorted(labels))


def numbers_of(config: DatasetConfig, split: str, texts: Sequence[str], rows: np.ndarray) -> np.ndarray:
    """The numbers that texts spell; ``rows`` are the first rows that have them, for a message."""
    found = np.zeros(len(texts))
    for place, text in enumerate(texts):
        try:
            found[place] = float(text)
        except ValueError:
            found[place] = math.nan
        if not math.isfinite(found[place]):
            raise UserError(
                f"the {split} split of dataset '{config.name}', example {rows[place] + 1}: dataset.label="
                f"{config.label} is '{_short(text)}', which is no number: leave such rows out, or predict labels "
                "(dataset.predict=one)"
            )
    return found


def numbers_of_labels(
    config: DatasetConfig, split: str, names: Sequence[str], labels: Sequence[str], rows: np.ndarray
) -> np.ndarray:
    """The number of each name among the labels of a model; ``rows`` are the first rows that have them."""
    known = {label: number for number, label in enumerate(labels)}
    for name, row in zip(names, rows, strict=True):
        if name not in known:
            raise UserError(
                f"the {split} split of dataset '{config.name}', example {row + 1}: the label '{_short(name)}' is none "
                f"of the {len(labels):,} that the model has: give training texts with it, leave such rows out, or name "
                f"all labels with dataset.labels=[…]{suggest(_short(name), map(_short, labels))}"
            )
    return np.asarray([known[name] for name in names], dtype=np.int64)


def _scale(corpora: Sequence[tuple[DatasetConfig, Corpus]]) -> Outputs:
    parts = []
    for config, corpus in corpora:
        if corpus.stream is not None:
            raise UserError(
                f"dataset '{config.name}' is streamed, so that the scale of its numbers is not known before training: "
                "prepare the data with dataset.streaming=false"
            )
        texts = list(_labels(corpus.splits["train"]))
        parts.append(numbers_of(config, "train", texts, np.arange(len(texts))))
    numbers = np.concatenate(parts)
    with np.errstate(over="ignore", invalid="ignore"):
        mean, spread = float(numbers.mean()), float(numbers.std())
    if not (math.isfinite(mean) and math.isfinite(spread)):
        largest = numbers[np.abs(numbers).argmax()]
        raise UserError(
            f"the numbers of dataset '{corpora[0][0].name}' are too large to be scaled, as {largest:g} is: divide them"
        )
    if spread == 0:
        name = corpora[0][0].name
        raise UserError(
            f"all training texts of dataset '{name}' have the number {numbers[0]:g}: "
            "name another column with dataset.label"
        )
    return Outputs("number", (), mean, spread)


def _labels(dataset: Dataset) -> Iterator[str]:
    for rows in scan(dataset, ["labels"]):
        yield from chain.from_iterable(rows["labels"])


def _counted(dataset: Dataset) -> Counter[str]:
    return Counter(_labels(dataset))


def _check_named(config: DatasetConfig, labels: Sequence[str]) -> None:
    if len(labels) > MAX_LABELS:
        raise UserError(f"dataset.labels has {len(labels):,} labels: at most {MAX_LABELS:,}")
    if doubled := [label for label, count in Counter(config.labels).items() if count > 1]:
        raise UserError(f"dataset.labels names '{_short(doubled[0])}' twice: leave one of them out")
    if len(labels) < 2 and config.predict == "one":
        raise UserError(f"dataset.labels={list(labels)}: one label leaves nothing to tell apart")


def _check_labels(config: DatasetConfig, counts: Counter[str], rows: int) -> None:
    """Raises `UserError` for a column that holds no labels, but texts, numbers or names of the rows."""
    few = max(_FEW, rows // 2) if config.predict == "one" else MAX_LABELS
    if not counts:
        raise UserError(f"no training text of dataset '{config.name}' has a label ({where(config)}, dataset.label)")
    if len(counts) <= min(few, MAX_LABELS):
        return
    example = _short(next(iter(counts)))
    try:
        float(example)
    except ValueError:
        remedy = "dataset.label names the column"
    else:
        remedy = "to predict a number, set dataset.predict=number"
    raise UserError(
        f"dataset.label={config.label} has {len(counts):,} different labels in {rows:,} training texts, such as "
        f"'{example}', so that it holds no labels: {remedy}"
    )


def _short(label: str) -> str:
    """A label as a message shows it, in one line: line breaks and the like as escapes, so that it can be found."""
    line = "".join(sign if sign.isprintable() else repr(sign)[1:-1] for sign in label)
    return line if len(line) <= 60 else f"{line[:60]}…"
