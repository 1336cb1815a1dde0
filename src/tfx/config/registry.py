"""The techniques that are installed, found by their entry points: tfx's own and those of other packages.

A package adds one with, in its pyproject.toml,

    [project.entry-points."tfx.techniques"]
    my_technique = "my_package.my_module:MyTechnique"

and may put `conf/technique/my_technique.yaml` inside the package of that module; without it, the choice has
the defaults of the class's settings. Finding a technique imports nothing of it; loading it does.
"""

from __future__ import annotations

from functools import cache
from importlib import metadata, resources
from importlib.resources.abc import Traversable
from typing import Any

from tfx.errors import UserError, unknown

_GROUP = "tfx.techniques"


@cache
def entry_points() -> dict[str, metadata.EntryPoint]:
    """Entry points of all techniques by name."""
    return {point.name: point for point in sorted(metadata.entry_points(group=_GROUP), key=lambda point: point.name)}


def technique_class(name: str) -> Any:
    """The class of a technique; raises `UserError` where there is none of that name, or it cannot be loaded."""
    points = entry_points()
    if name not in points:
        raise unknown("technique", name, points)
    try:
        return points[name].load()
    except (ImportError, AttributeError) as error:
        raise UserError(f"technique '{name}' ({points[name].value}) cannot be loaded: {error}") from error


def is_foreign(point: metadata.EntryPoint) -> bool:
    """Whether a technique comes from another package."""
    return _package(point) != "tfx"


def foreign_yaml(point: metadata.EntryPoint) -> Traversable | None:
    """The YAML that another package ships for its technique, where it does."""
    try:
        file = resources.files(_package(point)).joinpath("conf", "technique", f"{point.name}.yaml")
    except (ModuleNotFoundError, TypeError):  # a single module has no files beside it
        return None
    return file if file.is_file() else None


def _package(point: metadata.EntryPoint) -> str:
    return point.value.partition(":")[0].partition(".")[0]
