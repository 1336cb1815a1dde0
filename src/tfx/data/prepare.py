"""From text to token ids on disk: the tokenizer and the tokenized splits, cached by fingerprint.

A cache entry is a folder named by the fingerprint of everything that made it. It is written beside its
place and renamed, so it is whole or not there; of two runs that need it at once, one makes it and the other waits.
"""

from __future__ import annotations

import hashlib
import json
import os
import secrets
import shutil
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from tfx.config.schema import DatasetConfig
from tfx.data.sources import Corpus, SourceFile, load_corpus, writable_cache
from tfx.data.tokenizer import Tokenizer
from tfx.errors import UserError
from tfx.record.files import write_text
from tfx.record.lock import making

if TYPE_CHECKING:
    from datasets import Dataset

_VERSION = 1
# Of what a cache entry holds.
_LAYOUT = 3
_ROWS = 10_000


@dataclass
class Ragged:
    """Sequences of different lengths in one array: sequence i is ``values[offsets[i] : offsets[i + 1]]``."""

    values: np.ndarray
    offsets: np.ndarray

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def __getitem__(self, index: int) -> np.ndarray:
        return self.values[self.offsets[index] : self.offsets[index + 1]]

    @property
    def lengths(self) -> np.ndarray:
        """Length of each sequence."""
        return np.diff(self.offsets)

    @classmethod
    def from_lists(cls, sequences: Sequence[Sequence[int]], dtype: Any) -> Ragged:
        """Concatenates lists of ids."""
        offsets = _offsets([len(sequence) for sequence in sequences])
        return cls(np.fromiter(chain.from_iterable(sequences), dtype=dtype, count=int(offsets[-1])), offsets)

    def take(self, rows: np.ndarray, longest: int | None = None) -> Ragged:
        """The given sequences, each cut to ``longest``."""
        lengths = self.lengths[rows]
        if longest is not None:
            lengths = np.minimum(lengths, longest)
        offsets = _offsets(lengths)
        shifts = np.repeat(self.offsets[rows] - offsets[:-1], lengths)
        return Ragged(self.values[shifts + np.arange(offsets[-1])], offsets)


def _offsets(lengths: Any) -> np.ndarray:
    return np.concatenate([np.zeros(1, dtype=np.int64), np.cumsum(lengths, dtype=np.int64)])


@dataclass
class Pairs:
    """A tokenized split of text-to-text data; source and target ids have no begin or end tokens.

    ``texts`` gives source text and references by row, where the split is one that is scored as text.
    """

    source: Ragged
    target: Ragged
    texts: Dataset | None = None

    def __len__(self) -> int:
        return len(self.source)


@dataclass
class Stream:
    """A tokenized split of language-model data: one array of ids, and the UTF-8 bytes of the text in it.

    ``unknown_bytes`` has those of the characters behind each token that is the unknown one, in order.
    """

    tokens: np.ndarray
    text_bytes: int
    unknown_bytes: np.ndarray = field(default_factory=lambda: np.zeros(0, dtype=np.int64))

    def __len__(self) -> int:
        return len(self.tokens)


@dataclass
class PreparedData:
    """All that training and evaluation read. ``splits`` lacks ``test`` where the data have none.

    ``files`` are those that each split was read from.
    ``corpus`` is the fingerprint of the text as it was read, whatever the tokenizer.
    ``reduced_from`` is the fingerprint of the tokenizer that ``tokenizer`` is a part of, where it is.
    """

    name: str
    task: str
    tokenizer: Tokenizer
    splits: dict[str, Any]
    fingerprint: str
    notes: list[str] = field(default_factory=list)
    files: dict[str, list[SourceFile]] = field(default_factory=dict)
    corpus: str = ""
    reduced_from: str | None = None

    @property
    def test_split(self) -> str:
        """The split that the result is measured on: ``test``, or ``valid`` in its place."""
        return "test" if "test" in self.splits else "valid"


