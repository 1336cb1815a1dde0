"""What the user sees of a sweep: a live table while it runs, then the results and the reasons for failures."""

from __future__ import annotations

import time
from collections.abc import Sequence
from contextlib import suppress
from types import TracebackType

from rich.console import Group
from rich.live import Live
from rich.table import Table
from rich.text import Text

from tfx.experiments.jobs import ENDED_BADLY, RUNNING, WAITING, Job, results
from tfx.terminal.console import clock, counted, number, plain_console
from tfx.terminal.output import LostOutputError
from tfx.terminal.tables import Column, Sheet

_REFRESH_SECONDS = 0.5
_STYLES = {RUNNING: "cyan", WAITING: "dim"} | dict.fromkeys(ENDED_BADLY, "red")


class SweepView:
    """The live table, on stderr; if that is no terminal, one line when a job starts and one when it ends."""

    def __init__(self, jobs: Sequence[Job], at_once: int) -> None:
        self._jobs, self._at_once = jobs, at_once
        self._console = plain_console(stderr=True)
        self._names = _names(jobs)
        self._run_names = _run_names(jobs)
        self._live: Live | None = None
        self._primary = "loss"
        self._next = 0.0

    def __enter__(self) -> SweepView:
        done = sum(job.state != WAITING for job in self._jobs)
        before = f", {done} of them done before" if done else ""
        self._console.print(f"sweep: {counted(len(self._jobs), 'job')}{before}, {self._at_once} at a time")
        if self._console.is_terminal:
            self._live = Live(self._table(), console=self._console, auto_refresh=False, transient=True)
            self._live.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        if self._live is not None:
            self._live.stop()

    def started(self, job: Job) -> None:
        """Notes that a job's process started."""
        words = (self._run_names.get(job.number), self._names[job.number])
        self._line(f"job {job.number} started: {' '.join(filter(None, words))}")

    def ended(self, job: Job) -> None:
        """Notes that a job's process ended."""
        objective = job.objective
        result = f"validation {number(objective)}" if objective is not None else job.reason
        self._line(f"job {job.number} {job.state}  {result}".rstrip())

    def note(self, message: str) -> None:
        """One line, live table or not."""
        self._console.print(message, markup=False, soft_wrap=True)

    def update(self) -> None:
        """Reads the progress of the jobs and redraws the table, but not more often than is useful."""
        if self._live is None or time.monotonic() < self._next:
            return
        self._next = time.monotonic() + _REFRESH_SECONDS
        for job in self._jobs:
            if job.state == RUNNING:
                job.metrics.update(self._primary)
        self._live.update(self._table(), refresh=True)

    def _line(self, message: str) -> None:
        if self._live is None:
            self._console.print(message, markup=False, soft_wrap=True)

    def _table(self) -> Group:
        table = Table(box=None, pad_edge=False)
        texts = ("name", "overrides", "state") if self._run_names else ("overrides", "state")
        for name in ("job", *texts, "step", "validation", "left"):
            table.add_column(name, justify="left" if name in texts else "right")
        rows = max(4, self._console.height - 4)
        # Running jobs are always shown, and as many of the others as there is room for.
        shown = sorted(self._jobs, key=lambda job: (job.state != RUNNING, job.number))[:rows]
        for job in sorted(shown, key=lambda job: job.number):
            metrics = job.metrics
            valid = f"{metrics.valid[0]} {number(metrics.valid[1])}" if metrics.valid else ""
            left = metrics.seconds_left if job.state == RUNNING else None
            table.add_row(
                str(job.number),
                *([self._run_names[job.number]] if self._run_names else []),
                self._names[job.number],
                Text(job.state, style=_STYLES.get(job.state, "green")),
                number(metrics.step) if metrics.step is not None else "",
                valid,
                clock(left) if left is not None else "",
            )
        done, failed = results(self._jobs)
        waiting = sum(job.state == WAITING for job in self._jobs)
        rest = f"{done} of {len(self._jobs)} done, {failed} failed, {waiting} waiting"
        return Group(table, Text(rest, style="dim"))


def _names(jobs: Sequence[Job]) -> dict[int, str]:
    """By job number its name, or the overrides that not all jobs share.

    The `name` of a run has its own column.
    """
    shared = set.intersection(*(set(job.overrides) for job in jobs)) if len(jobs) > 1 else set()
    return {
        job.number: job.name
        or " ".join(o for o in job.overrides if o not in shared and o.lstrip("+").partition("=")[0] != "name")
        for job in jobs
    }


def _run_names(jobs: Sequence[Job]) -> dict[int, str]:
    """By job number the `name` of its run; empty if no run has one."""
    names = {job.number: job.run_name for job in jobs}
    return names if any(names.values()) else {}


def print_results(jobs: Sequence[Job]) -> None:
    """Prints the results as a table on stdout, then every failure with its reason and its log.

    If nobody reads it, that is the command's exit status and not a failure of the sweep.
    """
    with suppress(LostOutputError):
        _print_results(jobs)


def _print_results(jobs: Sequence[Job]) -> None:
    console = plain_console()
    run_names = _run_names(jobs)
    table = Sheet(
        Column("job", number=True),
        *([Column("name", wrap=False)] if run_names else []),
        Column("overrides"),
        Column("state", wrap=False),
        Column("validation", number=True),
        Column("test", number=True, spare=1),
        Column("bytes", number=True, spare=2),
        Column("seconds", number=True, spare=3),
        lines=False,
    )
    names = _names(jobs)
    for job in jobs:
        summary = job.summary
        values = ["", "", "", ""]
        if summary is not None and (result := summary.result) is not None:
            primary = summary.facts.primary_metric
            values = [
                f"{primary} {number(result.valid[primary])}",
                f"{primary} {number(result.test[primary])}",
                number(result.bytes.file),
                number(result.train.seconds),
            ]
        state = Text(job.state, style=_STYLES.get(job.state, "green"))
        texts = [run_names[job.number], names[job.number]] if run_names else [names[job.number]]
        table.add_row(str(job.number), *texts, state, *values)
    console.print(table)
    done, failed = results(jobs)
    left = len(jobs) - done - failed
    rest = f", {left} not started" if left else ""
    console.print(f"{counted(len(jobs), 'job')}: {done} with a result, {failed} without{rest}")
    for job in jobs:
        if job.state in ENDED_BADLY:
            console.print(f"job {job.number} {job.state}: {job.reason} (see {job.log})", markup=False, soft_wrap=True)
