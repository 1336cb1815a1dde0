"""How often each label is said where another is right, from the predictions of a run."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any

# The most labels whose confusions are a table, and the most that are shown one by one.
_MOST_CONFUSED, _MOST_LABELS = 25, 200
_LONGEST = 40


@dataclass(frozen=True)
class Confusion:
    """``labels``: a row for each label, the rarest last; ``matrix``: counts of right labels by what was said.

    There is no matrix of several labels at once, or of very many.
    """

    columns: list[str]
    labels: list[list[str]]
    matrix_columns: list[str]
    matrix: list[list[str]]
    note: str


def confusion(predictions: Sequence[Mapping[str, Any]]) -> Confusion | None:
    """The tables for the rows of `predictions.jsonl`; None where these are not of labels."""
    pairs = list(_pairs(predictions))
    if not pairs:
        return None
    right = Counter(chain.from_iterable(held for held, _ in pairs))
    said = Counter(chain.from_iterable(guessed for _, guessed in pairs))
    both = Counter(label for held, guessed in pairs for label in held & guessed)
    names = sorted({*right, *said}, key=lambda label: (-right[label], label))
    rows = []
    for label in names[:_MOST_LABELS]:
        precision, recall = _share(both[label], said[label]), _share(both[label], right[label])
        f1 = _share(2 * both[label], right[label] + said[label])
        rows.append([_short(label), f"{right[label]:,}", f"{said[label]:,}", precision, recall, f1])
    more = len(names) - len(rows)
    columns = ["label", "texts", "said", "precision", "recall", "F1"]
    note = f"{more:,} more labels are left out." if more else ""
    is_single = all(len(held) == len(guessed) == 1 for held, guessed in pairs)
    if not is_single or len(names) > _MOST_CONFUSED:
        return Confusion(columns, rows, [], [], note)
    counts = Counter((next(iter(held)), next(iter(guessed))) for held, guessed in pairs)
    matrix = [[_short(own), *(f"{counts[own, other]:,}" for other in names)] for own in names]
    return Confusion(columns, rows, ["right", *map(_short, names)], matrix, note)


def _pairs(predictions: Sequence[Mapping[str, Any]]) -> Iterator[tuple[frozenset[str], frozenset[str]]]:
    """The right and the said labels of each row, if all rows are of labels."""
    found = []
    for row in predictions:
        sides = [row.get("reference"), row.get("hypothesis")]
        # Every classifier of labels has this metric, and no other task has both of these.
        if "f1_macro" not in row or not all(isinstance(side, str | list) for side in sides):
            return
        right, said = (frozenset([side] if isinstance(side, str) else [str(x) for x in side or ()]) for side in sides)
        found.append((right, said))
    yield from found


def _share(part: int, whole: int) -> str:
    return f"{part / whole:.3f}" if whole else "–"


def _short(label: str) -> str:
    line = " ".join(label.split())
    return line if len(line) <= _LONGEST else f"{line[:_LONGEST]}…"
