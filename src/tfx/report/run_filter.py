"""Which runs a report is about, and which of them belong together: by any setting, name or tag."""

from __future__ import annotations

import ast
import re
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from tfx.errors import UserError, suggest
from tfx.report.runs import Run

_CONDITION = re.compile(r"([\w.]+)(<=|>=|!=|=|<|>)(.*)", re.DOTALL)
# What a run has besides its settings.
_FACTS: dict[str, Callable[[Run], Any]] = {
    "seed": lambda run: run.seed,
    "name": lambda run: run.name,
    "tags": lambda run: run.tags,
    "task": lambda run: run.task,
    "model": lambda run: run.model,
    "dataset": lambda run: run.dataset,
    "techniques": lambda run: run.techniques,
    "technique": lambda run: run.techniques,  # as it is typed
    "metric": lambda run: run.metric,
}
_COMPARE: dict[str, Callable[[float, float], bool]] = {
    "<": lambda a, b: a < b,
    ">": lambda a, b: a > b,
    "<=": lambda a, b: a <= b,
    ">=": lambda a, b: a >= b,
}


def value_of(run: Run, key: str) -> Any:
    """A fact or a setting of a run, a group of settings by its name; None where it has none of that name."""
    if key in _FACTS:
        return _FACTS[key](run)
    return run.config.get(key, run.config.get(f"{key}.name"))


def check_key(runs: Iterable[Run], key: str, option: str) -> None:
    """Raises `UserError` for a key that no run has."""
    known = {*_FACTS, *(name for run in runs for name in run.config)}
    if key not in known and f"{key}.name" not in known:
        raise UserError(f"{option}: no run has a key '{key}'{suggest(key, known, see='see config.yaml of a run')}")


def matching(runs: Sequence[Run], conditions: Sequence[str]) -> list[Run]:
    """The runs that meet every condition: ``key=value``, ``!=``, and of numbers ``<``, ``>``, ``<=``, ``>=``.

    Of tags, techniques and a list one item must be the value, or all of them: ``prune+quantize``, ``[a,b]``; of an
    empty list it is ``none``, ``null``, ``[]`` or nothing. Raises `UserError` where a condition is none,
    or no run is left.
    """
    left = list(runs)
    for condition in conditions:
        match = _CONDITION.fullmatch(condition)
        if match is None:
            raise UserError(f"--where {condition} is no condition: write key=value, or with !=, <, >, <=, >=")
        key, sign, wanted = match.groups()
        check_key(runs, key, "--where")
        left = [run for run in left if _meets(value_of(run, key), sign, wanted)]
    if not left:
        raise UserError(f"no run is left by --where {' --where '.join(conditions)}")
    return left


def _meets(value: Any, sign: str, wanted: str) -> bool:
    if sign in _COMPARE:
        try:
            return _COMPARE[sign](float(value), float(wanted))
        except (TypeError, ValueError):
            return False
    return _is_or_has(value, wanted) == (sign == "=")


def _is_or_has(value: Any, wanted: str) -> bool:
    items = _items(value)
    if items is None:
        return _is(value, wanted)
    whole = [item.strip(" '\"") for item in wanted.removeprefix("[").removesuffix("]").split(",")]
    if not items:
        return wanted.lower() in ("none", "null") or whole == [""]
    texts = list(map(str, items))
    return texts in (whole, wanted.split("+")) or any(_is(item, wanted) for item in items)


def _items(value: Any) -> Sequence[Any] | None:
    """The items of tags, techniques, or a setting that is a list, which a flat config has as text; None of others."""
    if isinstance(value, str) and value.startswith("["):
        with suppress(ValueError, SyntaxError):
            value = ast.literal_eval(value)
    return value if isinstance(value, tuple | list) else None


def _is(value: Any, wanted: str) -> bool:
    if value is None or isinstance(value, bool):
        return wanted.lower() == ("null" if value is None else str(value).lower())
    try:
        return float(value) == float(wanted)
    except (TypeError, ValueError):
        return str(value) == wanted


def sections(
    runs: Sequence[Run], paths: Sequence[Path], group_by: Sequence[str]
) -> list[tuple[tuple[str, ...], list[Run]]]:
    """The runs by what they answer: data set, task and metric, and the values of the keys of ``group_by``.

    Without such keys, runs that lie below one path in folders of several runs, as studies do, are a section a folder;
    folders that share a config are one study. Each comes with the words that tell it from the others.
    """
    studies = {} if group_by or len(paths) > 1 else _studies(runs, paths[0])
    for key in group_by:
        check_key(runs, key, "--group-by")
    found: dict[tuple[Any, ...], tuple[tuple[str, ...], list[Run]]] = {}
    for run in runs:
        words = tuple(f"{key}={_shown(value_of(run, key))}" for key in group_by)
        if study := studies.get(id(run)):
            words = (study,)
        # Labels of another kind make a metric of the same name another one.
        kind = run.config.get("dataset.predict", "one")
        found.setdefault((run.dataset, run.task, run.metric, kind, words), (words, []))[1].append(run)
    return list(found.values())


def _studies(runs: Sequence[Run], root: Path) -> dict[int, str]:
    """By run the study that it is of; nothing where all are of one."""
    by_folder: dict[Path, list[Run]] = {}
    for run in runs:
        parts = run.path.relative_to(root).parts if run.path.is_relative_to(root) else ()
        # Days and times are no studies: seeds of one config may lie in several.
        if len(parts) > 1 and not re.match(r"\d{4}-\d\d-\d\d", parts[0]):
            by_folder.setdefault(Path(parts[0]), []).append(run)
    # A folder of one config is an arm of something larger, as those of an ablation are.
    studies = {folder: members for folder, members in by_folder.items() if len({_config(run) for run in members}) > 1}
    if len(studies) < 2:
        return {}
    # Folders that share a config are one study: each is put to the first that has one of its configs.
    joined = {folder: folder for folder in studies}
    owner: dict[Any, Path] = {}
    for folder, members in studies.items():
        for run in members:
            one, other = joined[folder], joined[owner.setdefault(_config(run), folder)]
            joined = {each: other if first == one else first for each, first in joined.items()}
    names = {
        first: " and ".join(str(each) for each, found in joined.items() if found == first) for first in joined.values()
    }
    return {id(run): names[joined[folder]] for folder, members in studies.items() for run in members}


def _config(run: Run) -> tuple[Any, ...]:
    return (run.techniques, *sorted((name, repr(value)) for name, value in run.identity.items()))


def _shown(value: Any) -> str:
    return "+".join(map(str, value)) or "none" if isinstance(value, tuple) else "null" if value is None else str(value)
