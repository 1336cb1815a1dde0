"""Provides the teachers that a stack needs: reads the named one, or trains one and caches it."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING

from tfx.config import compose
from tfx.config.inheritance import from_scratch
from tfx.config.schema import Budget, Root, TrackingConfig
from tfx.processes.failure import LostProcessError
from tfx.processes.group import Group
from tfx.record.directory import RunDirectory
from tfx.record.files import sha256
from tfx.record.lock import making
from tfx.terminal.console import RunConsole

if TYPE_CHECKING:
    import torch

    from tfx.tasks.prepare import PreparedData
    from tfx.techniques.contract import Teacher, TeacherNeed, Teachers
    from tfx.techniques.stack import Stack

    # Trains a run in a folder, or resumes the one there.
    TrainRun = Callable[[Root, Path], None]
    # Makes an untrained teacher, from the config that would train it and the run's data.
    StandIn = Callable[[Root, TeacherNeed, PreparedData, torch.device], Teacher]

_VERSION = 1


def check_need(config: Root, need: TeacherNeed) -> None:
    """Raises `UserError` if the named teacher does not exist, or cannot be trained with these settings."""
    from tfx.exchange.importing import local_file

    for path in need.paths:
        local_file(path)
    if not need.paths:
        teacher_config(config, need)


def make_teachers(
    config: Root, stack: Stack, device: torch.device, console: RunConsole, train: TrainRun, group: Group
) -> Teachers:
    """The teachers of a stack by technique, each already given to its technique.

    ``train`` trains those that are neither named nor in the cache, in all processes of a ``group`` together.
    """
    teachers: dict[str, list[Teacher]] = {}
    for technique, need in stack.teacher_needs():
        paths = need.paths or (_trained(config, need, console, train, group),)
        teachers[technique.name] = [read_teacher(config, path, device) for path in paths]
        technique.receive_teachers(teachers[technique.name], None, device)
    return teachers


def stand_in_teachers(
    config: Root,
    stack: Stack,
    data: PreparedData,
    device: torch.device,
    stand_in: StandIn,
) -> Teachers:
    """Like `make_teachers`, but ``stand_in`` makes each teacher that would have to be trained first."""
    teachers: dict[str, list[Teacher]] = {}
    for technique, need in stack.teacher_needs():
        own = [read_teacher(config, path, device) for path in need.paths]
        teachers[technique.name] = own or [stand_in(teacher_config(config, need), need, data, device)]
        technique.receive_teachers(teachers[technique.name], None, device)
    return teachers


def _trained(config: Root, need: TeacherNeed, console: RunConsole, train: TrainRun, group: Group) -> Path:
    """The cache entry of a teacher. Trains it if there is none; waits if another run is training it."""
    path = _cached_folder(config, need)
    if not group.is_first:
        if group.first(False):
            train(teacher_config(config, need), path)
        group.first(None)  # the first process has put it in its place
        return path
    with making(path, lambda: console.note(f"another run is training the teacher: waiting for {path}")):
        is_missing = group.first(not RunDirectory(path).model.is_file())
        if not is_missing:
            console.note(f"the teacher is in the cache: {path}")
        else:
            console.note(f"no teacher is named: training one first and keeping it in {path}")
            _train_beside(teacher_config(config, need), path, train)
        group.first(None)
    return path


def read_teacher(config: Root, path: Path, device: torch.device) -> Teacher:
    """A teacher from a run directory or model file, in the precision of the run."""
    from tfx.compression import checkpoint
    from tfx.exchange.importing import local_file
    from tfx.model.compilation import compile_for
    from tfx.model.device import choose_precision, drop_unused_memory
    from tfx.techniques.contract import Teacher

    drop_unused_memory(device)  # of the training, if this process has just trained it
    file = local_file(path)
    loaded = checkpoint.load(file, kernels=False)
    cost = RunDirectory(path).training_cost()
    compile_for(loaded.model, config.trainer, device)
    return Teacher(
        model=loaded.model,
        tokenizer=loaded.tokenizer,
        tokenizer_fingerprint=loaded.tokenizer.fingerprint,
        generation=loaded.generation,
        path=path,
        sha256=sha256(file),
        precision=choose_precision(config.trainer.precision, device),
        steps=int(cost.get("steps", 0)),
        seconds=cost.get("seconds", 0.0),
        tokens=int(cost.get("tokens", 0)),
        flops=cost.get("flops", 0.0),
    )


def teacher_config(config: Root, need: TeacherNeed) -> Root:
    """The run's own config without techniques, with the teacher's model and budget.

    Raises `UserError` for a model that does not exist, or that does not fit the run's data.
    """
    # Without init_from: with it, the check would accept a model and data of different kinds.
    config = replace(from_scratch(config), technique={})
    model = config.model if need.model is None else compose.change(config, [f"model={need.model}"]).model
    budget = need.budget
    if budget == Budget():
        budget = config.trainer.budget.times(2)
    trainer = replace(config.trainer, budget=budget, keep_zeros=False)
    return replace(
        config,
        # That text is for the student to learn from the teacher.
        dataset=replace(config.dataset, monolingual=None, monolingual_share=None),
        model=model,
        trainer=trainer,
        dry_run=False,
        name=None,
        tags=[],
        tracking=TrackingConfig(),
        reference=None,
        max_quality_drop=None,
    )


def _cached_folder(config: Root, need: TeacherNeed) -> Path:
    """A folder named by a hash of all that determines the teacher: its config and the content of the data."""
    from tfx.data.corpus import load_corpora, together
    from tfx.record.directory import writable_cache

    settings = asdict(teacher_config(config, need))
    # How many processes train it changes the order of sums and no more, unless they take steps of their own.
    del settings["trainer"]["devices"]
    if config.trainer.parallel != "local":
        del settings["trainer"]["parallel"], settings["trainer"]["local"]
    corpus = together(config.dataset, [corpus.fingerprint for corpus in load_corpora(config.dataset)])
    content = json.dumps([_VERSION, settings, corpus], sort_keys=True)
    return writable_cache("teachers") / hashlib.sha256(content.encode()).hexdigest()[:32]


def _train_beside(config: Root, folder: Path, train: TrainRun) -> None:
    """Trains beside the cache entry and then renames it, so that an entry is complete or absent.

    A training that was interrupted is resumed. The caller holds the cache entry's lock.
    """
    beside = folder.with_name(f".{folder.name}.training")
    try:
        train(config, beside)
    except LostProcessError:
        raise
    except Exception:
        shutil.rmtree(beside, ignore_errors=True)
        raise
    beside.rename(folder)
