"""Names of arms: what tells them apart, shortest first."""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Sequence
from itertools import combinations
from pathlib import Path
from typing import Any

from tfx.report.runs import OTHER_RUNS, Run, named_runs

# Names and places of things are no settings of them, but for these, which are choices.
_NO_SETTING = (".name", ".path")
_CHOICES = ("optimizer.name", "schedule.name")
# Settings of which other warnings tell: budget, data, decoding, and what a run starts from.
_TOLD_ELSEWHERE = ("trainer.budget.", "dataset.", "evaluation.", *OTHER_RUNS)
_LONG_VALUE = 32
_BUDGET = "trainer.budget."
# A day, a time as of a run directory that nobody named, a number.
_NO_NAME = re.compile(r"\d{4}-\d\d-\d\d|\d\d-\d\d-\d\d|[\W\d_]*$")


def label_arms(runs: Sequence[Run]) -> tuple[list[str], str]:
    """One label an arm, given a run of each: its name, else its techniques and the few settings that distinguish it.

    The settings are chosen so that no two arms have the same label; of an arm those are shown in which it differs from
    what is commonest among the arms. The second result has these commonest values, which labels leave out.
    """
    chosen = _telling_keys(runs)
    # Another model or optimizer is another one, whatever else tells it apart.
    kinds = [key for key in differing_keys(runs) if key.startswith(("model.", *_CHOICES)) and key not in chosen]
    keys = [*kinds, *chosen]
    usual = {key: _usual(key, runs) for key in keys}
    short = _shortest_names(sorted({*keys, *differing_keys(runs)}))
    values = {key: _distinct([_shown(run, key) for run in runs]) for key in keys}
    named = Counter(run.name for run in runs)
    stacks = ["+".join(run.techniques) or "no technique" for run in runs]
    all_alike = len(set(stacks)) == 1

    def word(index: int, key: str) -> str:
        run = runs[index]
        if key.startswith(_BUDGET) and run.identity.get(key) is None:
            budgets = [name for name in run.identity if name.startswith(_BUDGET) and run.identity[name] is not None]
            if budgets:  # a budget that it has not is less of a name than the one that it has
                return f"{budgets[0].removeprefix(_BUDGET)}={_shown(run, budgets[0])}"
        return f"{short[key]}={values[key][index]}" if key in run.identity else f"without {short[key]}"

    def label(index: int, shown: Sequence[str]) -> str:
        run = runs[index]
        words = list(dict.fromkeys(word(index, key) for key in shown))
        if not (all_alike and words):
            words = [stacks[index], *words]
        if run.name:  # a name that several arms have, as those of a sweep, is no more than their first word
            words = [run.name, *(words if named[run.name] > 1 else [])]
        return " ".join(words)

    shown = [[key for key in keys if _concerns(key, run) and usual[key] != _value_of(run, key)] for run in runs]
    labels = [label(index, own) for index, own in enumerate(shown)]
    for same in _alike(labels):
        # The value that is left out is what another lacks.
        telling = [key for key in keys if len({_value_or_absence(runs[index], key) for index in same}) > 1]
        for index in same:
            told = [*shown[index], *(key for key in telling if not runs[index].is_idle(key))]
            labels[index] = label(index, list(dict.fromkeys(told)))
    for same in _alike(labels):
        for number, index in enumerate(same, 1):
            labels[index] = f"{labels[index]} ({number})"
    left_out = []
    for key in keys:
        places = [i for i, run in enumerate(runs) if _concerns(key, run) and _value_of(run, key) == usual[key]]
        if any(key in runs[i].identity and key not in shown[i] and not runs[i].name for i in places):
            left_out.append(f"{short[key]}={values[key][places[0]]}")
    return labels, " ".join(left_out)


def _alike(labels: Sequence[str]) -> list[list[int]]:
    """The places of labels that stand more than once."""
    places: dict[str, list[int]] = defaultdict(list)
    for index, text in enumerate(labels):
        places[text].append(index)
    return [same for same in places.values() if len(same) > 1]


def folder_name(path: Path, seed: int | None = None) -> str:
    """The name of a run by where it lies, without its seed: of ``4bit/seed1``, ``4bit/1`` and ``4bit-seed1``, 4bit."""
    path = path.resolve() if path.name in ("", "..") else path  # of "." and ".."
    parts = [re.sub(r"[-_.]?seed[-_=]?\d+$", "", part) for part in path.parts[-2:]]
    if not parts[-1] or path.name == str(seed):
        parts.pop()
    return parts[-1] if parts else path.name


def name_by_folders(members: Sequence[Sequence[Run]]) -> list[str] | None:
    """One name an arm, given all runs of each, where their folders have names that tell all arms apart.

    Numbers, days and times are no names, nor is one that runs of an arm do not share.
    """
    found = [{run.name or folder_name(run.path, run.seed) for run in runs} for runs in members]
    names = [names.pop() if len(names) == 1 else "" for names in found]
    return names if len(set(names)) == len(names) and not any(map(_NO_NAME.match, names)) else None


