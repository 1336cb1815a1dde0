"""What the user sees of a run: a header, a live line, notes, a closing table; all of it also in the log.

Progress goes to stderr, the plan of a dry run to stdout. Where stderr is no terminal there is no live line, only one
plain line per validation.
"""

from __future__ import annotations

import io
import re
import sys
import traceback
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, TextIO

from rich.console import Console, RenderableType
from rich.progress import BarColumn, Progress, TaskID, TextColumn

from tfx.terminal.output import LostOutputError
from tfx.terminal.tables import Column, Sheet


def clock(seconds: float) -> str:
    """Seconds as 1:02:03 or 2:03."""
    whole = max(0, round(seconds))
    hours, minutes = whole // 3600, whole // 60 % 60
    return f"{hours}:{minutes:02}:{whole % 60:02}" if hours else f"{minutes}:{whole % 60:02}"


def number(value: Any) -> str:
    """A value for a table: floats to four significant digits, whole numbers in full, both with thousands separators."""
    if isinstance(value, bool) or value is None:
        return "-" if value is None else str(value)
    if isinstance(value, int):
        return f"{value:,}"
    if isinstance(value, float):
        return f"{value:,.0f}" if abs(value) >= 10_000 else f"{value:.4g}"
    return str(value)


def counted(count: float, noun: str) -> str:
    """A count with its noun: ``1 config``, ``2 configs``, ``1.5 trainings``."""
    shown = f"{count:,}" if isinstance(count, int) else f"{count:.3g}"
    return f"{shown} {noun}{'' if shown == '1' else 's'}"


def size(count: float) -> str:
    """Bytes in decimal units."""
    for unit in ("B", "kB", "MB"):
        if abs(count) < 1000:
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.2f} {unit}"
        count /= 1000
    return f"{count:.2f} GB"


# Wide enough for any table: programs and searches read pipes, files and logs, so nothing is cut there.
UNLIMITED = 100_000


def plain_console(*, stderr: bool = False, file: TextIO | None = None) -> Console:
    """A console that prints text unchanged: a name in brackets is not markup, and numbers get no colour.

    It is as wide as the terminal; a pipe or a file has no width, whatever the environment says, and gets no
    spaces at the end of a line.
    """
    target = file or (sys.stderr if stderr else sys.stdout)
    settings: dict[str, Any] = {} if file is None else {"file": file, "color_system": None}
    if target is None or not target.isatty():
        settings |= {"width": UNLIMITED, "file": target and _Trimmed(target)}
    return Console(highlight=False, markup=False, emoji=False, stderr=stderr, **settings)


def plain_text(content: Any) -> str:
    """What a console of 120 columns shows, without colours."""
    file = io.StringIO()
    Console(file=file, width=120, color_system=None, highlight=False).print(content)
    return file.getvalue()


class _Trimmed:
    """A stream that drops the spaces that tables add at the end of a line."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def write(self, text: str) -> int:
        """Writes the text; returns its length."""
        self._stream.write(re.sub(r" +(?=\n)", "", text))
        return len(text)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


class RunConsole:
    """Shows a run as it goes, on stderr; or on stdout where what it shows is what was asked for."""

    def __init__(self, *, stderr: bool = True) -> None:
        self._terminal = plain_console(stderr=stderr)
        self._live: Progress | None = None
        self._task = TaskID(0)
        self._file: TextIO | None = None
        self._log: Console | None = None
        self._before_log: list[Any] = []
        self._validation = ""

    def open_log(self, path: Path) -> None:
        """Also writes everything to ``path`` from now on, including what was shown before."""
        self._file = open(path, "a", encoding="utf-8")
        self._log = plain_console(file=self._file)
        for item in self._before_log:
            self._log.print(item)
        self._before_log.clear()
        self._file.flush()

    def close(self) -> None:
        """Ends the live line and closes the log."""
        self._stop_live()
        if self._file is not None:
            with suppress(OSError):
                self._file.close()
            self._file = self._log = None

    def note(self, message: str) -> None:
        """One line."""
        self._show(message)

    def header(self, rows: Sequence[tuple[str, str]]) -> None:
        """Shows what is about to run: names and values."""
        sheet = Sheet(Column("", style="bold", wrap=False), Column(""), lines=False)
        for name, value in rows:
            sheet.add_row(name, value)
        self._show(sheet)

    def failure(self, error: BaseException) -> None:
        """Writes the traceback to the log, or to the terminal if there is no log yet."""
        lines = "".join(traceback.format_exception(error))
        self._stop_live()
        if self._file is None:
            sys.stderr.write(lines)
            return
        with suppress(OSError):
            self._file.write(lines)
            self._file.flush()

    # --- training -----------------------------------------------------------------------------------

    def training_started(self) -> None:
        """Opens the live line."""
        if self._terminal.is_terminal:
            columns = (TextColumn("{task.description}"), BarColumn(bar_width=24), TextColumn("{task.fields[text]}"))
            self._live = Progress(*columns, console=self._terminal, transient=True)
            self._task = self._live.add_task("training", total=1.0, text="")
            self._live.start()

    def stepped(self, row: dict[str, float], *, step: int, tokens: int, seconds: float, progress: float) -> None:
        """Moves the live line."""
        if self._live is None:
            return
        left = seconds * (1.0 - progress) / progress if progress else 0.0
        text = (
            f"step {step:,}  loss {row['loss']:.3f}  {row['tokens_per_second']:,.0f} tok/s  "
            f"{clock(left)} left{self._validation}"
        )
        self._live.update(self._task, completed=progress, text=text)

    def validated(self, row: dict[str, float], *, step: int, tokens: int, seconds: float, progress: float) -> None:
        """Prints one line per validation."""
        values = "  ".join(f"{name} {value:.4g}" for name, value in row.items())
        self._validation = f"  valid {row['loss']:.3f}"
        self._show(f"{progress:4.0%}  step {step:,}  {clock(seconds)}  validation: {values}")

    def decoding(self, what: str, done: int, total: int) -> None:
        """Moves a live line through an evaluation."""
        if self._live is not None:
            self._live.update(self._task, description=what, completed=done / total, text=f"{done:,} of {total:,}")

    def training_ended(self) -> None:
        """Closes the live line."""
        self._stop_live()

    # --- results ------------------------------------------------------------------------------------

    def result(self, table: RenderableType) -> None:
        """Shows the result: on stdout, and in the log."""
        self._stop_live()
        # If nobody reads it, that is the command's exit status and not a failure of the run.
        with suppress(LostOutputError):
            plain_console().print(table)
        if self._log is not None:
            with suppress(OSError):
                self._log.print(table)

    def _show(self, item: Any) -> None:
        if self._live is not None:
            self._live.console.print(item)
        else:
            self._terminal.print(item)
        if self._log is not None and self._file is not None:
            # A log that cannot be written is no reason to stop: results and states are other files.
            with suppress(OSError):
                self._log.print(item)
                self._file.flush()
        else:
            self._before_log.append(item)

    def _stop_live(self) -> None:
        if self._live is not None:
            self._live.stop()
            self._live = None


class SilentConsole(RunConsole):
    """Shows nothing: of the processes of a run, the first one speaks."""

    def training_started(self) -> None:
        """Opens nothing."""

    def failure(self, error: BaseException) -> None:
        """Writes nothing: the first process hears of the error."""

    def result(self, table: RenderableType) -> None:
        """Shows nothing."""

    def _show(self, item: Any) -> None:
        """Shows nothing."""
