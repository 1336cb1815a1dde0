"""What the tests of one module run in: a directory of theirs, whose runs several of them look at."""

import pytest


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A working directory with a cache of its own, and `text.txt` to model."""
    path = tmp_path_factory.mktemp("commands")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TFX_CACHE", str(path / "cache"))
        patch.chdir(path)
        (path / "text.txt").write_text("".join(f"line {i} of a little text\n" for i in range(300)))
        yield path
