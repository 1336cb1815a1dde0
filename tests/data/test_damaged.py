"""Files of data that are damaged, or that change while they are read, are refused; none is read in part."""

import bz2
import json
import lzma
import os

import pyarrow
import pyarrow.parquet
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tfx.config.schema import DatasetConfig
from tfx.data import records
from tfx.data.corpus import load_corpus
from tfx.data.plain_text import unpacked
from tfx.errors import UserError

PACKERS = {"bz2": bz2.compress, "xz": lzma.compress}


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("TFX_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def lines(count, word="w"):
    rows = ({"source": f"{word} {i}", "target": f"t {i}"} for i in range(count))
    return "".join(json.dumps(row) + "\n" for row in rows)


def config(path, **settings):
    settings = {"name": "mine", "format": "json", "valid_fraction": 0.1, **settings}
    return DatasetConfig(path=str(path), source="source", target="target", **settings)


@pytest.mark.parametrize("kind", PACKERS)
@given(parts=st.lists(st.binary(max_size=40), min_size=1, max_size=4), padding=st.integers(0, 3))
def test_streams_one_after_the_other_are_one_content(tmp_path_factory, kind, parts, padding):
    path = tmp_path_factory.mktemp("packed") / f"a.{kind}"
    between = bytes(4 * padding) if kind == "xz" else b""
    path.write_bytes(b"".join(PACKERS[kind](part) + between for part in parts))
    assert b"".join(unpacked(path)) == b"".join(parts)


@pytest.mark.parametrize("kind", PACKERS)
@pytest.mark.parametrize("how", ["first byte", "cut", "more"])
def test_a_stream_behind_another_that_is_damaged_is_refused(tmp_path, kind, how):
    second = bytearray(PACKERS[kind](b"more than a few bytes"))
    if how == "first byte":
        second[1] ^= 1
    tail = {"first byte": bytes(second), "cut": bytes(second[:-6]), "more": b"abcdef"}[how]
    path = tmp_path / f"a.{kind}"
    path.write_bytes(PACKERS[kind](b"one") + tail)
    with pytest.raises(UserError, match=r"cannot be unpacked.*it is cut or damaged"):
        list(unpacked(path))


def test_a_file_that_changes_while_it_is_read_leaves_nothing_in_the_cache(tmp_path, cache, monkeypatch):
    path = tmp_path / "a.jsonl"
    path.write_text(lines(50))
    read = records.table_rows

    def changing(*arguments):
        path.write_text(lines(50, "x"))
        yield from read(*arguments)

    monkeypatch.setattr("tfx.data.loaders.table_rows", changing)
    with pytest.raises(UserError, match=r"a.jsonl changed while it was read: start again"):
        load_corpus(config(path))
    monkeypatch.undo()
    monkeypatch.setenv("TFX_CACHE", str(cache))
    path.write_text(lines(50))
    assert load_corpus(config(path)).splits["train"][0]["source"].startswith("w ")


def test_rows_that_are_cut_between_two_batches_are_made_again(tmp_path, cache, monkeypatch):
    monkeypatch.setattr("tfx.data.store._BATCH_ROWS", 10)
    path = tmp_path / "a.jsonl"
    path.write_text(lines(60))
    whole = {name: len(split) for name, split in load_corpus(config(path)).splits.items()}
    (kept,) = cache.glob("rows/*/rows.arrow")
    with open(kept, "rb+") as file:
        reader = pyarrow.ipc.open_stream(file)
        reader.read_next_batch()
        place = file.tell()
        file.truncate(place)
    assert {name: len(split) for name, split in load_corpus(config(path)).splits.items()} == whole


def test_what_a_killed_process_was_making_is_removed_a_day_later(tmp_path, cache):
    path = tmp_path / "a.jsonl"
    path.write_text(lines(60))
    load_corpus(config(path))
    (entry,) = cache.glob("rows/*/")
    old, new = (entry.with_name(f".{entry.name}.{name}.tmp") for name in ("old", "new"))
    for folder in (old, new):
        folder.mkdir()
        (folder / "rows.arrow").write_bytes(b"half")
    for file in (old, old / "rows.arrow", new):
        os.utime(file, (0, 0))
    (entry / "facts.json").unlink()  # so it is made again
    load_corpus(config(path))
    assert not old.exists()
    assert (new / "rows.arrow").exists()


@pytest.mark.parametrize("streaming", [False, True])
def test_a_table_with_a_text_that_is_none_is_refused_in_a_line(tmp_path, cache, streaming):
    texts = [f"t {i}" for i in range(60)]
    spoilt = pyarrow.array([b"caf\xe9 %d" % i for i in range(60)]).buffers()
    sources = pyarrow.Array.from_buffers(pyarrow.string(), 60, spoilt)
    (tmp_path / "pq").mkdir()
    pyarrow.parquet.write_table(pyarrow.table({"source": sources, "target": texts}), tmp_path / "pq/train.parquet")
    pyarrow.parquet.write_table(pyarrow.table({"source": texts, "target": texts}), tmp_path / "pq/valid.parquet")
    settings = {"name": "mine", "path": str(tmp_path / "pq"), "format": "parquet", "streaming": streaming}
    table = DatasetConfig(source="source", target="target", **settings)
    with pytest.raises(UserError, match=r"of dataset 'mine' cannot be read.*UnicodeDecodeError.*0xe9"):
        list(load_corpus(table).stream.texts(10))


def test_a_streamed_pointer_of_git_lfs_is_refused(tmp_path, cache):
    folder = tmp_path / "lfs"
    folder.mkdir()
    (folder / "train.jsonl").write_text("version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 12345\n")
    (folder / "valid.jsonl").write_text(lines(3))
    with pytest.raises(UserError, match="is a pointer of Git LFS"):
        load_corpus(config(folder, streaming=True))


def test_a_streamed_file_that_is_replaced_stops_the_next_pass(tmp_path, cache):
    folder = tmp_path / "s"
    folder.mkdir()
    (folder / "train.jsonl").write_text(lines(30))
    (folder / "valid.jsonl").write_text(lines(3))
    stream = load_corpus(config(folder, streaming=True)).stream
    assert len(list(stream.texts(5))) == 10
    (folder / "train.jsonl").touch()
    assert len(list(stream.texts(5))) == 10
    (folder / "train.jsonl").write_text(lines(30, "x"))
    with pytest.raises(UserError, match=r"train.jsonl changed while the run reads it"):
        list(stream.texts(5))
