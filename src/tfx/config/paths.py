"""Makes the paths of a config absolute, so that a run does not depend on the folder that it was started in."""

from __future__ import annotations

import os
from contextlib import suppress
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any

from tfx.errors import UserError


def make_absolute(values: dict[str, Any], schema: Any, prefix: str) -> None:
    """Makes the paths in ``values`` absolute, so that a saved config does not depend on the current folder."""
    for f in fields(schema):
        value = values.get(f.name)
        if is_dataclass(f.default_factory) and isinstance(value, dict):
            make_absolute(value, f.default_factory, f"{prefix}{f.name}.")
        elif f.metadata.get("path") and isinstance(value, list):
            values[f.name] = [absolute(entry, f"{prefix}{f.name}") for entry in value]
        elif f.metadata.get("path") and isinstance(value, str):
            values[f.name] = absolute(value, f"{prefix}{f.name}")


def absolute(value: Any, name: str) -> Any:
    """A path from the root, for the setting ``name``; what is no text in a list is left to the check of its type.

    ``~`` is the home folder. Raises `UserError` for an empty path, or if no home folder is known.
    """
    if not isinstance(value, str):
        return value
    if not value:
        raise UserError(f"{name} is empty, as where a shell variable is not set: name a path, or leave it out")
    try:
        return str(_from_root(Path(value).expanduser()))
    except RuntimeError:
        raise UserError(
            f"{name}={value}: no home folder is known for it (is HOME set?): write the path in full"
        ) from None


def _from_root(path: Path) -> Path:
    """The path from the root without ``..``, which after a symbolic link leaves the folder that the link leads to."""
    whole = path.absolute()
    found = Path(whole.anchor)
    for part in whole.parts[1:]:
        if part != "..":
            found /= part
        else:
            found = (Path(os.path.realpath(found)) if _is_link(found) else found).parent
    return found


def _is_link(path: Path) -> bool:
    with suppress(OSError):  # a name that is too long
        return path.is_symlink()
    return False
