"""What there is to choose from and to set, read from the YAMLs and the schema; imports neither Hydra nor torch."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import MISSING, Field, fields, is_dataclass
from importlib import resources
from typing import Any

from tfx.config.schema import Root

GROUPS = ("model", "dataset", "technique", "optimizer", "schedule", "trainer", "evaluation", "experiment")


def choices(group: str) -> dict[str, str]:
    """The choices of a group and their one-line descriptions: the first comment of each YAML."""
    folder = resources.files("tfx.conf").joinpath(group)
    found = {}
    if folder.is_dir():
        for file in folder.iterdir():
            if file.name.endswith(".yaml"):
                lines = file.read_text(encoding="utf-8").splitlines()
                comments = [line[1:].strip() for line in lines if line.startswith("#") and "@package" not in line]
                found[file.name.removesuffix(".yaml")] = comments[0] if comments else ""
    return dict(sorted(found.items()))


def settings(schema: Any = Root, prefix: str = "") -> Iterator[tuple[str, Field[Any]]]:
    """Every setting as (dotted key, field), in the order of the schema."""
    for f in fields(schema):
        if is_dataclass(f.default_factory):
            yield from settings(f.default_factory, f"{prefix}{f.name}.")
        else:
            yield f"{prefix}{f.name}", f


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
