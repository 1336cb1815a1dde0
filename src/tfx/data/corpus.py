"""Where examples come from: embedded generators, local files, the Hugging Face hub.

Every source gives a `Corpus`: `datasets.Dataset` splits with the columns ``source``, ``target``
and ``references`` (text to text), or ``text`` (language modelling), and a fingerprint of their content. Nothing is
dropped, changed or joined without a note that says what and how many.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from tfx.config.mixture import mixed, naming_entry
from tfx.config.schema import DatasetConfig
from tfx.config.task_facts import TASKS
from tfx.errors import UserError
from tfx.record.seeds import derive_seed

if TYPE_CHECKING:
    from datasets import Dataset
from tfx.data.loaders import (
    SourceFile,
    from_files,
    from_hub,
    generated,
    label_settings,
    streamed_from_hub,
    with_columns,
)
from tfx.data.rows import canonical, columns_of, finish, raw_rows, text_dataset, where
from tfx.data.split_files import find_files
from tfx.data.store import kept, scan
from tfx.data.streaming import RowStream, local_stream, table_stream

# What each format is read as; the tables can be either.
_EMBEDDED = {"normalize": "seq2seq", "stdlib": "lm", "kinds": "classification"}
_FROM_ALL_OVER = "from all over the split"
_TASKS = _EMBEDDED | {"parallel": "seq2seq", "text": "lm"}


@dataclass
class Corpus:
    """Text before tokenizing. ``splits`` lacks ``test`` if the data has none; ``notes`` say what was done.

    ``files`` are the files of each split; for the hub, the repository and its split.
    ``content`` is a fingerprint without the names of the files, which ``fingerprint`` has in it. ``stream`` has the
    training rows of a streamed data set, and ``splits`` then lacks ``train``. ``unlabelled`` are texts without
    references, as a corpus with the column ``text`` alone that is not labelled, until a technique gives them targets.
    """

    task: str
    splits: dict[str, Dataset]
    fingerprint: str
    notes: list[str] = field(default_factory=list)
    files: dict[str, list[SourceFile]] = field(default_factory=dict)
    content: str = ""
    stream: RowStream | None = None
    unlabelled: Corpus | None = None
    is_labelled: bool = True


def with_targets(corpus: Corpus, sources: list[str], targets: list[str], tag: str) -> Corpus:
    """The corpus with other training pairs; ``tag`` identifies their origin in the fingerprint."""
    from datasets import Dataset

    train = Dataset.from_dict({"source": sources, "target": targets})
    fingerprint = hashlib.sha256(f"{corpus.fingerprint}\0{tag}".encode()).hexdigest()
    splits = corpus.splits | {"train": train}
    return Corpus(corpus.task, splits, fingerprint, corpus.notes, corpus.files, unlabelled=corpus.unlabelled)


def load_corpora(config: DatasetConfig) -> list[Corpus]:
    """The corpora of a run: one, or those of its mixture; raises `UserError` as `load_corpus` does."""
    corpora = []
    for place, (part, _) in enumerate(mixed(config)):
        with naming_entry(config, place):
            corpora.append(load_corpus(part))
    return corpora


def together(config: DatasetConfig, fingerprints: list[str]) -> str:
    """The fingerprint of a run's one corpus, or of a mixture by its weights, from those of its corpora."""
    if not config.mix:
        return fingerprints[0]
    parts = [*fingerprints, *(str(weight) for _, weight in mixed(config))]
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()


def load_corpus(config: DatasetConfig) -> Corpus:
    """Reads the data set; raises `UserError` for missing, broken, misaligned, badly encoded or empty data."""
    import datasets

    datasets.disable_progress_bars()
    # Errors are raised too: the library's log lines would only repeat our message.
    datasets.logging.set_verbosity(datasets.logging.CRITICAL)
    _check_task(config)
    if config.streaming:
        return _streamed(config)
    notes: list[str] = []
    files: dict[str, list[SourceFile]] = {}
    # Rules for reading texts that changed since runs were first recorded. The fingerprint covers only those that the
    # data meets, so that it changes only with the text.
    rules: set[str] = set()
    if config.path is not None:
        raw, (content, nameless), files = from_files(config, find_files(config, notes), notes, rules)
    elif config.hub is not None:
        raw, content, files = from_hub(config, notes)
        nameless = content
    elif config.format in _EMBEDDED:
        raw, content = generated(config)
        if not config.splits.test:
            raw.pop("test", None)
        nameless = content
    else:
        raise UserError(_needs_files(config))
    key, nameless_key = _key(config, content), _key(config, nameless)
    is_raw = _is_raw(config)
    if TASKS[config.task].is_stream and is_raw and len(raw["train"]) == 1:  # one text, which may be cut in two
        for name, dataset in raw.items():
            whole = finish(config, name, _canonical(config, dataset, f"{key} whole {name}"), notes, rules)[0]
            raw[name] = text_dataset(_texts(whole))
        is_raw = False
    _cut_valid(config, raw, notes, rules)
    splits, keys = _finished(config, raw, key if is_raw else None, notes, rules)
    notes += _repetitions(keys)
    fingerprint, own_content = (_with_rules(each, rules) for each in (key, nameless_key))
    return Corpus(config.task, splits, fingerprint, notes, files, own_content)


