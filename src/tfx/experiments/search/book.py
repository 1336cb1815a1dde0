"""`search.json`: what a search has tried, and where that led. A search that was killed goes on from it."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from tfx.errors import UserError
from tfx.experiments.search.fitting import Prediction
from tfx.record.files import read_json, write_json
from tfx.record.summary import Result

VERSION = 1


@dataclass(frozen=True)
class Trial:
    """One training: config ``number`` at the length of ``rung``, with a seed."""

    number: int
    rung: int
    seed: int

    def folder(self, search: Path) -> Path:
        """Its run directory."""
        return search / "trials" / f"{self.number:04d}-rung{self.rung}-seed{self.seed}"


@dataclass
class Entry:
    """One config of the search: its values on the axes, its words, the round that proposed it, what was predicted."""

    number: int
    values: dict[str, Any]
    words: list[str]
    round: int
    predicted: Prediction


@dataclass
class Book:
    """All that a search must remember besides its runs. ``words`` and ``axes`` are what tell it from another search.

    ``seconds`` have been spent so far, ``clock`` are those of single trials by their rung. ``whole`` is the budget of a
    whole training, and ``dense`` are the words of the dense model that the winner is compared with.
    """

    words: list[str]
    axes: dict[str, str]
    seconds: float = 0.0
    whole: dict[str, Any] = field(default_factory=dict)
    entries: list[Entry] = field(default_factory=list)
    trials: list[Trial] = field(default_factory=list)
    clock: dict[str, list[float]] = field(default_factory=dict)
    outcome: dict[str, Any] = field(default_factory=dict)
    dense: list[str] = field(default_factory=list)

    @classmethod
    def read(cls, path: Path) -> Book:
        """The inverse of `write`; raises `UserError` if the file is not readable."""
        values = read_json(path)
        try:
            if values.pop("format_version") > VERSION:
                raise UserError(f"{path} is of a newer tfx: update it")
            book = values.pop("state")
            entries = [Entry(**row | {"predicted": Prediction(**row["predicted"])}) for row in book.pop("entries")]
            trials = [Trial(**row) for row in book.pop("trials")]
            return cls(**book, entries=entries, trials=trials, outcome=values)
        except (KeyError, TypeError, AttributeError) as error:
            raise UserError(f"{path} is not the record of a search: {error}") from error

    def write(self, path: Path) -> None:
        """Writes the whole file or none of it: the outcome first, for readers, and then the state."""
        state = {key: value for key, value in asdict(self).items() if key != "outcome"}
        write_json(path, {"format_version": VERSION, **self.outcome, "state": state})

    @property
    def rounds(self) -> int:
        """How many rounds were begun."""
        return 1 + max((entry.round for entry in self.entries), default=-1)

    def of_round(self, number: int) -> list[Entry]:
        """The configs that a round began with."""
        return [entry for entry in self.entries if entry.round == number]


def spent(results: Iterable[Result]) -> dict[str, float]:
    """Seconds and FLOPs of training in all trials, with their teachers', each once: trials share them."""
    costs = [result.train for result in results]
    teachers = {(cost.teacher_seconds, cost.teacher_flops) for cost in costs}
    return {
        "training_seconds": sum(cost.seconds for cost in costs) + sum(seconds for seconds, _ in teachers),
        "training_flops": sum(cost.flops for cost in costs) + sum(flops for _, flops in teachers),
    }
