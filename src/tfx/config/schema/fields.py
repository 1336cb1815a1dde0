"""How a setting is written: its default with doc, range, unit and paper, and the words for a range."""

from __future__ import annotations

import operator
from collections.abc import Mapping
from dataclasses import field
from typing import Any


def setting(
    default: Any,
    doc: str,
    *,
    choices: tuple[str, ...] = (),
    minimum: float | None = None,
    maximum: float | None = None,
    above: float | None = None,
    below: float | None = None,
    unit: str = "",
    paper: str = "",
    path: bool = False,
    are_groups: bool = False,
    words: tuple[str, ...] = (),
) -> Any:
    """A dataclass field with the facts for ``--help`` and the range check.

    ``minimum`` and ``maximum`` are inclusive, ``above`` and ``below`` exclusive. A ``path`` is relative to the folder
    that the command runs in, and saved as an absolute one. ``are_groups``: a list of groups of settings. ``words`` may
    stand in the place of a number.
    """
    metadata = {
        "doc": doc,
        "choices": choices,
        "minimum": minimum,
        "maximum": maximum,
        "above": above,
        "below": below,
        "unit": unit,
        "paper": paper,
        "path": path,
        "are_groups": are_groups,
        "words": words,
    }
    if isinstance(default, (list, dict)):
        return field(default_factory=lambda: type(default)(default), metadata=metadata)
    return field(default=default, metadata=metadata)


def bounds(metadata: Mapping[str, Any]) -> list[str]:
    """The range of a setting in words, such as ``at least 0``; whole numbers in full."""
    words = {"minimum": "at least", "above": "above", "maximum": "at most", "below": "below"}
    limits = [(word, metadata.get(key)) for key, word in words.items()]
    return [f"{word} {in_full(limit)}" for word, limit in limits if limit is not None]


def is_in_range(number: float, metadata: Mapping[str, Any]) -> bool:
    """Whether a number lies in the range of a setting."""
    holds = {"minimum": operator.ge, "maximum": operator.le, "above": operator.gt, "below": operator.lt}
    return all(metadata.get(key) is None or is_inside(number, metadata[key]) for key, is_inside in holds.items())


def in_full(number: float) -> str:
    """A number as a user types it: all digits of a whole number, twelve of any other."""
    return str(number) if isinstance(number, int) else f"{number:.12g}"


def group(settings: type) -> Any:
    """A nested dataclass of settings."""
    return field(default_factory=settings, metadata={"doc": ""})
