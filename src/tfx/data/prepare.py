"""From text to token ids on disk: the tokenizer and the tokenized splits, cached by fingerprint.

A cache entry is a folder named by the fingerprint of everything that made it. It is written beside its
place and renamed, so it is whole or not there; two runs that make it at once do no harm.
"""

from __future__ import annotations

import hashlib
import json
import os
import secrets
import shutil
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from tfx.config.schema import DatasetConfig
from tfx.data.sources import Corpus, load_corpus
from tfx.data.tokenizer import Tokenizer
from tfx.errors import UserError
from tfx.run.directory import cache_folder

if TYPE_CHECKING:
    from datasets import Dataset

_VERSION = 1
_CHUNK_CHARACTERS = 1 << 16


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
    def from_lists(cls, sequences: list[list[int]], dtype: Any) -> Ragged:
        """Concatenates lists of ids."""
        offsets = np.zeros(len(sequences) + 1, dtype=np.int64)
        np.cumsum([len(sequence) for sequence in sequences], out=offsets[1:])
        values = np.fromiter((i for sequence in sequences for i in sequence), dtype=dtype, count=int(offsets[-1]))
        return cls(values, offsets)


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
    """A tokenized split of language-model data: one array of ids, and the UTF-8 bytes of the text in it."""

    tokens: np.ndarray
    text_bytes: int

    def __len__(self) -> int:
        return len(self.tokens)


@dataclass
class PreparedData:
    """All that training and evaluation read. ``splits`` lacks ``test`` where the data have none."""

    name: str
    task: str
    tokenizer: Tokenizer
    splits: dict[str, Any]
    fingerprint: str
    notes: list[str] = field(default_factory=list)

    @property
    def test_split(self) -> str:
        """The split that the result is measured on: ``test``, or ``valid`` in its place."""
        return "test" if "test" in self.splits else "valid"


def prepare_data(config: DatasetConfig, context: int, tokenizer: Tokenizer | None = None) -> PreparedData:
    """Loads, tokenizes and caches a data set.

    ``context`` is the longest sequence that the model takes: longer training examples are dropped, longer
    validation and test examples cut, both counted in ``notes``. ``tokenizer`` overrides the config's (that of
    a model that exists already). Raises `UserError` for whatever is wrong with the data.
    """
    corpus = load_corpus(config)
    if tokenizer is None:
        tokenizer = _tokenizer(config, corpus)
    fingerprint = _fingerprint(corpus.fingerprint, tokenizer.fingerprint)
    notes = list(corpus.notes)
    splits: dict[str, Any] = {}
    for name, dataset in corpus.splits.items():
        arrays = _cached(
            cache_folder() / "tokenized" / f"{fingerprint[:32]}-{name}",
            lambda dataset=dataset: _tokenize(corpus.task, dataset, tokenizer),
        )
        if corpus.task == "lm":
            splits[name] = Stream(arrays["tokens"], int(arrays["text_bytes"][0]))
            unknown = int((splits[name].tokens == tokenizer.unk).sum())
        else:
            pairs = Pairs(
                Ragged(arrays["source"], arrays["source_offsets"]), Ragged(arrays["target"], arrays["target_offsets"])
            )
            splits[name] = _fit(config, name, pairs, dataset, context, notes)
            unknown = int((pairs.source.values == tokenizer.unk).sum() + (pairs.target.values == tokenizer.unk).sum())
        if unknown:
            notes.append(f"{name}: {unknown:,} tokens that the tokenizer does not know")
    return PreparedData(config.name, corpus.task, tokenizer, splits, fingerprint, notes)


def _fingerprint(*parts: str) -> str:
    return hashlib.sha256("\0".join([str(_VERSION), *parts]).encode()).hexdigest()


# --- tokenizer --------------------------------------------------------------------------------------


def _tokenizer(config: DatasetConfig, corpus: Corpus) -> Tokenizer:
    if config.tokenizer.path is not None:
        return Tokenizer.load(Path(config.tokenizer.path).expanduser())
    settings = json.dumps(asdict(config.tokenizer), sort_keys=True)
    folder = cache_folder() / "tokenizers"
    path = folder / f"{_fingerprint(corpus.fingerprint, settings)[:32]}.json"
    if path.is_file():
        try:
            return Tokenizer.load(path)
        except UserError:
            path.unlink()  # damaged: made anew
    tokenizer = Tokenizer.train(config.tokenizer, _training_texts(corpus), word_initial_space=corpus.task == "seq2seq")
    folder.mkdir(parents=True, exist_ok=True)
    temporary = folder / f".{secrets.token_hex(8)}.tmp"
    temporary.write_text(tokenizer.to_json(), encoding="utf-8")
    os.replace(temporary, path)
    # Read back, so that the run that trained it and those that find it use the very same one.
    return Tokenizer.load(path)


def _training_texts(corpus: Corpus) -> Iterator[str]:
    train = corpus.splits["train"]
    if corpus.task == "lm":
        for row in train:
            yield from _chunks(row["text"])
        return
    for row in train:
        yield row["source"]
        yield row["target"]


