from __future__ import annotations

import json

import pytest

from tfx.errors import UserError
from tfx.record.directory import RunDirectory
from tfx.record.files import read_json, replacing, write_json, write_json_lines, write_text


@pytest.mark.parametrize("before", ["old", None])
@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_an_error_leaves_the_old_file_and_no_temporary_one(tmp_path, before, error):
    path = tmp_path / "file"
    if before is not None:
        path.write_text(before)

    def write():
        with replacing(path) as temporary:
            temporary.write_text("half of the n")
            raise error

    with pytest.raises(error):
        write()
    assert [p.read_text() for p in tmp_path.iterdir()] == ([before] if before is not None else [])


def test_a_block_that_writes_nothing_fails_and_leaves_the_old_file(tmp_path):
    path = tmp_path / "file"
    path.write_text("old")
    with pytest.raises(FileNotFoundError), replacing(path):
        pass
    assert path.read_text() == "old"


def test_until_the_end_readers_see_the_old_file_and_then_the_new_one(tmp_path):
    path = tmp_path / "file"
    path.write_text("old")
    with replacing(path) as temporary:
        assert temporary.parent == path.parent  # a rename across file systems would not be whole
        temporary.write_text("new")
        assert path.read_text() == "old"
    assert path.read_text() == "new"
    assert list(tmp_path.iterdir()) == [path]


def test_two_writers_of_one_file_do_not_share_a_temporary(tmp_path):
    path = tmp_path / "file"
    with replacing(path) as first, replacing(path) as second:
        assert first != second
        first.write_text("first")
        second.write_text("second")
    assert path.read_text() == "first"


def test_text_and_json_survive_with_every_character(tmp_path):
    path, value = tmp_path / "file", {"ü": ["„“", 1.5, None], "n": 10**18}
    write_json(path, value)
    assert read_json(path) == value
    write_text(path, "größe\n")
    assert path.read_bytes() == "größe\n".encode()
    rows = [{"a": "line\nbreak"}, {"a": "\u2028"}]
    write_json_lines(path, rows)
    assert [json.loads(line) for line in path.read_text(encoding="utf-8").split("\n")[:-1]] == rows


@pytest.mark.parametrize("content", [b"{", b"\xff\xfe", b""])
def test_broken_json_is_a_user_error_that_names_the_file(tmp_path, content):
    path = tmp_path / "broken.json"
    path.write_bytes(content)
    with pytest.raises(UserError, match=r"broken\.json is not readable JSON"):
        read_json(path)


def test_a_missing_file_and_a_folder_are_user_errors(tmp_path):
    with pytest.raises(UserError, match="does not exist"):
        read_json(tmp_path / "none.json")
    with pytest.raises(UserError, match="not readable"):
        read_json(tmp_path)


@pytest.mark.parametrize(
    ("content", "words"),
    [('{"format_version": 99}', "update tfx"), ("[1]", "no JSON object"), ("{", "not readable JSON")],
)
def test_a_summary_that_this_version_cannot_read_is_refused_in_words(tmp_path, content, words):
    (tmp_path / "summary.json").write_text(content)
    with pytest.raises(UserError, match=words):
        RunDirectory(tmp_path).read_summary()
