"""`tfx resume RUN`: continues from the last saved state, to the same bits as a run that was never stopped."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path

from tfx.config import compose
from tfx.config.keys import all_keys, unknown_key
from tfx.config.schema import Budget, Root
from tfx.errors import UserError
from tfx.processes.place import find_place
from tfx.record.directory import RunDirectory
from tfx.record.lock import locked
from tfx.record.summary import TrainingCost
from tfx.run.life import resume, status_of
from tfx.run.resuming import SAFE, is_safe
from tfx.terminal.arguments import Arguments

# A budget of seconds ends with the step in which it is spent.
_LAST_STEP = 1.0


def main(arguments: Sequence[str]) -> int:
    """Resumes the run, with settings that are safe to change."""
    parser = Arguments(
        "resume",
        "Continues a run from its last saved state, to the same bits as if it had never stopped.",
        epilog=f"You may set a longer budget, and other settings that change nothing done so far: "
        f"{', '.join(f'{key}*' if key.endswith('.') else key for key in SAFE)}; of a mixture dataset.mix.N.path.",
    )
    parser.add_argument("run", type=Path, metavar="RUN", help="the run's directory")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="such as trainer.budget.steps=2000")
    options = parser.read(arguments)

    run = RunDirectory.open(options.run)
    with ExitStack() as held:
        if find_place().is_first:
            held.enter_context(locked(run.path))
        saved = compose.load(run.config)
        config = _changed(saved, options.overrides)
        result = run.read_summary().result if run.summary.is_file() else None
        if result is not None and not _is_longer(config.trainer.budget, result.train):
            print(
                f"{run.path} is finished: a longer budget continues it (it had {config.trainer.budget.override}), "
                f"`tfx train {shlex.quote(f'init_from={run.path}')} …` trains its model further",
                file=sys.stderr,
            )
            return 0
        typed = [*run.read_overrides(), *options.overrides]
        status, _ = status_of(lambda: resume(config, typed, run, extends=result is not None, release=held.close))
    return status


def _is_longer(budget: Budget, spent: TrainingCost) -> bool:
    """Whether a budget goes beyond what a finished run has spent; raises `UserError` if it stopped early."""
    left = budget.amount > getattr(spent, budget.unit) + (_LAST_STEP if budget.unit == "seconds" else 0)
    if left and spent.stopped_early:
        raise UserError("the run stopped early, by its validations: a longer budget cannot continue it")
    return left


def _changed(saved: Root, overrides: Sequence[str]) -> Root:
    """The config with the user's changes; raises `UserError` for one that is not safe."""
    for override in overrides:
        key = override.partition("=")[0]
        if not is_safe(key):
            if not key.startswith(("technique", "dataset.mix", "hydra")) and key not in (known := all_keys()):
                raise unknown_key(key, known)
            raise UserError(
                f"{key} cannot change in a resumed run: start another run for it, with init_from=RUN to begin with "
                "these weights (`tfx resume --help` lists what can change)"
            )
    config = compose.change(saved, overrides) if overrides else saved
    before, after = saved.trainer.budget, config.trainer.budget
    if before.unit != after.unit or after.amount < before.amount:
        raise UserError(f"{after.override}: a resumed run keeps its budget ({before.override}) or gets a longer one")
    return config