# --- tokenized splits -------------------------------------------------------------------------------


def _chunks(text: str) -> Iterator[str]:
    """Pieces of whole lines, about 64 kB each: one long text would be tokenized on one core, slowly."""
    start = 0
    while start < len(text):
        end = text.find("\n", start + _CHUNK_CHARACTERS)
        end = len(text) if end < 0 else end + 1
        yield text[start:end]
        start = end


def _tokenize(task: str, dataset: Dataset, tokenizer: Tokenizer) -> dict[str, np.ndarray]:
    dtype = np.uint16 if tokenizer.vocab_size <= 1 << 16 else np.uint32
    if task == "seq2seq":
        arrays = {}
        for side in ("source", "target"):
            ids: list[list[int]] = []
            for batch in dataset.select_columns([side]).iter(batch_size=10_000):
                ids += tokenizer.encode(batch[side])
            ragged = Ragged.from_lists(ids, dtype)
            arrays[side], arrays[f"{side}_offsets"] = ragged.values, ragged.offsets
        return arrays
    pieces: list[np.ndarray] = []
    text_bytes = 0
    documents = len(dataset)
    for row in dataset:
        chunks = list(_chunks(row["text"]))
        text_bytes += sum(len(chunk.encode("utf-8", "surrogatepass")) for chunk in chunks)
        pieces += [np.asarray(ids, dtype=dtype) for ids in tokenizer.encode(chunks)]
        if documents > 1:
            pieces.append(np.asarray([tokenizer.eos], dtype=dtype))
    tokens = np.concatenate(pieces) if pieces else np.empty(0, dtype)
    return {"tokens": tokens, "text_bytes": np.asarray([text_bytes], dtype=np.int64)}


def _cached(folder: Path, make: Any) -> dict[str, np.ndarray]:
    """The arrays of a cache entry, memory-mapped; made first where it is missing or damaged."""
    for _ in range(2):
        if folder.is_dir():
            try:
                manifest = json.loads((folder / "manifest.json").read_text())
                arrays = {name: np.load(folder / f"{name}.npy", mmap_mode="r") for name in manifest}
                if all(list(arrays[name].shape) == shape for name, shape in manifest.items()):
                    return arrays
            except (OSError, ValueError):
                pass
            shutil.rmtree(folder, ignore_errors=True)
        temporary = folder.with_name(f".{folder.name}.{secrets.token_hex(4)}.tmp")
        try:
            temporary.mkdir(parents=True)
            made = make()
            for name, array in made.items():
                np.save(temporary / f"{name}.npy", array)
            manifest = {name: list(array.shape) for name, array in made.items()}
            (temporary / "manifest.json").write_text(json.dumps(manifest))
            os.rename(temporary, folder)
        except OSError as error:
            if not folder.is_dir():  # else another run was faster
                raise UserError(f"the cache folder {folder.parent} cannot be written: {error.strerror}") from error
        finally:
            shutil.rmtree(temporary, ignore_errors=True)
    raise UserError(f"the cache folder {folder} is damaged and cannot be made anew: remove it")


def _fit(config: DatasetConfig, name: str, pairs: Pairs, dataset: Dataset, context: int, notes: list[str]) -> Pairs:
    """Drops training pairs that are too long or too unequal; cuts the sides of validation and test pairs."""
    longest = context - 1  # the end token of the source, the begin token of the decoder's input
    limit = min(longest, config.max_tokens or longest)
    source, target = pairs.source.lengths, pairs.target.lengths
    if name == "train":
        keep = (source <= limit) & (target <= limit)
        if config.max_length_ratio is not None:
            ratio = np.maximum(source, target) / np.maximum(1, np.minimum(source, target))
            keep &= ratio <= config.max_length_ratio
        if keep.all():
            return pairs
        if not keep.any():
            raise UserError(
                f"no training pair of dataset '{config.name}' is within {limit} tokens a side: "
                "raise model.context or dataset.max_tokens"
            )
        notes.append(f"train: {int((~keep).sum()):,} pairs over {limit} tokens a side or too unequal dropped")
        rows = np.flatnonzero(keep)
        return Pairs(*(_take(ragged, rows, None) for ragged in (pairs.source, pairs.target)))
    cut = int(((source > longest) | (target > longest)).sum())
    if cut:
        notes.append(f"{name}: {cut:,} examples cut to {longest} tokens a side")
        rows = np.arange(len(pairs))
        return Pairs(*(_take(ragged, rows, longest) for ragged in (pairs.source, pairs.target)), dataset)
    return Pairs(pairs.source, pairs.target, dataset)


def _take(ragged: Ragged, rows: np.ndarray, longest: int | None) -> Ragged:
    pieces = [ragged[row][:longest] for row in rows]
    offsets = np.zeros(len(rows) + 1, dtype=np.int64)
    np.cumsum([len(piece) for piece in pieces], out=offsets[1:])
    return Ragged(np.concatenate(pieces), offsets)
