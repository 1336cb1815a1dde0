"""From text to token ids on disk: the tokenizer and the tokenized splits, cached by fingerprint.

A cache entry is a folder named by the fingerprint of everything that made it. It is written beside its
place and renamed, so it is complete or absent; if two runs need it at once, one makes it and the other waits.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from tfx.config.mixture import mixed, naming_entry
from tfx.config.schema import DatasetConfig
from tfx.config.task_facts import TASKS
from tfx.data.corpus import Corpus, load_corpora, together
from tfx.data.loaders import SourceFile
from tfx.data.monolingual import read_monolingual
from tfx.data.ragged import ArrayFiles
from tfx.data.store import arrow_batches, release, scan, watch
from tfx.data.tokenizer import SPACE, Tokenizer
from tfx.errors import UserError
from tfx.model.architecture import Outputs
from tfx.record.cache import cached, unwritable
from tfx.record.directory import writable_cache
from tfx.record.files import write_text
from tfx.record.lock import making
from tfx.tasks import task_named
from tfx.tasks.contract import Split, Task
from tfx.tasks.mixture import Mixture, with_monolingual_part
from tfx.tasks.streamed import Streamed
from tfx.terminal.console import counted

_VERSION = 1
# Of what a cache entry holds.
_LAYOUT = 3


@dataclass
class PreparedData:
    """All that training and evaluation read. ``splits`` lacks ``test`` if the data has none.

    ``files`` are the files of each split.
    ``corpus`` is the fingerprint of the text as read, independent of the tokenizer; ``content``
    also of the names of its files.
    ``reduced_from`` is the fingerprint of the full tokenizer, if ``tokenizer`` is a part of one.
    ``outputs`` are what a model's outputs stand for, where they are no tokens.
    ``shares`` has a row for each corpus of a mixture, once a model was trained on it.
    ``streamed`` are digests of parts of the local files that are streamed, by their names; ``modified`` is when the
    last of them was changed.
    """

    name: str
    task: str
    tokenizer: Tokenizer
    splits: dict[str, Split]
    fingerprint: str
    notes: list[str] = field(default_factory=list)
    files: dict[str, list[SourceFile]] = field(default_factory=dict)
    corpus: str = ""
    content: str = ""
    reduced_from: str | None = None
    outputs: Outputs | None = None
    shares: list[dict[str, Any]] = field(default_factory=list)
    streamed: dict[str, str] = field(default_factory=dict)
    modified: str = ""

    @property
    def test_split(self) -> str:
        """The split that the result is measured on: ``test``, or ``valid`` without one."""
        return "test" if "test" in self.splits else "valid"


def prepare_data(
    config: DatasetConfig,
    context: int,
    tokenizer: Tokenizer | None = None,
    transform: Callable[[Corpus], Corpus] | None = None,
    outputs: Outputs | None = None,
    *,
    with_monolingual: bool = False,
) -> PreparedData:
    """Loads, tokenizes and caches a data set; for training with its texts without references.

    ``context`` is the longest sequence that the model takes: longer training examples are dropped, longer
    validation and test examples cut, both counted in ``notes``. ``tokenizer``, that of an existing model, overrides
    the config's, and its ``outputs`` those that the data asks for. Raises `UserError` for any error in the data.
    """
    corpora = load_corpora(config)
    monolingual = read_monolingual(config) if with_monolingual and config.monolingual is not None else None
    named = [f"{part.name}: " if config.mix else "" for part, _ in mixed(config)]
    first = corpora[0]
    said: list[str] = []
    source = together(config, [corpus.fingerprint for corpus in corpora])
    content = together(config, [corpus.content for corpus in corpora])
    if tokenizer is None:
        tokenizer = _tokenizer(config, corpora, named, said)
    if transform is not None:
        if config.mix or config.streaming:
            way = "a mixture of corpora" if config.mix else "a streamed data set"
            raise UserError(
                "a technique of the stack changes all training texts before training (as sequence_level does), which "
                f"{way} does not allow: leave it out, or prepare one corpus (dataset.streaming=false)"
            )
        # After the tokenizer: a run that changes the text keeps the vocabulary of one that does not.
        corpora = [transform(replace(first, unlabelled=monolingual))]
        monolingual = corpora[0].unlabelled
    tokenizer.ends_documents = any(map(_ends_documents, corpora))
    task = task_named(first.task)
    if outputs is None:
        outputs = task.outputs([(part, corpus) for (part, _), corpus in zip(mixed(config), corpora, strict=True)], said)
    prepared = []
    for place, ((part, _), corpus) in enumerate(zip(mixed(config), corpora, strict=True)):
        with naming_entry(config, place):
            prepared.append(_splits(task.giving(outputs), part, corpus, tokenizer, context, is_first=place == 0))
    splits = prepared[0].splits
    if config.mix:
        names, weights = [part.name for part, _ in mixed(config)], [weight for _, weight in mixed(config)]
        splits = splits | {"train": Mixture(names, weights, [each.splits["train"] for each in prepared])}
        said += [*_shares(names, weights), *_doubled(names, corpora)]
    fingerprint = together(config, [each.fingerprint for each in prepared])
    if monolingual is not None:
        own = _unlabelled(task.giving(outputs), config, monolingual, tokenizer, context)
        mixture = with_monolingual_part(config, splits["train"], own.splits["train"], monolingual.is_labelled)
        splits, said = splits | {"train": mixture}, [*said, *_shares(mixture.names, mixture.weights), *own.notes]
        fingerprint = _fingerprint(fingerprint, own.fingerprint, str(config.monolingual_share))
    notes = said + [name + note for name, each in zip(named, prepared, strict=True) for note in each.notes]
    files = dict(first.files)
    read = [*zip(named, corpora, strict=True), *([("monolingual: ", monolingual)] if monolingual is not None else [])]
    if any(corpus.files for _, corpus in read):
        files["train"] = [
            replace(file, file=name + file.file) for name, corpus in read for file in corpus.files.get("train", [])
        ]
    data = PreparedData(config.name, first.task, tokenizer, splits, fingerprint, notes, files, source, content)
    data.outputs = outputs
    for name, corpus in zip(named, corpora, strict=True):
        if corpus.stream is not None:
            data.streamed |= {name + file: digest for file, digest in corpus.stream.files.items()}
            data.modified = max(data.modified, corpus.stream.modified)
    return data


@dataclass(frozen=True)
class _Tokens:
    """The splits of one corpus."""

    splits: dict[str, Split]
    fingerprint: str
    notes: list[str]


def _splits(
    task: Task, config: DatasetConfig, corpus: Corpus, tokenizer: Tokenizer, context: int, *, is_first: bool
) -> _Tokens:
    """The tokenized splits of a corpus; of those after the first of a mixture, the training split alone."""
    # Pieces of a long text each began with a space once; the fingerprint marks that none is added now.
    pieces = ["pieces"] if tokenizer.goes_on(_longest(corpus)) else []
    fingerprint = _fingerprint(corpus.fingerprint, tokenizer.fingerprint, *pieces)
    notes = [*corpus.notes, *_mistaken(corpus, tokenizer)]
    splits: dict[str, Split] = {}
    if corpus.stream is not None:
        splits["train"] = Streamed(task, config, corpus.stream, tokenizer, context)
    for name, dataset in corpus.splits.items():
        if name != "train" and not is_first:
            continue
        folder = writable_cache("tokenized") / f"{fingerprint[:32]}-{name}-{_LAYOUT}"
        arrays = _tokenized(folder, partial(task.tokenize, dataset, tokenizer))
        splits[name] = task.split(arrays, name, dataset, config, tokenizer, context, notes)
        release()
    return _Tokens(splits, fingerprint, notes)


def _unlabelled(task: Task, config: DatasetConfig, corpus: Corpus, tokenizer: Tokenizer, context: int) -> _Tokens:
    """The tokenized split of texts without references, or of those that a technique has given targets."""
    if not corpus.is_labelled:
        corpus = replace(corpus, splits={"train": task.unlabelled(corpus.splits["train"])})
    return _splits(task, config, corpus, tokenizer, context, is_first=False)


def _shares(names: list[str], weights: list[float]) -> Iterator[str]:
    total = sum(weights)
    parts = ", ".join(f"{name} {weight / total:.1%}" for name, weight in zip(names, weights, strict=True))
    yield f"train: a mixture, by the weights of the batches: {parts}"
    yield f"valid and test are those of {names[0]}, the first corpus of the mixture"


def _doubled(names: list[str], corpora: list[Corpus]) -> Iterator[str]:
    """Says which corpora of a mixture are the same texts as one before."""
    seen: dict[str, str] = {}
    for name, corpus in zip(names, corpora, strict=True):
        if (other := seen.setdefault(corpus.content, name)) != name:
            yield f"train: {name} is the same data as {other}, and counts by the weights of both"


def _ends_documents(corpus: Corpus) -> bool:
    if corpus.stream is not None:
        return TASKS[corpus.task].is_stream
    return task_named(corpus.task).ends_documents(corpus.splits["train"])


def _longest(corpus: Corpus) -> int:
    """Characters of the longest text."""
    import pyarrow.compute

    batches = (batch for dataset in corpus.splits.values() for batch in arrow_batches(dataset, _columns(corpus)))
    columns = (column for batch in batches for column in batch.columns)
    lengths = (pyarrow.compute.max(pyarrow.compute.utf8_length(column)).as_py() or 0 for column in columns)
    return max(lengths, default=0)


def _mistaken(corpus: Corpus, tokenizer: Tokenizer) -> Iterator[str]:
    """Says how many rows hold the sign that the tokenizer takes for a space; nothing where it takes none for one."""
    import pyarrow.compute

    for name, dataset in corpus.splits.items() if tokenizer.mistakes_sign else ():
        rows = 0
        for batch in arrow_batches(dataset, _columns(corpus)):
            held = [
                pyarrow.compute.match_substring(column, SPACE).to_numpy(zero_copy_only=False)
                for column in batch.columns
            ]
            rows += int(np.logical_or.reduce(held).sum())
        if rows:
            told = f"{name}: {counted(rows, 'row')} with the sign '{SPACE}' (U+2581)"
            yield f"{told}, which the tokenizer takes for a space"


def _columns(corpus: Corpus) -> list[str]:
    return list(TASKS[corpus.task].texts)


def _fingerprint(*parts: str) -> str:
    return hashlib.sha256("\0".join([str(_VERSION), *parts]).encode()).hexdigest()


# --- tokenizer --------------------------------------------------------------------------------------


def _tokenizer(config: DatasetConfig, corpora: list[Corpus], named: list[str], notes: list[str]) -> Tokenizer:
    """The tokenizer that the config names, or one trained on the training splits: from the cache if it is there."""
    if config.tokenizer.path is not None:
        return Tokenizer.load(Path(config.tokenizer.path))
    texts = _TrainingTexts(corpora, config.tokenizer.rows // len(corpora) or 1, named)
    notes += texts.notes()
    settings = asdict(config.tokenizer)
    if not notes:  # it changes nothing
        del settings["rows"]
    if not settings["lowercase"]:  # as the entries of before
        del settings["lowercase"]
    key = _fingerprint(*(corpus.fingerprint for corpus in corpora), json.dumps(settings, sort_keys=True))
    path = writable_cache("tokenizers") / f"{key[:32]}.json"
    with making(path):
        if path.is_file():
            try:
                return Tokenizer.load(path)
            except UserError as error:
                if isinstance(error.__cause__, PermissionError):  # another user's: not ours to remove
                    raise UserError(f"{error}: name your own cache with TFX_CACHE") from error
                path.unlink()  # damaged: made anew
        word_initial_space = task_named(corpora[0].task).word_initial_space
        tokenizer = Tokenizer.train(config.tokenizer, texts, word_initial_space=word_initial_space)
        try:
            write_text(path, tokenizer.to_json())
        except OSError as error:
            raise UserError(unwritable(path.parent, error)) from error
        # Read back, so that the run that trained it and those that find it use the same one.
        return Tokenizer.load(path)


@dataclass(frozen=True)
class _TrainingTexts:
    """The texts of the training splits, at most ``rows`` rows of each, which can be read more than once."""

    corpora: list[Corpus]
    rows: int
    named: list[str]

    def notes(self) -> list[str]:
        """Says of which rows the texts are, where that is not all of them."""
        said = []
        for name, corpus in zip(self.named, self.corpora, strict=True):
            if corpus.stream is not None:
                rows = f"the first {self.rows:,} rows of the stream, or all if it has fewer"
                said.append(f"{name}tokenizer: trained on {rows}")
            elif len(corpus.splits["train"]) > self.rows:
                count = len(corpus.splits["train"])
                said.append(f"{name}tokenizer: trained on {self.rows:,} of {count:,} rows, evenly spaced")
        return said

    def __iter__(self) -> Iterator[str]:
        for corpus in self.corpora:
            yield from corpus.stream.texts(self.rows) if corpus.stream is not None else self._prepared(corpus)

    def _prepared(self, corpus: Corpus) -> Iterator[str]:
        columns, dataset = _columns(corpus), corpus.splits["train"]
        most, place = min(self.rows, len(dataset)), 0
        for batch in scan(dataset, columns):
            for texts in zip(*(batch[column] for column in columns), strict=True):
                # One row of each stretch of len / most rows: all of them where there are no more.
                if (place + 1) * most // len(dataset) > place * most // len(dataset):
                    yield from texts
                place += 1


# --- tokenized splits -------------------------------------------------------------------------------


def _tokenized(folder: Path, tokenize: Callable[[ArrayFiles], None]) -> dict[str, np.ndarray]:
    """The arrays of a split, memory-mapped; made first if they are missing or damaged."""

    def write(entry: Path) -> None:
        files = ArrayFiles(entry)
        try:
            tokenize(files)
        finally:
            shapes = files.close()
        (entry / "manifest.json").write_text(json.dumps(shapes))

    def read(entry: Path) -> dict[str, np.ndarray]:
        manifest = dict(json.loads((entry / "manifest.json").read_text()))
        arrays = {name: np.load(entry / f"{name}.npy", mmap_mode="r") for name in manifest}
        if not arrays or any(list(arrays[name].shape) != shape for name, shape in manifest.items()):
            raise ValueError("not the arrays of the manifest")
        for array in arrays.values():
            watch(array)
        return arrays

    return cached(folder, read, write)
