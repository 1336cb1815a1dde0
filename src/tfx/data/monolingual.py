"""Text without references: as many more inputs as a teacher can say something of."""

from __future__ import annotations

import glob
import hashlib
from pathlib import Path

from tfx.config.schema import DatasetConfig
from tfx.config.task_facts import TASKS
from tfx.data.corpus import Corpus
from tfx.data.loaders import SourceFile
from tfx.data.plain_text import TextFile, Unchanged, cr_note, file_digest
from tfx.data.rows import text_dataset
from tfx.errors import UserError
from tfx.terminal.console import counted


def read_monolingual(config: DatasetConfig) -> Corpus:
    """The texts of ``dataset.monolingual``, as a corpus with the column ``text`` alone and a training split alone.

    Each line is an input; where the texts of a task form one stream, each file is a text. Raises `UserError` if there
    are none.
    """
    paths = _files(config)
    texts: list[str] = []
    notes: list[str] = []
    digest, files = hashlib.sha256(), []
    empty = 0
    unchanged = Unchanged(paths)
    for path in paths:
        file = TextFile(path)
        digest.update(file_digest(path))
        own = [file.text()] if TASKS[config.task].is_stream else [line.strip() for line in file.lines()]
        notes += cr_note(path, file.cr) + file.mark_note()
        texts += (kept := [text for text in own if text])
        empty += len(own) - len(kept)
        files.append(SourceFile(path.name, None if TASKS[config.task].is_stream else len(own)))
    unchanged.check()
    if empty:
        notes.append(f"monolingual: {counted(empty, 'line')} without text left out")
    if not texts:
        raise UserError(f"dataset.monolingual={config.monolingual} holds no text: give it some, or leave it out")
    splits = {"train": text_dataset(texts)}
    return Corpus(config.task, splits, digest.hexdigest(), notes, {"train": files}, is_labelled=False)


def _files(config: DatasetConfig) -> list[Path]:
    """The file, the files of the folder, or those that a glob matches; hidden ones are left out."""
    assert config.monolingual is not None
    given = Path(config.monolingual)
    if given.is_dir():
        found = [path for path in given.iterdir() if path.is_file() and not path.name.startswith(".")]
    elif given.is_file():
        found = [given]
    else:
        found = [path for path in map(Path, glob.glob(str(given), recursive=True)) if path.is_file()]
    if not found:
        raise UserError(
            f"dataset.monolingual={config.monolingual} "
            + ("is a folder without files" if given.is_dir() else "does not exist, and matches no file as a glob")
            + ": name text files, with a text on each line"
        )
    return sorted(found)
