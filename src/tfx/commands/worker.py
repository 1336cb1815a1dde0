"""`tfx worker FOLDER`: one process of a run that another tfx has started. Not for users."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Sequence
from contextlib import nullcontext, redirect_stdout
from pathlib import Path

from tfx.system.signals import ending_at_once


def main(arguments: Sequence[str]) -> int:
    """Does what the order in the folder says."""
    with ending_at_once():  # also while all this is loaded, which takes seconds: the launcher tells of it
        from tfx.processes.launch import end_with_parent, launcher_is_gone
        from tfx.processes.place import find_place

        end_with_parent()
        status = _obey(Path(arguments[0]))
        if launcher_is_gone() and find_place().is_first:
            shutil.rmtree(arguments[0], ignore_errors=True)  # its folder, which it can no longer remove
        return status


def _obey(place: Path) -> int:
    from tfx.processes.place import find_place
    from tfx.record.directory import RunDirectory
    from tfx.record.lock import locked
    from tfx.run.launch import Order
    from tfx.run.life import resume, status_of, train

    config, order = Order.read(place)
    folder = Path(order.folder)
    with redirect_stdout(sys.stderr if order.quiet else sys.stdout):
        if order.command == "train":
            return status_of(lambda: train(config, order.typed, folder, order.recorded))[0]
        with locked(folder) if find_place().is_first else nullcontext():
            run = RunDirectory(folder)
            return status_of(lambda: resume(config, order.typed, run, extends=order.extends))[0]
