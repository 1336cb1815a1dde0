"""The corpora of a run: its data set, or those of ``dataset.mix``, of which each becomes a config of its own."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import fields
from typing import Any

from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from tfx.config.checks import check_keys, check_values
from tfx.config.explain import explain
from tfx.config.grammar import escaped
from tfx.config.hydra_driver import compose_tree
from tfx.config.keys import unknown_key
from tfx.config.paths import make_absolute
from tfx.config.schema import DatasetConfig
from tfx.errors import UserError

# What belongs to the run and not to a corpus.
_OF_RUN = (
    *("mix", "monolingual", "monolingual_share", "batch_tokens", "batch_tokens_limit", "buffer", "tokenizer"),
    "metrics",
)
_OWN = ("dataset", "weight")
# What all entries take that say nothing else.
_SHARED = ("streaming", "document_mask")
# What is the run's, or shared.
_OF_BOTH = ("name", "task", *_SHARED)
_OF_CORPUS = [f.name for f in fields(DatasetConfig) if f.name not in _OF_RUN]
# Far above any use, and far below where sums of them overflow.
_LARGEST_WEIGHT = 10**12
_KEY = re.compile(rf"(?<![\w./-])dataset\.(?=(?:{'|'.join(_OF_CORPUS)})\b)")


def complete(dataset: dict[str, Any], typed: Sequence[str]) -> None:
    """Gives each entry of ``mix`` all settings of its corpus: those of the data set that it names, with its own on top.

    A config with these needs no other file. Raises `UserError` for an entry that is not one, and for what the user
    ``typed`` of one corpus beside the mix, where nothing would read it.
    """
    mix = dataset.get("mix") or []
    if not isinstance(mix, list):
        raise UserError(f"dataset.mix={mix} is not a list of corpora: [{{dataset: NAME, path: …, weight: 2}}, …]")
    dataset["mix"] = [_complete(entry, f"dataset.mix.{place}", dataset) for place, entry in enumerate(mix)]
    if mix and dataset.get("path") is not None:
        raise UserError("dataset.path names one corpus, and dataset.mix several: give the path to an entry of the mix")
    for word in typed if mix else ():
        key = word.lstrip("+").partition("=")[0]
        name = key.removeprefix("dataset.").partition(".")[0]
        if key.startswith("dataset.") and name in _OF_CORPUS and name not in _OF_BOTH:
            raise UserError(f"{key} is of one corpus, and dataset.mix names several: give it to an entry of the mix")


def _complete(entry: Any, where: str, dataset: dict[str, Any]) -> dict[str, Any]:
    if not isinstance(entry, dict):
        raise UserError(f"{where}={entry} is not a corpus: write {{dataset: NAME, path: …, weight: 2}}")
    for key in entry:
        if key in _OF_RUN:
            raise UserError(f"{where}.{key} is one for all corpora: set dataset.{key}")
        if key not in (*_OWN, *_OF_CORPUS):
            raise unknown_key(f"{where}.{key}", [f"{where}.{name}" for name in (*_OWN, *_OF_CORPUS)])
    if not isinstance(entry.get("dataset"), str):
        raise UserError(f"{where} names no data set: add dataset: NAME, one of `tfx list dataset`")
    if set(_OF_CORPUS) <= entry.keys():
        make_absolute(entry, DatasetConfig, f"{where}.")
        return entry
    try:
        tree = compose_tree([f"dataset={entry['dataset']}"])
    except UserError as error:
        raise UserError(f"{where}: {error}") from error
    chosen: Any = OmegaConf.to_container(tree.dataset, resolve=True)
    base = {name: chosen[name] for name in _OF_CORPUS} | {name: dataset.get(name, False) for name in _SHARED}
    check_keys({key: value for key, value in entry.items() if key not in _OWN}, DatasetConfig, f"{where}.")
    merged: Any = OmegaConf.to_container(OmegaConf.merge(OmegaConf.create(escaped(base)), escaped(entry)))
    make_absolute(merged, DatasetConfig, f"{where}.")
    return {"weight": 1.0, **merged}


def mixed(config: DatasetConfig) -> list[tuple[DatasetConfig, float]]:
    """The corpora of a run with their weights: those of its mixture, or its one data set."""
    if not config.mix:
        return [(config, 1.0)]
    return [(_corpus(config, place), float(entry["weight"])) for place, entry in enumerate(config.mix)]


@contextmanager
def naming_entry(config: DatasetConfig, place: int) -> Iterator[None]:
    """Inside, a `UserError` about a corpus of a mixture names its settings as the user types them: in its entry."""
    try:
        yield
    except UserError as error:
        if not config.mix:
            raise
        raise UserError(_KEY.sub(f"dataset.mix.{place}.", str(error))) from error


def _corpus(config: DatasetConfig, place: int) -> DatasetConfig:
    values = {key: value for key, value in config.mix[place].items() if key not in _OWN} | {"buffer": config.buffer}
    # Inside a group of its name, so that an error names a key that can be found.
    group = OmegaConf.create({"dataset": OmegaConf.structured(DatasetConfig)})
    with naming_entry(config, place):
        try:
            found: Any = OmegaConf.to_object(OmegaConf.merge(group, {"dataset": escaped(values)}).dataset)
        except OmegaConfBaseException as error:
            raise explain(error) from error
        check_values(found, "dataset.")
    return found


def check_corpora(dataset: DatasetConfig) -> None:
    """Raises `UserError` for corpora that do not fit together, have no weight, or cannot be streamed as is asked."""
    for place, entry in enumerate(dataset.mix):
        weight = entry.get("weight")
        if isinstance(weight, bool) or not isinstance(weight, (int, float)) or not 0 < weight <= _LARGEST_WEIGHT:
            raise UserError(
                f"dataset.mix.{place}.weight={weight} is not a weight: it must be a number above 0, and at most "
                f"{_LARGEST_WEIGHT:,}"
            )
    names: list[str] = []
    for place, (corpus, _) in enumerate(mixed(dataset)):
        if corpus.task != dataset.task:
            raise UserError(
                f"dataset.mix.{place}: '{corpus.name}' is for dataset.task={corpus.task}, and the run for "
                f"{dataset.task}: a mixture has one task"
            )
        if corpus.name in names:
            raise UserError(
                f"dataset.mix.{place}: there are two corpora named '{corpus.name}': tell them apart with name: …"
            )
        names.append(corpus.name)
        with naming_entry(dataset, place):
            _check_streaming(corpus)


def _check_streaming(corpus: DatasetConfig) -> None:
    if not corpus.streaming:
        return
    if corpus.path is None and corpus.hub is None:
        raise UserError(
            f"dataset.streaming reads files or the hub, and dataset '{corpus.name}' has neither: name files with "
            "dataset.path=…, or leave it out"
        )
    if corpus.format == "text" and corpus.path is not None:
        raise UserError(
            "dataset.streaming reads rows, and with dataset.format=text a whole file is one: write one document a line "
            "as JSON (dataset=json), or leave streaming out"
        )
    if corpus.join is not None:
        raise UserError("dataset.join makes one text of all rows, which streaming cannot do: leave one of the two out")
