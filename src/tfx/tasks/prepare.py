"""From text to token ids on disk: the tokenizer and the tokenized splits, cached by fingerprint.

A cache entry is a folder named by the fingerprint of everything that made it. It is written beside its
place and renamed, so it is complete or absent; if two runs need it at once, one makes it and the other waits.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from functools import partial
from itertools import chain
from pathlib import Path

import numpy as np

from tfx.config.schema import DatasetConfig
from tfx.config.tasks import TASKS
from tfx.data.origins import SourceFile
from tfx.data.ragged import ArrayFiles
from tfx.data.sources import Corpus, load_corpus
from tfx.data.store import arrow_batches, release, scan, watch
from tfx.data.tokenizer import SPACE, Tokenizer
from tfx.errors import UserError
from tfx.record.cache import cached, unwritable
from tfx.record.directory import writable_cache
from tfx.record.files import write_text
from tfx.record.lock import making
from tfx.tasks import task_named
from tfx.tasks.contract import Split

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

    @property
    def test_split(self) -> str:
        """The split that the result is measured on: ``test``, or ``valid`` without one."""
        return "test" if "test" in self.splits else "valid"


def prepare_data(
    config: DatasetConfig,
    context: int,
    tokenizer: Tokenizer | None = None,
    transform: Callable[[Corpus], Corpus] | None = None,
) -> PreparedData:
    """Loads, tokenizes and caches a data set.

    ``context`` is the longest sequence that the model takes: longer training examples are dropped, longer
    validation and test examples cut, both counted in ``notes``. ``tokenizer``, that of an existing model, overrides
    the config's. Raises `UserError` for any error in the data.
    """
    corpus = load_corpus(config)
    source, content = corpus.fingerprint, corpus.content
    if tokenizer is None:
        tokenizer = _tokenizer(config, corpus)
    if transform is not None:
        # After the tokenizer: a run that changes the text keeps the vocabulary of one that does not.
        corpus = transform(corpus)
    # Pieces of a long text each began with a space once; the fingerprint marks that none is added now.
    pieces = ["pieces"] if tokenizer.goes_on(_longest(corpus)) else []
    fingerprint = _fingerprint(corpus.fingerprint, tokenizer.fingerprint, *pieces)
    task = task_named(corpus.task)
    tokenizer.ends_documents = task.ends_documents(corpus.splits["train"])
    notes = [*corpus.notes, *_mistaken(corpus, tokenizer)]
    splits: dict[str, Split] = {}
    for name, dataset in corpus.splits.items():
        folder = writable_cache("tokenized") / f"{fingerprint[:32]}-{name}-{_LAYOUT}"
        arrays = _tokenized(folder, partial(task.tokenize, dataset, tokenizer))
        splits[name] = task.split(arrays, name, dataset, config, tokenizer, context, notes)
        release()
    return PreparedData(config.name, corpus.task, tokenizer, splits, fingerprint, notes, corpus.files, source, content)


def _longest(corpus: Corpus) -> int:
    """Characters of the longest text."""
    import pyarrow.compute

    batches = (batch for dataset in corpus.splits.values() for batch in arrow_batches(dataset, _columns(corpus)))
    columns = (column for batch in batches for column in batch.columns)
    return max(pyarrow.compute.max(pyarrow.compute.utf8_length(column)).as_py() or 0 for column in columns)


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
            yield f"{name}: {rows:,} rows hold the sign '{SPACE}' (U+2581), which the tokenizer takes for a space"


def _columns(corpus: Corpus) -> list[str]:
    return list(TASKS[corpus.task].columns)


def _fingerprint(*parts: str) -> str:
    return hashlib.sha256("\0".join([str(_VERSION), *parts]).encode()).hexdigest()


# --- tokenizer --------------------------------------------------------------------------------------


def _tokenizer(config: DatasetConfig, corpus: Corpus) -> Tokenizer:
    if config.tokenizer.path is not None:
        return Tokenizer.load(Path(config.tokenizer.path))
    settings = json.dumps(asdict(config.tokenizer), sort_keys=True)
    path = writable_cache("tokenizers") / f"{_fingerprint(corpus.fingerprint, settings)[:32]}.json"
    with making(path):
        if path.is_file():
            try:
                return Tokenizer.load(path)
            except UserError as error:
                if isinstance(error.__cause__, PermissionError):  # another user's: not ours to remove
                    raise UserError(f"{error}: name your own cache with TFX_CACHE") from error
                path.unlink()  # damaged: made anew
        word_initial_space = task_named(corpus.task).word_initial_space
        tokenizer = Tokenizer.train(config.tokenizer, _TrainingTexts(corpus), word_initial_space=word_initial_space)
        try:
            write_text(path, tokenizer.to_json())
        except OSError as error:
            raise UserError(unwritable(path.parent, error)) from error
        # Read back, so that the run that trained it and those that find it use the same one.
        return Tokenizer.load(path)


@dataclass(frozen=True)
class _TrainingTexts:
    """The texts of the training split, which can be read more than once."""

    corpus: Corpus

    def __iter__(self) -> Iterator[str]:
        columns = _columns(self.corpus)
        for batch in scan(self.corpus.splits["train"], columns):
            yield from chain.from_iterable(zip(*(batch[column] for column in columns), strict=True))


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
