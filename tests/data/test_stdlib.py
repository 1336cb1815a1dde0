"""What `stdlib.read` takes and leaves out, on a small made-up library and on the real one."""

import ast
import sysconfig
from collections.abc import Callable
from pathlib import Path

import pytest

from tfx.data import stdlib

Library = Callable[[dict[str, bytes]], None]


@pytest.fixture
def library(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Library:
    """Return a function that makes the given files the standard library."""

    def make(files: dict[str, bytes]) -> None:
        for name, content in files.items():
            path = tmp_path / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content)
        monkeypatch.setattr(sysconfig, "get_path", {"stdlib": str(tmp_path)}.__getitem__)

    return make


@pytest.fixture(scope="module")
def real() -> dict[str, list[dict[str, str]]]:
    return stdlib.read()


def texts(splits: dict[str, list[dict[str, str]]]) -> list[str]:
    return [document["text"] for split in splits.values() for document in split]


def test_takes_sources_of_all_folders(library: Library) -> None:
    library({"a.py": b"a = 1\n", "pkg/b.py": b"b = 2\n", "pkg/sub/contest.py": b"c = 3\n"})
    assert sorted(texts(stdlib.read())) == ["a = 1\n", "b = 2\n", "c = 3\n"]


@pytest.mark.parametrize(
    "name",
    [
        "test/support.py",
        "pkg/tests/data.py",
        "idlelib/idle_test/mock.py",
        "lib2to3/tests/data/bom.py",
        "pkg/test_pkg.py",
        "site-packages/numpy.py",
        "dist-packages/numpy.py",
        "__pycache__/a.py",
        "_sysconfigdata_linux.py",
        "a.txt",
        "a.pyc",
    ],
)
def test_leaves_out(library: Library, name: str) -> None:
    library({"kept.py": b"kept = 1\n", name: b"left = 0\n"})
    assert texts(stdlib.read()) == ["kept = 1\n"]


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b" \n\n",
        b"name = '\xff'\n",
        b"# coding: nonsense\n",
        b"# coding: rot13\n",
        b"# coding: ascii\n'\xc3\xa9'\n",
    ],
)
def test_leaves_out_empty_and_undecodable_files(library: Library, content: bytes) -> None:
    library({"kept.py": b"kept = 1\n", "odd.py": content})
    assert texts(stdlib.read()) == ["kept = 1\n"]


def test_decodes_by_declared_coding(library: Library) -> None:
    library({"latin.py": b"# coding: latin-1\nname = '\xe9'\n", "bom.py": b"\xef\xbb\xbfx = '\xc3\xa9'\r\n"})
    assert sorted(texts(stdlib.read())) == ["# coding: latin-1\nname = 'é'\n", "x = 'é'\n"]


def test_documents_are_in_order_of_paths(library: Library) -> None:
    names = [f"{folder}{number}.py" for folder in ("", "b/", "a/c/") for number in range(50)]
    library({name: name.encode() for name in names})
    for documents in stdlib.read().values():
        paths = [tuple(document["text"].split("/")) for document in documents]
        assert paths == sorted(paths)


def test_split_depends_on_nothing_but_the_path(library: Library) -> None:
    names = [f"pkg/module{number}.py" for number in range(200)]
    library({name: name.encode() for name in names[:100]})
    before = stdlib.read()
    library({name: name.encode() for name in names})
    after = stdlib.read()
    for split, documents in before.items():
        assert documents
        assert {document["text"] for document in documents} <= {document["text"] for document in after[split]}


def test_split_of_known_paths_never_changes(library: Library) -> None:
    known = {"train": "typing.py", "valid": "tarfile.py", "test": "inspect.py"}
    library({name: name.encode() for name in known.values()})
    assert stdlib.read() == {split: [{"text": name}] for split, name in known.items()}


def test_no_sources(library: Library, tmp_path: Path) -> None:
    library({"test/a.py": b"a = 1\n"})
    with pytest.raises(FileNotFoundError, match=str(tmp_path)):
        stdlib.read()


def test_real_library_is_read_the_same_twice(real: dict[str, list[dict[str, str]]]) -> None:
    assert stdlib.read() == real


def test_real_library_has_about_the_shares(real: dict[str, list[dict[str, str]]]) -> None:
    total = len(texts(real))
    assert total > 400
    assert list(real) == ["train", "valid", "test"]
    assert 0.87 < len(real["train"]) / total < 0.93
    assert 0.03 < len(real["valid"]) / total < 0.08
    assert 0.03 < len(real["test"]) / total < 0.08


def test_real_documents_are_whole_files(real: dict[str, list[dict[str, str]]]) -> None:
    known = Path(sysconfig.get_path("stdlib"), "inspect.py").read_text(encoding="utf-8")
    assert known in texts(real)
    for document in real["valid"]:
        assert set(document) == {"text"}
        ast.parse(document["text"])


def test_real_library_has_no_tests_and_no_installed_packages(real: dict[str, list[dict[str, str]]]) -> None:
    root = Path(sysconfig.get_path("stdlib"))
    found = [*root.glob("test/**/*.py"), *root.glob("*/tests/**/*.py"), Path(pytest.__file__)]
    taken = set(texts(real))
    for path in found:
        text = path.read_text(encoding="utf-8", errors="ignore")
        # Some tests are no more than a line, and the same as a file of the library.
        assert len(text) < 1_000 or text not in taken
