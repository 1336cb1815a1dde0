"""The embedded data set `stdlib`: the Python standard library as text for a language model.

The documents are the source files of the running Python's library. So nothing is downloaded, and the text differs a
little between Python versions.
"""

import hashlib
import os
import sysconfig
import tokenize
from pathlib import Path, PurePosixPath

# Tests would be over half of the text, and installed packages are not part of the standard library.
LEFT_OUT_FOLDERS = frozenset({"test", "tests", "idle_test", "site-packages", "dist-packages", "__pycache__"})
LEFT_OUT_PREFIXES = ("test_", "_sysconfigdata_")

TRAIN_PERCENT = 90
VALID_PERCENT = 5


def read() -> dict[str, list[dict[str, str]]]:
    """Reads the standard library, one document per file.

    Returns the documents of the splits ``train``, ``valid`` and ``test``, each with its ``text``, in the order
    of the files' paths. The path of a file inside the library alone decides its split: about 90 % of the files
    are in train, and 5 % each in valid and test. Tests, installed packages, the record of how Python was built,
    empty files, and files that their declared encoding (else UTF-8) cannot decode are left out.

    Raises `FileNotFoundError` if the standard library has no source files, as in some embedded Pythons.
    """
    root = Path(sysconfig.get_path("stdlib"))
    splits: dict[str, list[dict[str, str]]] = {"train": [], "valid": [], "test": []}
    for path in _source_paths(root):
        text = _decode(root / path)
        if text is not None and text.strip():
            splits[_split_of(path)].append({"text": text})
    if not any(splits.values()):
        raise FileNotFoundError(f"no source files of the Python standard library in {root}")
    return splits


def _source_paths(root: Path) -> list[PurePosixPath]:
    """Paths of the source files relative to ``root``, in the same order on every platform."""
    paths = []
    for folder, subfolders, names in os.walk(root):
        subfolders[:] = [name for name in subfolders if name not in LEFT_OUT_FOLDERS]
        paths += [
            PurePosixPath(Path(folder, name).relative_to(root).as_posix())
            for name in names
            if name.endswith(".py") and not name.startswith(LEFT_OUT_PREFIXES)
        ]
    return sorted(paths)


def _decode(path: Path) -> str | None:
    try:
        with tokenize.open(path) as file:
            return file.read()
    except (SyntaxError, LookupError, UnicodeDecodeError):
        # The coding is unknown, is not one of text, or is not the coding of the file.
        return None


def _split_of(path: PurePosixPath) -> str:
    position = int.from_bytes(hashlib.sha256(str(path).encode()).digest()[:8], "big") % 100
    if position < TRAIN_PERCENT:
        return "train"
    return "valid" if position < TRAIN_PERCENT + VALID_PERCENT else "test"