def differing_keys(runs: Sequence[Run]) -> list[str]:
    """The settings in which any two of the runs differ, those of techniques first."""
    values: dict[str, set[str]] = defaultdict(set)
    for run in runs:
        for key, value in run.identity.items():
            values[key].add(repr(value))
    keys = [
        key
        for key, found in values.items()
        if len(found) > 1 or any(key not in run.identity for run in runs if _concerns(key, run))
    ]
    return sorted((key for key in keys if _is_setting(key)), key=_order)


def _is_setting(key: str) -> bool:
    return key in _CHOICES or not key.endswith(_NO_SETTING)


def unnamed_differences(run: Run, other: Run, names: str) -> list[str]:
    """The settings of training in which two runs differ, and that none of their ``names`` tell, with the run's value.

    Those of a technique that only one of them has are told by its name.
    """
    keys = [
        key
        for key in differing_keys([run, other])
        if not key.startswith(_TOLD_ELSEWHERE) and _concerns(key, run) and _concerns(key, other)
    ]
    short = _shortest_names(keys)
    words = [f"{key.removesuffix('.name').rpartition('.')[2]}=" for key in keys]
    return [f"{short[key]}={_shown(run, key)}" for key, word in zip(keys, words, strict=True) if word not in names]


def _order(key: str) -> tuple[int, int, str]:
    place = next((i for i, part in enumerate(("technique.", "model.", "optimizer.")) if key.startswith(part)), 3)
    return place, 0 if key in _CHOICES else len(key), key


def _telling_keys(runs: Sequence[Run]) -> list[str]:
    """As few settings as a greedy choice finds that, with the techniques, tell all arms apart.

    A setting that a run lacks counts as null; that one run has it and the other does not, as of an earlier version, is
    told only where nothing else tells two apart.
    """
    keys = [*differing_keys(runs), *sorted({key for run in runs for key in run.identity if not _is_setting(key)})]
    groups: dict[Any, list[int]] = defaultdict(list)
    for index, run in enumerate(runs):
        groups[run.name, run.techniques].append(index)
    left = [pair for members in groups.values() for pair in combinations(members, 2)]
    chosen: list[str] = []
    for read in (_value_of, _value_or_absence):
        values = {key: [read(run, key) for run in runs] for key in keys}
        while left:
            parted = {key: sum(found[i] != found[j] for i, j in left) for key, found in values.items()}
            best = max(parted.values(), default=0)
            if best == 0:
                break
            key = next(key for key in keys if parted[key] == best)
            chosen.append(key)
            left = [(i, j) for i, j in left if values[key][i] == values[key][j]]
    return sorted(dict.fromkeys(chosen), key=_order)


def _value_of(run: Run, key: str) -> str:
    """A setting's value to compare by."""
    return repr(run.identity.get(key))


def _value_or_absence(run: Run, key: str) -> str | None:
    return _value_of(run, key) if key in run.identity else None


def _concerns(key: str, run: Run) -> bool:
    """Whether a setting may matter to a run: those of a technique are of runs that have it."""
    first, _, rest = key.partition(".")
    if run.is_idle(key):
        return False
    return first != "technique" or rest.partition(".")[0] in run.techniques


def _usual(key: str, runs: Sequence[Run]) -> str:
    """The commonest value of a setting among the runs that it concerns: not worth a word. The plainest's, of two.

    Of a setting that one of these lacks, it is to lack it: what is not named is then not there.
    """
    concerned = sorted((run for run in runs if _concerns(key, run)), key=lambda run: len(run.techniques))
    if any(key not in run.identity for run in concerned):
        return repr(None)
    return Counter(_value_of(run, key) for run in concerned).most_common(1)[0][0]


def _shortest_names(keys: Sequence[str]) -> dict[str, str]:
    """Each key by its last words, as many as make it another one than the rest."""
    names = {}
    for key in keys:
        if key in _CHOICES:
            names[key] = key.removesuffix(".name")
            continue
        parts = key.split(".")
        for count in range(2 if parts[-1] == "name" else 1, len(parts) + 1):
            short = ".".join(parts[-count:])
            if not any(other != key and (other == short or other.endswith(f".{short}")) for other in keys):
                break
        names[key] = short
    return names


def _shown(run: Run, key: str) -> str:
    value = run.config.get(key)
    if isinstance(value, bool):
        return str(value).lower()
    if value is None:
        return "null"
    if isinstance(value, float):
        return f"{value:g}"
    text = str(value)
    if "/" in text:
        paths = named_runs(run.config, key) if key in OTHER_RUNS else [text]
        text = ", ".join("/".join(path.rstrip("/").split("/")[-2:]) for path in paths)
    # Runs of an arm start from a model of their own seed each: one of them is not what the arm is named by.
    return re.sub(rf"[-_/]?seed{run.seed}(?!\d)", "", text) if key in OTHER_RUNS else text


def _distinct(texts: Sequence[str]) -> list[str]:
    """The texts; sentences among them without their ends, cut where what differs still does."""
    for most in range(_LONG_VALUE, max(map(len, texts), default=0), _LONG_VALUE // 2):
        cut = [f"{text[: most - 1]}…" if " " in text and len(text) > most else text for text in texts]
        if len(set(cut)) == len(set(texts)):
            return cut
    return list(texts)
