"""Rows on disk come back as they were, from files that are read in pieces, and take no memory once they are read."""

import re
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tfx.config.schema import DatasetConfig
from tfx.data import loaders as origins
from tfx.data import plain_text as reading
from tfx.data import records, store
from tfx.data.corpus import load_corpus
from tfx.data.plain_text import TextFile
from tfx.data.ragged import ArrayFiles, ArrayLists
from tfx.data.table_rows import csv_rows, json_rows
from tfx.errors import UserError

COLUMNS = {"text": "large_string", "key": "int64"}


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch) -> Path:
    monkeypatch.setenv("TFX_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def resident(path: Path) -> int:
    """Bytes of a file's memory maps that count as memory of this process."""
    whole, inside = 0, False
    for line in Path("/proc/self/smaps").read_text().splitlines():
        if re.match(r"[0-9a-f]+-[0-9a-f]+ ", line):
            inside = str(path) in line
        elif inside and line.startswith("Rss:"):
            whole += int(line.split()[1]) * 1024
    return whole


@pytest.mark.skipif(not Path("/proc/self/smaps").exists(), reason="asks Linux which pages are resident")
def test_rows_that_were_read_take_no_memory(cache):
    rows = [(f"{number:06d}" * 150, number) for number in range(20_000)]
    dataset, _ = store.kept("a" * 64, COLUMNS, lambda facts: store.batches_of(rows, COLUMNS))
    (file,) = cache.glob("rows/*/rows.arrow")
    assert file.stat().st_size > 18_000_000
    assert max(map(len, dataset.data.column("text").to_pylist())) == 900
    assert resident(file) > 15_000_000, "reading them as they lie keeps their pages"
    store.release()
    seen, most = 0, 0
    for batch in store.scan(dataset, ["text", "key"]):
        assert batch["text"][0] == rows[seen][0]
        seen, most = seen + len(batch["key"]), max(most, resident(file))
    assert seen == len(rows)
    assert most < 10_000_000
    assert resident(file) < 1_000_000


def test_a_batch_of_long_texts_has_few_rows():
    rows = [("x" * 1_000_000, 0)] * 9
    assert [len(batch["key"]) for batch in store.batches_of(rows, COLUMNS)] == [5, 4]


def test_selected_rows_are_scanned_in_their_order():
    rows = [(str(number), number) for number in range(12)]
    dataset = store.in_memory(COLUMNS, store.batches_of(rows, COLUMNS), "b" * 64)
    for kept in ([3, 4, 9], list(range(2, 7)), []):
        found = [row for batch in store.scan(dataset.select(kept), ["key"]) for row in batch["key"]]
        assert found == kept


@pytest.mark.parametrize("how", ["cut", "no facts", "facts"])
def test_local_files_are_read_once_and_again_where_their_rows_are_damaged(tmp_path, cache, monkeypatch, how):
    read = []
    whole = records.parallel_rows
    monkeypatch.setattr(origins, "parallel_rows", lambda *arguments: read.append(1) or whole(*arguments))
    for split in ("train", "valid"):
        (tmp_path / f"{split}.en").write_text("a\n b\n")
        (tmp_path / f"{split}.de").write_text("c\r\nd\re\n".replace("\re", "") if split == "valid" else "c\rd\n")
    config = DatasetConfig(path=str(tmp_path), source="en", target="de")
    first = load_corpus(config)
    rows = first.splits["train"][:]
    again = load_corpus(config)
    assert len(read) == 2
    assert again.notes == first.notes
    assert any("\\r alone" in note for note in again.notes)
    assert again.fingerprint == first.fingerprint
    entry = next(path for path in cache.glob("rows/*") if "r alone" in (path / "facts.json").read_text())
    if how == "cut":
        (entry / "rows.arrow").write_bytes((entry / "rows.arrow").read_bytes()[:200])
    elif how == "no facts":
        (entry / "facts.json").unlink()
    else:
        (entry / "facts.json").write_text("[")
    third = load_corpus(config)
    assert len(read) == 3
    assert third.splits["train"][:] == rows


# --- files in pieces --------------------------------------------------------------------------------

PARTS = st.lists(st.sampled_from([b"a", b"\n", b"\r", b"\r\n", "ü".encode(), b"\xef\xbb\xbf", b"\t", b'"', b",", b" "]))


@settings(max_examples=150, deadline=None)
@given(parts=PARTS, block=st.integers(1, 7))
def test_a_file_in_pieces_is_the_whole_file(tmp_path_factory, parts, block):
    path = tmp_path_factory.getbasetemp() / "pieces.txt"
    path.write_bytes(b"".join(parts))
    whole = b"".join(parts).decode("utf-8-sig")
    text = whole.replace("\r\n", "\n").replace("\r", "\n")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(reading, "_BLOCK", block)
        file = TextFile(path)
        assert file.text() == text
        assert list(file.lines()) == (text.removesuffix("\n").split("\n") if text else [])
        assert "".join(file.pieces(one_line_end=False)) == whole
        assert file.crlf == whole.count("\r\n")
        assert file.cr == whole.count("\r") - file.crlf
        file.text()
        marked = text.count("\n\ufeff")
        first = text.count("\n", 0, text.find("\n\ufeff")) + 2
        note = (
            f"pieces.txt: {marked} byte order marks (U+FEFF) begin lines, the first line {first}, and are taken as text"
        )
        assert file.mark_note() == [note] * (marked > 0)


def told(read, path: Path) -> object:
    notes: list[str] = []
    try:
        return list(read(path, notes)), notes
    except UserError as error:
        return str(error)


@settings(max_examples=200, deadline=None)
@given(cells=PARTS, block=st.integers(1, 9), kind=st.sampled_from(["csv", "tsv", "jsonl"]))
def test_tables_in_pieces_have_the_rows_notes_and_errors_of_whole_ones(tmp_path_factory, cells, block, kind):
    path = tmp_path_factory.getbasetemp() / f"table.{kind}"
    content = b"".join(cells)
    path.write_bytes(b'{"a": 1}\n' + content if kind == "jsonl" else b"x\ty\n1\t2\n" + content)
    read = json_rows if kind == "jsonl" else csv_rows
    whole = told(read, path)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(reading, "_BLOCK", block)
        assert told(read, path) == whole


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"one\ntwo\xff\n", r"line 2: not UTF-8 \(byte 0xff\)"),
        (b"one\r\ntwo\rthree\n\xc3", r"line 4: not UTF-8 \(byte 0xc3\)"),
        (b"one\n\xfftwo\nthree\n\x00", "line 4: a NUL byte"),
        (b"\x00", "line 1: a NUL byte"),
    ],
)
def test_an_error_in_any_piece_has_its_line(tmp_path, monkeypatch, content, words):
    monkeypatch.setattr(reading, "_BLOCK", 4)
    (tmp_path / "a.txt").write_bytes(content)
    with pytest.raises(UserError, match=words):
        TextFile(tmp_path / "a.txt").text()


# --- arrays in pieces -------------------------------------------------------------------------------


@given(pieces=st.lists(st.lists(st.integers(0, 65_535), max_size=5), min_size=1))
def test_an_array_written_in_pieces_is_the_file_that_numpy_writes(tmp_path_factory, pieces):
    folder = tmp_path_factory.getbasetemp()
    arrays = [np.asarray(piece, dtype=np.uint16) for piece in pieces]
    files, lists = ArrayFiles(folder), ArrayLists()
    for array in arrays:
        files.append("ids", array)
        lists.append("ids", array)
    whole = np.concatenate(arrays)
    np.save(folder / "whole.npy", whole)
    assert files.close() == {"ids": [len(whole)]}
    assert (folder / "ids.npy").read_bytes() == (folder / "whole.npy").read_bytes()
    np.testing.assert_array_equal(lists.close()["ids"], whole)