def prepare_data(
    config: DatasetConfig,
    context: int,
    tokenizer: Tokenizer | None = None,
    transform: Callable[[Corpus], Corpus] | None = None,
) -> PreparedData:
    """Loads, tokenizes and caches a data set.

    ``context`` is the longest sequence that the model takes: longer training examples are dropped, longer
    validation and test examples cut, both counted in ``notes``. ``tokenizer`` overrides the config's (that of
    a model that exists already). Raises `UserError` for whatever is wrong with the data.
    """
    corpus = load_corpus(config)
    source = corpus.fingerprint
    if tokenizer is None:
        tokenizer = _tokenizer(config, corpus)
    if transform is not None:
        # After the tokenizer: a run that changes the text keeps the vocabulary of one that does not.
        corpus = transform(corpus)
    # Pieces of a long text once began with a space each; the fingerprint tells where none is added now.
    pieces = ["pieces"] if tokenizer.goes_on(_longest(corpus)) else []
    fingerprint = _fingerprint(corpus.fingerprint, tokenizer.fingerprint, *pieces)
    tokenizer.ends_documents = corpus.task == "lm" and _has_documents(corpus.splits["train"])
    notes = list(corpus.notes)
    splits: dict[str, Any] = {}
    for name, dataset in corpus.splits.items():
        folder = writable_cache("tokenized") / f"{fingerprint[:32]}-{name}-{_LAYOUT}"
        with making(folder):
            arrays = _cached(folder, partial(_tokenize, corpus.task, dataset, tokenizer))
        if corpus.task == "lm":
            splits[name] = Stream(arrays["tokens"], int(arrays["text_bytes"][0]), arrays["unknown_bytes"])
            if len(splits[name]) < 2:
                raise UserError(f"the {name} split of dataset '{config.name}' has a single token: give it more text")
            unknown = len(splits[name].unknown_bytes)
            if unknown:
                count = splits[name].unknown_bytes.sum()
                notes.append(
                    f"{name}: {count:,} bytes of characters that the tokenizer does not know: "
                    "bits_per_byte counts 8 bits for each, besides what the model takes for them; the loss does not"
                )
        else:
            pairs = Pairs(
                Ragged(arrays["source"], arrays["source_offsets"]), Ragged(arrays["target"], arrays["target_offsets"])
            )
            splits[name] = _fit(config, name, pairs, dataset, context, notes)
            unknown = int((pairs.source.values == tokenizer.unk).sum() + (pairs.target.values == tokenizer.unk).sum())
        if unknown:
            notes.append(f"{name}: {unknown:,} tokens that the tokenizer does not know")
    return PreparedData(config.name, corpus.task, tokenizer, splits, fingerprint, notes, corpus.files, source)


def _longest(corpus: Corpus) -> int:
    """Characters of the longest text."""
    import pyarrow.compute

    columns = (dataset.data.column(name) for dataset in corpus.splits.values() for name in _columns(corpus))
    return max(pyarrow.compute.max(pyarrow.compute.utf8_length(column)).as_py() for column in columns)


def _columns(corpus: Corpus) -> list[str]:
    return ["text"] if corpus.task == "lm" else ["source", "target"]


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
                    raise UserError(f"{error}: name a cache of your own with TFX_CACHE") from error
                path.unlink()  # damaged: made anew
        texts = _training_texts(corpus)
        tokenizer = Tokenizer.train(config.tokenizer, texts, word_initial_space=corpus.task == "seq2seq")
        try:
            write_text(path, tokenizer.to_json())
        except OSError as error:
            raise UserError(_unwritable(path.parent, error)) from error
        # Read back, so that the run that trained it and those that find it use the very same one.
        return Tokenizer.load(path)


def _training_texts(corpus: Corpus) -> Iterator[str]:
    columns = _columns(corpus)
    for batch in corpus.splits["train"].select_columns(columns).iter(batch_size=_ROWS):
        yield from chain.from_iterable(zip(*(batch[column] for column in columns), strict=True))


# --- tokenized splits -------------------------------------------------------------------------------


def _tokenize(task: str, dataset: Dataset, tokenizer: Tokenizer) -> dict[str, np.ndarray]:
    dtype = np.uint16 if tokenizer.vocab_size <= 1 << 16 else np.uint32
    if task == "seq2seq":
        arrays = {}
        for side in ("source", "target"):
            parts = [Ragged.from_lists(ids, dtype) for _, ids in _encoded(dataset, side, tokenizer)]
            arrays[side] = np.concatenate([part.values for part in parts])
            arrays[f"{side}_offsets"] = _offsets(np.concatenate([part.lengths for part in parts]))
        return arrays
    text_bytes = 0
    unknown_bytes: list[int] = []
    pieces: list[np.ndarray] = []
    for texts, ids in _encoded(dataset, "text", tokenizer):
        text_bytes += sum(len(text.encode()) for text in texts)
        for text, own in zip(texts, ids, strict=True):
            if tokenizer.unk in own:
                unknown_bytes += tokenizer.unknown_bytes(text)
        if _has_documents(dataset):
            for document in ids:
                document.append(tokenizer.eos)
        pieces.append(Ragged.from_lists(ids, dtype).values)
    counts = {"text_bytes": [text_bytes], "unknown_bytes": unknown_bytes}
    return {"tokens": np.concatenate(pieces)} | {name: np.asarray(n, dtype=np.int64) for name, n in counts.items()}


