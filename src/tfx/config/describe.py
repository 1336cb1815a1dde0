"""The choices and settings of a run, read from the YAMLs and the schema; this imports neither Hydra nor torch.

Only `technique_settings` does: it loads the class of the technique.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import MISSING, Field, fields, is_dataclass
from importlib import resources
from importlib.resources.abc import Traversable
from itertools import takewhile
from typing import Any

import yaml

from tfx.config.registry import entry_points, foreign_yaml, is_foreign, technique_class
from tfx.config.schema import ModelConfig, Root, bounds

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


def model_settings(name: str) -> ModelConfig:
    """The settings of a model that is shipped."""
    file = resources.files("tfx.conf").joinpath("model", f"{name}.yaml")
    return ModelConfig(**yaml.safe_load(file.read_text(encoding="utf-8")))


def _head(file: Traversable) -> str:
    # Another package's file may be broken: the error comes when it is chosen.
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


def technique_settings(name: str, values: dict[str, Any] | None = None) -> Iterator[tuple[str, Any, str]]:
    """Every setting of a technique as (key, value, doc).

    ``values`` is a composed config; without it the technique has its defaults. Raises `UserError` if no technique has
    that name, or if it cannot be loaded.
    """
    from tfx.config.checks import check_technique
    from tfx.config.compose import compose_values

    schema = technique_class(name).Settings
    chosen = (values or compose_values([f"technique={name}"]))["technique"][name]
    found = {name: check_technique(name, chosen)}
    for key, f in settings(schema, f"{name}."):
        yield f"technique.{key}", value_at(found, key), explain_field(f)


def value_at(values: dict[str, Any], key: str) -> Any:
    """The value of a dotted key in nested mappings."""
    for name in key.split("."):
        values = values[name]
    return values


def as_yaml(value: Any) -> str:
    """A value on one line, as a YAML file writes it: ``null``, ``true``, ``[a, b]``."""
    return yaml.safe_dump(value, default_flow_style=True, width=10**6, allow_unicode=True).split("\n...")[0].strip()


def default_of(f: Field[Any]) -> Any:
    """The default of a setting."""
    return f.default_factory() if f.default_factory is not MISSING else f.default


def explain_field(f: Field[Any]) -> str:
    """The doc of a setting in one line: what, unit, range or choices, paper."""
    meta = f.metadata
    parts = [meta.get("doc", "")]
    if meta.get("choices"):
        parts.append("one of " + ", ".join(meta["choices"]))
    parts.append(" and ".join(bounds(meta)))
    if meta.get("unit"):
        parts.append(f"in {meta['unit']}")
    text = "; ".join(part for part in parts if part)
    return f"{text} [{meta['paper']}]" if meta.get("paper") else text
