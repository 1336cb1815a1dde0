"""The life of a run in the processes that do not write it: they train with the first one, and help it to measure."""

from __future__ import annotations

import socket
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tfx.config.schema import Root
from tfx.errors import UserError
from tfx.processes.group import Group
from tfx.record.directory import RunDirectory
from tfx.terminal.console import SilentConsole

if TYPE_CHECKING:
    from tfx.run.measure import Measurer


def announce(group: Group, folder: Path, step: int | None) -> None:
    """Tells the other processes, which are in `follow`, where the run is, and the step of the state it goes on from."""
    group.first((str(folder), step))


def _announced(group: Group) -> tuple[Path, int | None]:
    folder, step = group.first(("", None))
    return Path(folder), step


def follow(
    config: Root, group: Group, train_teacher: Callable[[Root, Path], None], recorded: Sequence[float] = ()
) -> None:
    """Does what the first process's `train` or `resume` does, in its order, without writing anything.

    Raises `UserError` if this process does not see the folder of the run.
    """
    from tfx.model.device import is_asynchronous
    from tfx.run.batch_size import with_batch_tokens
    from tfx.run.measure import Measurer
    from tfx.run.setup import Setup
    from tfx.run.teacher import make_teachers
    from tfx.run.train import build_trainer
    from tfx.training.loop import Observer
    from tfx.training.state import load_state, state_file

    class Helper(Observer):
        """Helps the first process to measure the model before it is compressed."""

        def compressing(self, seconds: float) -> None:
            measurer.help()

    folder, step = _announced(group)
    if not folder.is_dir():
        raise UserError(
            f"process {group.rank}, on {socket.gethostname()}, does not see the run directory {folder}: name one on a "
            "disk that all machines share, with hydra.run.dir=…"
        )
    setup, console, run = Setup(config, group), SilentConsole(), RunDirectory(folder)
    with group.watched(lambda error: None, on_devices=is_asynchronous(setup.device)):
        teachers = make_teachers(config, setup.stack, setup.device, console, train_teacher, group)
        config = setup.config = with_batch_tokens(setup, teachers, console.note)
        parts = setup.prepare(teachers)
        measurer: Measurer = Measurer(config, parts.data, parts.device, run, console, group)
        measurer.help()
        state: dict[str, Any] | None = None
        if step is not None:
            state = load_state(state_file(run.state, step))
        trainer = build_trainer(parts, Helper(), state, recorded)
        del state
        trainer.train()
        measurer.help()
