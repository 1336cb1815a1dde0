"""What there is to choose from and to set, read from the YAMLs and the schema; imports neither Hydra nor torch.

The settings of a technique are the exception: its class is loaded for them, and Hydra composes their defaults.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import MISSING, Field, fields, is_dataclass
from functools import reduce
from importlib import resources
from importlib.resources.abc import Traversable
from itertools import takewhile
from operator import getitem
from typing import Any

from tfx.config.registry import entry_points, foreign_yaml, is_foreign, technique_class
from tfx.config.schema import Root

GROUPS = ("model", "dataset", "technique", "optimizer", "schedule", "trainer", "evaluation", "experiment")


def choices(group: str) -> dict[str, str]:
    """The choices of a group and their descriptions: the comments that head each YAML, a line each."""
    folder = resources.files("tfx.conf").joinpath(group)
    found = {}
    if folder.is_dir():
        for file in folder.iterdir():
            if file.name.endswith(".yaml"):
                found[file.name.removesuffix(".yaml")] = _head(file)
    if group == "technique":
        for name, point in entry_points().items():
            if is_foreign(point):
                shipped = foreign_yaml(point)
                found[name] = _head(shipped) if shipped is not None else f"from {point.value}"
    return dict(sorted(found.items()))


def _head(file: Traversable) -> str:
    # Another package's file may be broken: whoever chooses it is told so.
    text = file.read_bytes().decode("utf-8", errors="replace")
    lines = takewhile(lambda line: line.startswith("#"), text.splitlines())
    return "\n".join(line[1:].strip() for line in lines if "@package" not in line)


def settings(schema: Any = Root, prefix: str = "") -> Iterator[tuple[str, Field[Any]]]:
    """Every setting as (dotted key, field), in the order of the schema."""
    for f in fields(schema):
        if is_dataclass(f.default_factory):
            yield from settings(f.default_factory, f"{prefix}{f.name}.")
        else:
            yield f"{prefix}{f.name}", f


def technique_settings(name: str) -> Iterator[tuple[str, Any, str]]:
    """Every setting of a technique as (key, default, doc), by its YAML and its class.

    Raises `UserError` where there is no technique of that name, or it cannot be loaded.
    """
    from tfx.config.compose import compose

    schema = technique_class(name).Settings
    values = compose([f"technique={name}"]).technique[name]
    for key, f in settings(schema):
        yield f"technique.{name}.{key}", reduce(getitem, key.split("."), values), explain_field(f)


def default_of(f: Field[Any]) -> Any:
    """The default of a setting."""
    return f.default_factory() if f.default_factory is not MISSING else f.default


def explain_field(f: Field[Any]) -> str:
    """The doc of a setting in one line: what, unit, range or choices, paper."""
    meta = f.metadata
    parts = [meta.get("doc", "")]
    if meta.get("choices"):
        parts.append("one of " + ", ".join(meta["choices"]))
    words = {"minimum": "at least", "above": "above", "maximum": "at most", "below": "below"}
    bounds = [f"{word} {meta[key]:g}" for key, word in words.items() if meta.get(key) is not None]
    if bounds:
        parts.append(" and ".join(bounds))
    if meta.get("unit"):
        parts.append(f"in {meta['unit']}")
    text = "; ".join(part for part in parts if part)
    return f"{text} [{meta['paper']}]" if meta.get("paper") else text
