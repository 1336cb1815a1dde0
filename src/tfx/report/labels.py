"""Names of arms: what tells them apart, shortest first."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Sequence
from itertools import combinations
from typing import Any

from tfx.report.runs import Run

# Names and places of things are no settings of them.
_NO_SETTING = (".name", ".path")


def label_arms(runs: Sequence[Run]) -> list[str]:
    """One label an arm, given a run of each: its name, else its techniques and the few settings that distinguish it.

    The settings are chosen so that no two arms have the same label; of an arm those are shown in which it differs from
    what is commonest among the arms with its techniques, and where it has those of the plainest arm, from that one.
    """
    chosen = _telling_keys(runs)
    usual = _usual_values(runs)
    short = _shortest_names(sorted({*chosen, *differing_keys(runs)}))
    named = Counter(run.name for run in runs)
    stacks = ["+".join(run.techniques) or "no technique" for run in runs]

    def label(index: int, keys: Sequence[str]) -> str:
        run = runs[index]
        words = [stacks[index], *(f"{short[key]}={_shown(run, key)}" for key in keys)]
        if run.name:  # a name that several arms have, as those of a sweep, is no more than their first word
            words = [run.name, *(words if named[run.name] > 1 else [])]
        return " ".join(words)

    shown = [
        [key for key in chosen if key in run.identity and usual[run.techniques].get(key) != repr(run.identity[key])]
        for run in runs
    ]
    labels = [label(index, keys) for index, keys in enumerate(shown)]
    for same in _alike(labels):
        # The usual value of one is what another lacks.
        telling = [key for key in chosen if len({repr(runs[index].identity.get(key)) for index in same}) > 1]
        for index in same:
            labels[index] = label(index, [key for key in chosen if key in shown[index] or key in telling])
    for same in _alike(labels):
        for number, index in enumerate(same, 1):
            labels[index] = f"{labels[index]} ({number})"
    return labels


def _alike(labels: Sequence[str]) -> list[list[int]]:
    """The places of labels that stand more than once."""
    places: dict[str, list[int]] = defaultdict(list)
    for index, text in enumerate(labels):
        places[text].append(index)
    return [same for same in places.values() if len(same) > 1]


def differing_keys(runs: Sequence[Run]) -> list[str]:
    """The settings in which any two of the runs differ, those of techniques first."""
    values: dict[str, set[str]] = defaultdict(set)
    for run in runs:
        for key, value in run.identity.items():
            values[key].add(repr(value))
    technique_keys = {key for key in values if key.startswith("technique.")}
    keys = [key for key, found in values.items() if len(found) > 1 or _is_partial(key, runs, technique_keys)]
    return sorted((key for key in keys if not key.endswith(_NO_SETTING)), key=_order)


def _is_partial(key: str, runs: Sequence[Run], technique_keys: set[str]) -> bool:
    """Whether some runs lack a setting; those of a technique that a run does not have are no difference."""
    return key not in technique_keys and any(key not in run.identity for run in runs)


def _order(key: str) -> tuple[int, int, str]:
    place = next((i for i, part in enumerate(("technique.", "model.", "optimizer.")) if key.startswith(part)), 3)
    return place, len(key), key


def _telling_keys(runs: Sequence[Run]) -> list[str]:
    """As few settings as a greedy choice finds that, with the techniques, tell all arms apart."""
    keys = [*differing_keys(runs), *sorted({key for run in runs for key in run.identity if key.endswith(_NO_SETTING)})]
    groups: dict[Any, list[Run]] = defaultdict(list)
    for run in runs:
        groups[run.name, run.techniques].append(run)
    left = [pair for members in groups.values() for pair in combinations(members, 2)]
    chosen: list[str] = []
    while left:
        parted = {key: sum(_differ(key, *pair) for pair in left) for key in keys}
        best = max(parted.values(), default=0)
        if best == 0:
            break
        key = next(key for key in keys if parted[key] == best)
        chosen.append(key)
        left = [pair for pair in left if not _differ(key, *pair)]
    return sorted(chosen, key=_order)


def _differ(key: str, one: Run, other: Run) -> bool:
    return repr(one.identity.get(key)) != repr(other.identity.get(key))


def _usual_values(runs: Sequence[Run]) -> dict[tuple[str, ...], dict[str, str]]:
    """By techniques, the values that are not worth a word: the commonest, and for the plainest arm's its own."""
    plain = min(runs, key=lambda run: len(run.techniques))
    common: dict[tuple[str, ...], dict[str, Counter[str]]] = defaultdict(lambda: defaultdict(Counter))
    for run in runs:
        for key, value in run.identity.items():
            common[run.techniques][key][repr(value)] += 1
    usual = {
        techniques: {key: counts.most_common(1)[0][0] for key, counts in values.items()}
        for techniques, values in common.items()
    }
    return usual | {plain.techniques: {key: repr(value) for key, value in plain.identity.items()}}


def _shortest_names(keys: Sequence[str]) -> dict[str, str]:
    """Each key by its last words, as many as make it another one than the rest."""
    names = {}
    for key in keys:
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
    return "/".join(text.rstrip("/").split("/")[-2:]) if "/" in text else text
