"""Saved training states: JSON values and tensors in a safetensors file, never a pickle.

A state is a nested value of dicts (with string keys), lists, strings, numbers, booleans, None and tensors. The
tensors lie in the file by number, tensors shared in memory once; the rest is JSON in the metadata of its
header, with ``format_version`` and a SHA-256 over both.
"""

from __future__ import annotations

import hashlib
import json
import re
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from tfx.config.schema import SaveConfig
from tfx.errors import UserError
from tfx.record.directory import DAMAGED
from tfx.record.files import replacing

VERSION = 1
_KEY = "tfx_state"
_TENSOR = "__tensor__"


class DamagedStateError(Exception):
    """The file differs from what was saved."""


class StateSaver:
    """Saves states while the run continues: they are copied at once, and a thread writes them.

    Only the last ``keep`` states in ``folder`` are kept.
    """

    def __init__(self, folder: Path, keep: int) -> None:
        self.folder, self.keep = folder, keep
        self._writer = ThreadPoolExecutor(1, "state")
        self._writing: Future[Path] | None = None

    def save(self, step: int, value: dict[str, Any]) -> None:
        """Copies the state after ``step`` and begins to write it; raises the error of the previous write, if any."""
        self.wait()
        tensors: dict[str, Tensor] = {}
        text = json.dumps(_flatten(value, tensors, {}))
        self._writing = self._writer.submit(_write, self.folder, step, text, tensors, self.keep)

    def wait(self) -> None:
        """Returns when the last state is on the disk; raises `OSError` if it could not be written."""
        if self._writing is not None:
            writing, self._writing = self._writing, None
            writing.result()

    def close(self) -> None:
        """Waits, and ends the thread."""
        try:
            self.wait()
        finally:
            self._writer.shutdown()


class SaveSchedule:
    """When a state is due."""

    def __init__(self, config: SaveConfig, step: int) -> None:
        self._config = config
        self._step = step
        self._time = time.monotonic()

    def is_due(self, step: int) -> bool:
        """Whether to save now, after this step."""
        every, minutes = self._config.every_steps, self._config.every_minutes
        due = every is not None and step - self._step >= every
        due = due or (minutes is not None and time.monotonic() - self._time >= 60 * minutes)
        if due:
            self._step, self._time = step, time.monotonic()
        return due


def _write(folder: Path, step: int, text: str, tensors: dict[str, Tensor], keep: int) -> Path:
    """Writes a state completely or not at all, and removes all but the last few."""
    folder.mkdir(exist_ok=True)
    path = state_file(folder, step)
    record = {"format_version": VERSION, "step": step, "sha256": _digest(text, tensors), "value": text}
    with replacing(path) as temporary:
        save_file(tensors, temporary, {_KEY: json.dumps(record)})
    for old in saved_states(folder)[keep:]:
        old.unlink(missing_ok=True)
    return path


def state_file(folder: Path, step: int) -> Path:
    """The file of the state after a step."""
    return folder / f"step-{step:09d}.safetensors"


def saved_states(folder: Path) -> list[Path]:
    """The states in a folder, newest first."""
    return sorted((p for p in folder.glob("step-*.safetensors") if re.fullmatch(r"step-\d+", p.stem)), reverse=True)


def newest_state(folder: Path, note: Callable[[str], None]) -> dict[str, Any] | None:
    """The newest undamaged state, or None; reports damaged ones and sets them aside, under another name.

    Raises `UserError` if one cannot be read: it may be whole.
    """
    for path in saved_states(folder):
        try:
            return load_state(path)
        except DamagedStateError as error:
            note(f"{error}: kept as {path.name}{DAMAGED}; the state before it counts")
            with suppress(OSError):  # it is passed over in any case
                path.rename(path.with_name(f"{path.name}{DAMAGED}"))
    return None


def load_state(path: Path) -> dict[str, Any]:
    """Reads a state, with its tensors on the CPU: it may hold more than the part of one process, and fit no device.

    Raises `DamagedStateError` if the file was cut or altered, `UserError` if a newer version wrote it, or if the system
    does not let it be read.
    """
    try:
        # The library says of any error that there is no file.
        open(path, "rb").close()
        with safe_open(path, "pt") as file:
            record = json.loads((file.metadata() or {})[_KEY])
            version = record["format_version"]
            if version > VERSION:
                raise UserError(f"{path} has format version {version}, and this tfx reads up to {VERSION}: update tfx")
            if (step := record.get("step")) not in (None, int(path.stem.rpartition("-")[2])):
                raise DamagedStateError(f"{path} holds the state after step {step:,}, and is not that file")
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - no mapping
        if _digest(record["value"], tensors) != record["sha256"]:
            raise DamagedStateError(f"{path} does not match its checksum")
        return dict(_restore(json.loads(record["value"]), tensors))
    except OSError as error:
        reason = error.strerror or error
        raise UserError(f"the saved state {path} cannot be read ({reason}), and was left as it is") from error
    except (SafetensorError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise DamagedStateError(f"{path} is not readable: {error}") from error


def _flatten(value: Any, tensors: dict[str, Tensor], seen: dict[Any, str]) -> Any:
    """The value with a reference for each tensor; a copy of the tensor goes to ``tensors``."""
    if isinstance(value, Tensor):
        # Tied weights are one tensor under several names; safetensors refuses tensors that share memory.
        identity = (value.data_ptr(), value.dtype, value.shape, value.stride()) if value.numel() else id(value)
        if identity not in seen:
            seen[identity] = str(len(tensors))
            tensors[seen[identity]] = value.detach().to("cpu", copy=True).contiguous()
        return {_TENSOR: seen[identity]}
    if isinstance(value, dict):
        return {key: _flatten(item, tensors, seen) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_flatten(item, tensors, seen) for item in value]
    return value


def _restore(value: Any, tensors: dict[str, Tensor]) -> Any:
    if isinstance(value, dict):
        if value.keys() == {_TENSOR}:
            return tensors[value[_TENSOR]]
        return {key: _restore(item, tensors) for key, item in value.items()}
    if isinstance(value, list):
        return [_restore(item, tensors) for item in value]
    return value


def _digest(text: str, tensors: dict[str, Tensor]) -> str:
    digest = hashlib.sha256(text.encode())
    for name in sorted(tensors):
        tensor = tensors[name]
        digest.update(json.dumps([name, str(tensor.dtype), list(tensor.shape)]).encode())
        digest.update(tensor.flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()
