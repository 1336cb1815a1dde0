"""The settings of a run, with what the schema says of them; this imports neither Hydra nor torch.

Only `technique_settings` does: it loads the class of the technique.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import MISSING, Field, fields, is_dataclass
from typing import Any

import yaml

from tfx.config.registry import technique_class
from tfx.config.schema import Root, bounds


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
