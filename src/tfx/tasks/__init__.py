"""What differs between tasks, one file for each."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tfx.tasks.contract import Task


def task_named(name: str) -> Task:
    """The task of a name in `tfx.config.task_facts.TASKS`, from the file of that name."""
    task: Task = import_module(f"tfx.tasks.{name}").TASK
    return task
