"""What tests of commands have in common."""

import pytest


@pytest.fixture
def here(tmp_path, monkeypatch):
    """An empty working directory, with a cache of its own beside it."""
    monkeypatch.setenv("TFX_CACHE", str(tmp_path / "cache"))
    folder = tmp_path / "here"
    folder.mkdir()
    monkeypatch.chdir(folder)
    return folder


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A working directory with a cache of its own, and `text.txt` to model."""
    path = tmp_path_factory.mktemp("runs")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TFX_CACHE", str(path / "cache"))
        patch.chdir(path)
        (path / "text.txt").write_text("".join(f"line {i} of a little text\n" for i in range(300)))
        yield path
