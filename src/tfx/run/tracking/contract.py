"""What a tracker is, and all trackers of a run as one. A tracker that fails is a note, never a failed run."""

from __future__ import annotations

import importlib
import importlib.util
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

from tfx.config.schema import Root
from tfx.errors import UserError
from tfx.record.directory import RunDirectory
from tfx.record.files import read_json, write_json
from tfx.record.summary import COMPLETED, Summary

# The module that each tracker needs, which its extra installs. Each has a file of its own here, with its `Tracker`.
NEEDS = {
    "tensorboard": "torch.utils.tensorboard",
    "wandb": "wandb",
    "mlflow": "mlflow",
    "trackio": "trackio",
}


@dataclass(frozen=True)
class TrackedRun:
    """What a tracker learns of a run when it opens. ``name`` is the user's, else the folder's."""

    folder: Path
    name: str
    project: str
    tags: list[str]
    config: dict[str, str | int | float | bool | None]


class Tracker(ABC):
    """One run in one tracker. Any method may raise: the run then goes on without this tracker."""

    @abstractmethod
    def __init__(self, run: TrackedRun, identity: str | None, step: int) -> None:
        """Opens a new run, or with the ``identity`` of an earlier one goes on in that after ``step``."""

    @property
    @abstractmethod
    def identity(self) -> str:
        """What finds this run again."""

    @property
    def place(self) -> str | None:
        """Where a user looks at the run; None if the identity says it, or nothing is to be looked at."""
        return None

    @abstractmethod
    def log(self, values: Mapping[str, float], step: int) -> None:
        """Records values at a step, which may repeat after resuming."""

    @abstractmethod
    def summarize(self, values: Mapping[str, float], table: str) -> None:
        """Records the result: its numbers by name, and the closing table as text."""

    @abstractmethod
    def upload(self, files: Sequence[Path]) -> None:
        """Keeps the final file and the page with the run."""

    @abstractmethod
    def close(self, completed: bool) -> None:
        """Ends the run there."""


def require(names: Sequence[str]) -> None:
    """Raises `UserError` if a tracker is unknown, is named twice, or needs an extra that is not installed."""
    for name in names:
        try:
            found = importlib.util.find_spec(NEEDS[name]) is not None
            if found and name == "tensorboard":
                importlib.import_module(NEEDS[name])
        except ImportError:
            found = False
        if not found:
            raise UserError(f"tracking.to=[{name}] needs an extra: pip install 'path/to/tfx[{name}]'")


class Trackers:
    """The trackers of a run. Their identities are kept in its folder, so that a resumed run goes on in the same."""

    def __init__(self, config: Root, run: RunDirectory, note: Callable[[str], Any]) -> None:
        self._config, self._run, self._note = config, run, note
        self._open: dict[str, Tracker] = {}

    def open(self, step: int) -> None:
        """Opens the trackers that the config names. A run that was resumed gives the step after which it goes on."""
        names = self._config.tracking.to
        if not names:
            return
        known = read_json(self._run.tracking) if step and self._run.tracking.is_file() else {}
        tracked = TrackedRun(
            self._run.path,
            self._config.name or self._run.path.name,
            self._config.tracking.project,
            list(self._config.tags),
            dict(_leaves(asdict(self._config))),
        )
        for name in names:
            open_run = importlib.import_module(f"tfx.run.tracking.{name}").open_run
            tracker = self._safely(name, partial(open_run, tracked, known.get(name), step))
            if tracker is not None:
                self._open[name] = tracker
        write_json(self._run.tracking, {name: tracker.identity for name, tracker in self._open.items()})
        for name, tracker in self._open.items():
            if tracker.place is not None:
                self._note(f"{name}: {tracker.place}")

    def log(self, split: str, values: Mapping[str, Any], step: int) -> None:
        """Records the numbers of a row of the metrics log, under ``split/name``."""
        numbers = {f"{split}/{name}": float(value) for name, value in values.items() if _is_number(value)}
        self._each(lambda tracker: tracker.log(numbers, step))

    def finish(self, summary: Summary, table: Callable[[], str], files: Sequence[Path]) -> None:
        """Records the result, with the files if the config asks for them."""
        if not self._open:
            return
        values = {name: float(value) for name, value in _leaves(summary.to_dict()) if _is_number(value)}
        self._each(lambda tracker: tracker.summarize(values, table()))
        if self._config.tracking.artifacts:
            self._each(lambda tracker: tracker.upload([file for file in files if file.is_file()]))

    def close(self, status: str) -> None:
        """Ends the run in all of them."""
        self._each(lambda tracker: tracker.close(status == COMPLETED))
        self._open.clear()

    def _each(self, act: Callable[[Tracker], Any]) -> None:
        for name, tracker in list(self._open.items()):
            self._safely(name, partial(act, tracker))

    def _safely(self, name: str, act: Callable[[], Any]) -> Any:
        """What ``act`` returns. If it raises, the tracker is left out from now on, and a note says why."""
        try:
            return act()
        except Exception as error:  # of any service, from a lost network to a full disk
            self._open.pop(name, None)
            first = next(iter(str(error).splitlines()), "")
            self._note(f"{name} gets no more of this run: {type(error).__name__}: {first}")
            return None


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _leaves(values: Mapping[str, Any], prefix: str = "") -> list[tuple[str, Any]]:
    """The plain values of nested mappings by dotted name; lists as text."""
    found: list[tuple[str, Any]] = []
    for key, value in values.items():
        name = f"{prefix}{key}"
        if isinstance(value, Mapping):
            found += _leaves(value, f"{name}.")
        else:
            found.append((name, str(value) if isinstance(value, (list, tuple)) else value))
    return found
