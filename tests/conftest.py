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
