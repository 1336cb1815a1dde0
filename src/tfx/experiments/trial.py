"""A short trial of configs: what a token of training costs. Leaves nothing behind except cached data."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from itertools import pairwise
from multiprocessing import get_context
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

from tfx.config.grammar import escaped, quoted
from tfx.config.schema import Budget, EarlyStoppingConfig, Root
from tfx.errors import UserError
from tfx.experiments.design import Rates
from tfx.experiments.jobs import Job
from tfx.run.setup import Setup, build_model
from tfx.run.teacher import stand_in_teachers

if TYPE_CHECKING:
    import torch

    from tfx.tasks.prepare import PreparedData
    from tfx.techniques.contract import Teacher, TeacherNeed

# The first steps include compilation and first allocations.
_WARM_UP = 2


@dataclass(frozen=True)
class TeacherTrial:
    """A teacher to train: its budget (nothing: twice the run's), and its rates."""

    budget: Budget
    rates: Rates


@dataclass(frozen=True)
class Trial:
    """The findings on one config: its rates, whether its file is compressed, its teachers by technique."""

    rates: Rates
    compresses: bool
    teachers: dict[str, TeacherTrial]


def try_configs(configs: Mapping[str, Root], steps: int, environment: Mapping[str, str]) -> dict[str, Trial]:
    """Trains each config for this number of steps, with whole ramps, in one process with these environment variables.

    A teacher that is not trained yet has random weights here, and its texts are not made: the data stays unchanged.
    Raises `UserError` with the name of a config that cannot run.
    """
    # A separate process: threads are set before torch is loaded, and its device memory is freed at the end.
    with ProcessPoolExecutor(1, get_context("spawn"), _begin, (dict(environment),)) as pool:
        return pool.submit(_try_all, dict(configs), steps).result()


def seconds_on_top(words: Sequence[str], environment: Mapping[str, str]) -> float:
    """What `tfx train` with these words takes besides its training: start-up, validation, the file. Leaves no run.

    Raises `UserError` if it fails.
    """
    with TemporaryDirectory(prefix="tfx-") as place:
        job = Job(0, [*words], Path(place) / "trial")
        command = [sys.executable, "-m", "tfx", "train", *words, f"hydra.run.dir={quoted(escaped(str(job.folder)))}"]
        began = time.monotonic()
        with open(job.log, "wb") as log:
            ended = subprocess.run(command, stdout=log, stderr=log, env=os.environ | dict(environment), check=False)
        took = time.monotonic() - began
        job.end(ended.returncode)
        if job.result is None:
            raise UserError(f"a trial cannot run: {job.reason}")
        return max(0.0, took - job.result.train.seconds)


def _begin(environment: dict[str, str]) -> None:
    os.environ.update(environment)
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # Ctrl-C ends it silently: the command prints the message


def _try_all(configs: dict[str, Root], steps: int) -> dict[str, Trial]:
    known: list[tuple[Root, Trial]] = []

    def tried(config: Root) -> Trial:
        short = replace(config, trainer=_trainer_of(config, steps))
        trial = next((trial for other, trial in known if other == short), None)
        if trial is None:
            trial = _try(config, short, lambda teacher: tried(teacher).rates)
            known.append((short, trial))
        return trial

    found = {}
    for name, config in configs.items():
        try:
            found[name] = tried(config)
        except UserError as error:
            raise UserError(f"arm {name}: {error}") from error
    return found


def _trainer_of(config: Root, steps: int) -> Any:
    return replace(
        config.trainer,
        budget=Budget(steps=steps),
        log_every=1,
        validate_every=1.0,
        early_stopping=EarlyStoppingConfig(),
        profile=False,
    )


def _try(config: Root, short: Root, rates_of: Any) -> Trial:
    from tfx.training.loop import Observer, Trainer

    def stand_in(teacher: Root, need: TeacherNeed, data: PreparedData, device: torch.device) -> Teacher:
        made.append(TeacherTrial(need.budget, rates_of(teacher)))
        return _stand_in(teacher, data, device)

    made: list[TeacherTrial] = []
    setup = Setup(config)
    needed = [technique.name for technique, need in setup.stack.teacher_needs() if not need.paths]
    parts = setup.prepare(stand_ins=lambda data: stand_in_teachers(config, setup.stack, data, setup.device, stand_in))
    taught = dict(zip(needed, made, strict=True))
    parts.stack.plan_for(parts.model)
    ends: list[float] = []

    class Stopwatch(Observer):
        def stepped(self, row: dict[str, float], *, seconds: float, **place: Any) -> None:
            ends.append(seconds)

    result = Trainer(short, parts.model, parts.data, parts.device, Stopwatch(), parts.stack).train()
    a_step = result.tokens / result.steps
    rates = Rates(
        seconds=median(after - before for before, after in pairwise(ends[_WARM_UP - 1 :])) / a_step,
        flops=result.flops / result.tokens,
        steps=1 / a_step,
    )
    return Trial(rates, bool(parts.stack.compressing), taught)


def _stand_in(config: Root, data: PreparedData, device: torch.device) -> Teacher:
    """An untrained teacher of the right shape, so that its forward passes cost the same."""
    from tfx.model.compilation import compile_for
    from tfx.model.device import choose_precision
    from tfx.techniques.contract import Teacher

    model = build_model(config, data, device, None)
    compile_for(model, config.trainer, device)
    precision = choose_precision(config.trainer.precision, device)
    return Teacher(model, data.tokenizer.fingerprint, data.tokenizer, config.evaluation, Path(), "", precision)
