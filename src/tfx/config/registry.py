"""The techniques that are installed, found by their entry points: tfx's own and those of other packages.

A package adds one with, in its pyproject.toml,

    [project.entry-points."tfx.techniques"]
    my_technique = "my_package.my_module:MyTechnique"

and may put `conf/technique/my_technique.yaml` inside `my_package`: its head comments describe the technique,
its values override the defaults of the class's settings. Finding a technique imports nothing of it; loading
it does.
"""

from __future__ import annotations

from functools import cache
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from tfx.errors import UserError, unknown

_GROUP = "tfx.techniques"


@cache
def entry_points() -> dict[str, metadata.EntryPoint]:
    """Entry points of all techniques by name."""
    return {point.name: point for point in sorted(metadata.entry_points(group=_GROUP), key=lambda point: point.name)}


def technique_class(name: str) -> Any:
    """The class of a technique; raises `UserError` if there is none of that name, or if it cannot be loaded."""
    points = entry_points()
    if name not in points:
        raise unknown("technique", name, points)
    point = points[name]
    try:
        return point.load()
    except Exception as error:  # the module of another package may fail in any way
        why = f"{type(error).__name__}: {error}"
        raise UserError(f"technique '{name}' ({point.value}) cannot be loaded, repair its package: {why}") from error


def is_foreign(point: metadata.EntryPoint) -> bool:
    """Whether a technique comes from another package."""
    return _package(point) != "tfx"


def foreign_yaml(point: metadata.EntryPoint) -> Path | None:
    """The YAML that another package ships for its technique, if any."""
    spec = find_spec(_package(point))
    # A single module has no files beside it.
    folders = spec.submodule_search_locations if spec is not None else None
    files = (Path(folder, "conf", "technique", f"{point.name}.yaml") for folder in folders or ())
    return next((file for file in files if file.is_file()), None)


def _package(point: metadata.EntryPoint) -> str:
    return point.value.partition(":")[0].partition(".")[0]