def _streamed(config: DatasetConfig) -> Corpus:
    """A corpus whose training split is read while it is trained on; the other splits are read now, as always."""
    notes: list[str] = []
    rules: set[str] = set()
    raw: dict[str, Any]
    if config.path is not None:
        found = find_files(config, notes)
        paths = found.pop("train")
        stream, content = local_stream(config, paths)
        raw, (others, _), files = from_files(config, found, notes, rules)
        content += others
        files = {"train": [SourceFile(path.name, None) for path in paths], **files}
    elif config.hub is not None:
        opened, content, files = streamed_from_hub(config, notes)
        stream = table_stream(config, opened.pop("train"))
        raw = {name: with_columns(open_split()) for name, open_split in opened.items()}
    else:
        raise UserError(_needs_files(config))
    if "valid" not in raw:
        share = config.valid_fraction
        cut = f"dataset.valid_fraction={share:g} cannot cut one" if share else "none can be cut"
        raise UserError(
            f"dataset '{config.name}' has no validation split ({where(config)}), and {cut} from the end of a stream: "
            "name it with dataset.splits.valid, or set dataset.streaming=false"
        )
    key = _key(config, f"streamed {content}")
    splits, _ = _finished(config, raw, key if _is_raw(config) else None, notes, rules)
    fingerprint = _with_rules(key, rules)
    return Corpus(config.task, splits, fingerprint, notes, files, fingerprint, stream)


def _needs_files(config: DatasetConfig) -> str:
    return f"dataset '{config.name}' needs its files: name a folder, file or glob with dataset.path=…"


def _is_raw(config: DatasetConfig) -> bool:
    """Whether the data are tables as they came, of the hub or Parquet; all else is read into the canonical columns."""
    return (config.path is None and config.hub is not None) or config.format == "parquet"


def _finished(
    config: DatasetConfig, raw: dict[str, Any], raw_key: str | None, notes: list[str], rules: set[str]
) -> tuple[dict[str, Dataset], dict[str, np.ndarray]]:
    """The texts of each split and the keys of its rows; ``raw_key`` identifies rows that are raw."""
    splits = {}
    keys: dict[str, np.ndarray] = {}
    for name, dataset in raw.items():
        dataset = _capped(config, name, dataset, notes, rules)
        if raw_key is not None:  # the rules say which rows were taken
            dataset = _canonical(config, dataset, f"{_with_rules(raw_key, rules)}{name}")
        texts, own = finish(config, name, dataset, notes, rules)
        if TASKS[config.task].is_stream and config.join is not None:
            splits[name] = text_dataset([config.join.join(_texts(texts))]).select_columns(["text"])
        else:
            splits[name], keys[name] = texts, own
        if not _has_text(config, splits[name]):
            raise UserError(
                f"the {name} split of dataset '{config.name}' is empty ({where(config)}): "
                f"give it text, or name other data with dataset.splits.{name}"
            )
    return splits, keys


def _capped(config: DatasetConfig, split: str, dataset: Any, notes: list[str], rules: set[str]) -> Any:
    """As many examples of a split as the config allows: the first, or rows from all over it."""
    cap = getattr(config.limit, split)
    if cap is None:
        return dataset
    if not hasattr(dataset, "__len__"):  # the number of a stream's rows is not known
        notes.append(f"{split}: at most the first {cap:,} examples")
        return dataset.take(cap)
    if cap < len(dataset) and TASKS[config.task].spreads:
        rules.add("limited at random")
        notes.append(f"{split}: {cap:,} of {len(dataset):,} examples, {_FROM_ALL_OVER}")
        return dataset.select(_spread(cap, len(dataset)))
    if cap < len(dataset):
        notes.append(f"{split}: the first {cap:,} of {len(dataset):,} examples")
        return dataset.select(range(cap))
    if TASKS[config.task].is_stream and len(dataset) == 1:
        notes.append(
            f"dataset.limit.{split}={cap} has no effect: it counts texts, a file or a row each, and there is one"
        )
    return dataset


def _texts(dataset: Dataset) -> list[str]:
    return [text for rows in scan(dataset, ["text"]) for text in rows["text"]]


def _canonical(config: DatasetConfig, dataset: Dataset, key: str) -> Dataset:
    """The rows of hub or Parquet data in the canonical columns, from the cache if they were read before."""
    digest = hashlib.sha256(key.encode()).hexdigest()
    return kept(digest, columns_of(config.task), lambda _: canonical(config.task, raw_rows(config, dataset)))[0]