def _has_documents(dataset: Dataset) -> bool:
    """Whether it is more than one text: then an end token stands behind each."""
    return len(dataset) > 1


def _encoded(dataset: Dataset, column: str, tokenizer: Tokenizer) -> Iterator[tuple[list[str], list[list[int]]]]:
    for batch in dataset.select_columns([column]).iter(batch_size=_ROWS):
        yield batch[column], tokenizer.encode(batch[column])


def _cached(folder: Path, make: Callable[[], dict[str, np.ndarray]]) -> dict[str, np.ndarray]:
    """The arrays of a cache entry, memory-mapped; made first where it is missing or damaged."""
    made: dict[str, np.ndarray] | None = None
    for _ in range(2):
        if folder.is_dir():
            try:
                manifest = dict(json.loads((folder / "manifest.json").read_text()))
                arrays = {name: np.load(folder / f"{name}.npy", mmap_mode="r") for name in manifest}
                if arrays and all(list(arrays[name].shape) == shape for name, shape in manifest.items()):
                    return arrays
            except PermissionError as error:  # another user's: not ours to remove
                raise UserError(
                    f"the cache entry {folder} cannot be read ({error.strerror}): name your own cache with TFX_CACHE"
                ) from error
            except (OSError, EOFError, ValueError, TypeError):
                pass
            shutil.rmtree(folder, ignore_errors=True)
        made = made or make()
        temporary = folder.with_name(f".{folder.name}.{secrets.token_hex(4)}.tmp")
        try:
            temporary.mkdir()
            for name, array in made.items():
                with open(temporary / f"{name}.npy", "wb") as file:
                    np.save(file, array)
                    file.flush()
                    os.fsync(file.fileno())  # or a power cut could leave a file of zeros behind the rename
            manifest = {name: list(array.shape) for name, array in made.items()}
            (temporary / "manifest.json").write_text(json.dumps(manifest))
            os.rename(temporary, folder)
        except OSError as error:
            if not folder.is_dir():  # else another run was faster
                raise UserError(_unwritable(folder.parent, error)) from error
        finally:
            shutil.rmtree(temporary, ignore_errors=True)
    raise UserError(
        f"the cache folder {folder} is damaged and cannot be made anew: remove it, or name another cache with TFX_CACHE"
    )


def _unwritable(folder: Path, error: OSError) -> str:
    return f"the cache folder {folder} cannot be written ({error.strerror}): name another one with TFX_CACHE"


def _fit(config: DatasetConfig, name: str, pairs: Pairs, dataset: Dataset, context: int, notes: list[str]) -> Pairs:
    """Drops training pairs that are too long or too unequal; cuts the sides of validation and test pairs."""
    longest = context - 1  # the end token of the source, the begin token of the decoder's input
    source, target = pairs.source.lengths, pairs.target.lengths
    if name != "train":
        cut = int(((source > longest) | (target > longest)).sum())
        if not cut:
            return Pairs(pairs.source, pairs.target, dataset)
        notes.append(f"{name}: {cut:,} examples cut to {longest} tokens a side")
        rows = np.arange(len(pairs))
        return Pairs(pairs.source.take(rows, longest), pairs.target.take(rows, longest), dataset)
    limit = min(longest, config.max_tokens or longest)
    short = (source <= limit) & (target <= limit)
    keep = short.copy()
    if config.max_length_ratio is not None:
        keep &= np.maximum(source, target) <= config.max_length_ratio * np.maximum(1, np.minimum(source, target))
    if not keep.any():
        ratio = f" and {config.max_length_ratio:g} times as long as its other side" if short.any() else ""
        raise UserError(
            f"no training pair of dataset '{config.name}' is within {limit} tokens a side{ratio}: raise "
            + ("dataset.max_length_ratio" if ratio else "model.context or dataset.max_tokens")
        )
    if not short.all():
        notes.append(f"train: {int((~short).sum()):,} pairs over {limit} tokens a side dropped")
    if (short & ~keep).any():
        notes.append(
            f"train: {int((short & ~keep).sum()):,} pairs with one side over {config.max_length_ratio:g} times "
            "the other dropped"
        )
    if keep.all():
        return pairs
    rows = np.flatnonzero(keep)
    return Pairs(pairs.source.take(rows), pairs.target.take(rows))
