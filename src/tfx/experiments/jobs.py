"""A job of a sweep: its state by its folder, its progress, and why it failed. Reads only files."""

from __future__ import annotations

import json
import signal
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from tfx.config.grammar import parse
from tfx.errors import UserError
from tfx.record.directory import RunDirectory
from tfx.record.lock import locked
from tfx.record.summary import Result, Summary
from tfx.system.signals import leave_signals

WAITING, RUNNING, DONE, SKIPPED, PLANNED, FAILED, INTERRUPTED = (
    "waiting",
    "running",
    "done",
    "done before",
    "planned",  # a dry run
    "failed",
    "interrupted",
)
ENDED_WELL = (DONE, SKIPPED, PLANNED)
ENDED_BADLY = (FAILED, INTERRUPTED)


@dataclass
class Job:
    """One run of a sweep.

    ``overrides`` are what the user would type for this run alone; ``flags`` are arguments of its command that its
    config does not keep (--config-dir). ``name`` is its name in tables; empty: its own overrides.
    """

    number: int
    overrides: list[str]
    folder: Path
    flags: list[str] = field(default_factory=list)
    name: str = ""
    state: str = WAITING
    reason: str = ""
    metrics: Metrics = field(init=False)

    def __post_init__(self) -> None:
        self.metrics = Metrics(self.run.metrics)

    @property
    def run(self) -> RunDirectory:
        """The folder as a run directory."""
        return RunDirectory(self.folder)

    @property
    def log(self) -> Path:
        """The output of the job's process; beside its folder, because a job with a wrong config leaves none."""
        return self.folder.with_name(f"{self.folder.name}.log")

    @property
    def summary(self) -> Summary | None:
        """The run's summary; None if there is none or it cannot be read."""
        try:
            return self.run.read_summary()
        except UserError:
            return None

    @property
    def result(self) -> Result | None:
        """The run's result; None if it did not complete."""
        return self.summary.result if self.summary is not None else None

    @property
    def run_name(self) -> str:
        """The `name` of its run, from its summary or else from its overrides; empty: none."""
        if (summary := self.summary) is not None and summary.facts.name:
            return summary.facts.name
        typed = [o for o in self.overrides if o.lstrip("+").partition("=")[0] == "name"]
        return str(parse(typed[-1])[1] or "") if typed else ""

    @property
    def objective(self) -> float | None:
        """Validation value of the primary metric; None if the run did not complete."""
        return None if (summary := self.summary) is None else summary.objective

    def take_over(self) -> str | None:
        """Looks at what an earlier sweep left in the folder and returns the command that continues it.

        None: the job is done. ``"resume"``: it is unfinished and has a saved state. ``"train"``: it starts in a clean
        folder. Raises `UserError` if the folder holds a run of other overrides, a summary that cannot be read (it may
        be a result), or a run that another process is working on.
        """
        if not self.run.config.is_file():
            return "train"
        saved = self.run.read_overrides()
        if saved != self.overrides:
            raise UserError(
                f"{self.folder} holds a run of other overrides ({' '.join(saved) or 'none'}) than job {self.number} of "
                f"this sweep ({' '.join(self.overrides) or 'none'}): repeat its command, or "
                "another hydra.sweep.dir"
            )
        try:
            summary = self.run.read_summary() if self.run.summary.exists() else None
        except UserError as error:
            raise UserError(
                f"{error}; job {self.number} of this sweep may have its result there, so nothing was removed: mend the "
                f"file, or move {self.folder} away to run the job again"
            ) from error
        if summary is not None and summary.result is not None:
            return None
        # Also if it failed: a full disk may have room by now, and what fails again fails sooner.
        if any(self.run.state.glob("step-*")):
            return "resume"
        with locked(self.folder):
            self.run.remove()
        return "train"

    def end(self, status: int) -> None:
        """Notes the exit status of the job's process (negative: the signal that killed it).

        An existing result counts, even if the process failed after it, for example with a log on a full disk.
        """
        summary = self.summary
        if summary is not None and summary.result is not None:
            self.state = DONE
            return
        if status == 0:
            self.state = PLANNED
            return
        stopped = status < 0 or status > 128
        self.state = INTERRUPTED if stopped else FAILED
        if stopped:
            number = -status if status < 0 else status - 128
            # A process that has only just begun ends at once, without a word of its own.
            was_stopped = status > 128 or number in leave_signals()
            self.reason = f"{'stopped' if was_stopped else 'killed'} by {_signal_name(number)}"
        else:
            self.reason = " ".join(str((summary and summary.error) or self._last_line()).split())

    def _last_line(self) -> str:
        lines = self.log.read_text(encoding="utf-8", errors="replace").split("\n") if self.log.is_file() else []
        return next((line.removeprefix("tfx: ") for line in reversed(lines) if line.strip()), "no reason was given")


class Metrics:
    """Follows a growing `metrics.jsonl`: the newest step and progress, and the newest validation."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._offset = 0
        self.step: int | None = None
        self.seconds = 0.0
        self.progress = 0.0
        self.valid: tuple[str, float] | None = None

    def update(self, primary: str) -> None:
        """Reads the new rows; shows ``primary`` of validation rows that have it, else the loss."""
        try:
            with open(self._path, "rb") as file:
                file.seek(self._offset)
                content = file.read()
        except OSError:
            return
        whole = content.rfind(b"\n") + 1  # an unfinished line is read the next time
        self._offset += whole
        for line in content[:whole].splitlines():
            try:
                row = json.loads(line)
                if row.get("split") in ("train", "valid"):
                    self.step, self.seconds = int(row["step"]), float(row["seconds"])
                    self.progress = float(row.get("progress", self.progress))
                if row.get("split") == "valid":
                    name = primary if primary in row else "loss"
                    self.valid = (name, float(row[name]))
            except (ValueError, TypeError, KeyError, AttributeError):
                continue  # a broken line must not stop a sweep

    @property
    def seconds_left(self) -> float | None:
        """Remaining training time at the current pace; None before the first row."""
        return self.seconds * (1 - self.progress) / self.progress if self.progress else None


def results(jobs: Sequence[Job]) -> tuple[int, int]:
    """How many jobs have a result, and how many ended badly."""
    return sum(job.state in ENDED_WELL for job in jobs), sum(job.state in ENDED_BADLY for job in jobs)


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"