def _key(config: DatasetConfig, content: str) -> str:
    """Hash of raw data by their digest, and of the settings by which they are read."""
    settings = repr([1, content, config.task, config.format, config.source, config.target, config.text])
    settings += repr([config.join, config.empty, config.limit, config.valid_fraction, config.splits])
    settings += "".join(f"\0{each}" for each in label_settings(config))
    return hashlib.sha256(settings.encode("utf-8", "surrogatepass")).hexdigest()


def _with_rules(key: str, rules: set[str]) -> str:
    return hashlib.sha256(f"{key}\0{sorted(rules)}".encode()).hexdigest() if rules else key


def _check_task(config: DatasetConfig) -> None:
    if config.path is None and config.hub is not None:
        return
    if config.path is not None and config.format in _EMBEDDED:
        raise UserError(
            f"dataset.format={config.format} is generated and reads no dataset.path: leave the path out, "
            "or name the format of the files (parallel, text, json, csv, parquet)"
        )
    task = _TASKS.get(config.format, config.task)
    if task != config.task:
        hint = "; aligned files are dataset.format=parallel" if config.format == "text" else ""
        raise UserError(f"dataset.format={config.format} is for dataset.task={task}, not {config.task}{hint}")


def _has_text(config: DatasetConfig, dataset: Dataset) -> bool:
    if not TASKS[config.task].is_stream:
        return len(dataset) > 0
    return any(any(rows["text"]) for rows in scan(dataset, ["text"]))


def _repetitions(keys: dict[str, np.ndarray]) -> Iterator[str]:
    """Notes how many rows of a split are repeated, and how many of a scored split are also in training."""
    keys = {split: own for split, own in keys.items() if len(own) > 1}
    for split, own in keys.items():
        if doubled := len(own) - len(np.unique(own)):
            repeats = "row repeats another" if doubled == 1 else "rows repeat others"
            yield f"{split}: {doubled:,} {repeats} of the split, and {'is' if doubled == 1 else 'are'} kept"
    for split in ("valid", "test"):
        for other in ("train", "valid"):
            both = split in keys and other in keys and split != other
            if both and (shared := int(np.isin(keys[split], keys[other]).sum())):
                verb = "row is" if shared == 1 else "rows are"
                yield f"{split}: {shared:,} {verb} also in {other}, and {verb.split()[1]} kept"


def _spread(count: int, length: int) -> np.ndarray:
    """``count`` of ``length`` row numbers: one at random from each of as many stretches, whatever the run's seed.

    So rows in the order of their labels and rows whose labels take turns both have all labels among them.
    """
    bounds = np.arange(count + 1) * length // max(1, count)
    generator = np.random.default_rng(derive_seed(0, "data/valid"))
    return bounds[:-1] + generator.integers(0, np.diff(bounds))


def _cut_valid(config: DatasetConfig, splits: dict[str, Dataset], notes: list[str], rules: set[str]) -> None:
    """Cuts a validation split from the training split if there is none: its end, or rows from all over it."""
    if "valid" in splits:
        return
    if config.valid_fraction == 0:
        raise UserError(
            f"dataset '{config.name}' has no validation split ({where(config)}): name it with dataset.splits.valid, "
            "or cut it from the training split with dataset.valid_fraction=0.05"
        )
    train = splits["train"]
    share = f"{100 * config.valid_fraction:g} %"

    def end(length: int) -> int:
        return int(length * (1.0 - config.valid_fraction) + 1e-6)  # 1 - 0.9 is a little below 0.1

    if TASKS[config.task].is_stream and len(train) == 1:
        text = train[0]["text"]
        cut = end(len(text))
        splits["train"], splits["valid"] = text_dataset([text[:cut]]), text_dataset([text[cut:]])
        notes.append(f"valid: the last {share} of the text")
        return
    cut = end(len(train))
    if cut in (0, len(train)) and len(train):
        verb, off = ("keeps none", "") if cut else ("cuts all", " off")
        raise UserError(
            f"dataset.valid_fraction={config.valid_fraction} {verb} of the training examples of dataset "
            f"'{config.name}' ({len(train):,}){off} for validation: set another fraction, give more examples, or name "
            "a validation split with dataset.splits.valid"
        )
    if TASKS[config.task].spreads:
        held = np.zeros(len(train), dtype=bool)
        held[_spread(len(train) - cut, len(train))] = True
        splits["train"], splits["valid"] = (train.select(np.flatnonzero(rows)) for rows in (~held, held))
        rules.add("held out at random")
        notes.append(f"valid: {len(train) - cut:,} of the {len(train):,} training examples, {_FROM_ALL_OVER}")
        return
    splits["train"], splits["valid"] = train.select(range(cut)), train.select(range(cut, len(train)))
    notes.append(f"valid: the last {share} of the training examples")
