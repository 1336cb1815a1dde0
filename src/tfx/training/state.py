"""Saved training states: JSON values and tensors in a safetensors file, never a pickle.

A state is a nested value of dicts (with string keys), lists, strings, numbers, booleans, None and tensors. The
tensors lie in the file under the path of their place; the rest is JSON in the metadata of its header, with
``format_version`` and a SHA-256 over both.
"""

from __future__ import annotations

import hashlib
import json
import re
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from tfx.errors import UserError
from tfx.run.files import replacing

VERSION = 1
_KEY = "tfx_state"
_TENSOR = "__tensor__"


class DamagedStateError(Exception):
    """The file is not what was saved."""


def save_state(folder: Path, step: int, value: dict[str, Any], keep: int) -> Path:
    """Writes the state after ``step`` whole or not at all; of earlier ones the last ``keep - 1`` stay."""
    folder.mkdir(exist_ok=True)
    path = folder / f"step-{step:09d}.safetensors"
    tensors: dict[str, Tensor] = {}
    text = json.dumps(_flatten(value, "", tensors))
    record = {"format_version": VERSION, "sha256": _digest(text, tensors), "value": text}
    with replacing(path) as temporary:
        save_file(tensors, temporary, {_KEY: json.dumps(record)})
    for old in saved_states(folder)[keep:]:
        old.unlink(missing_ok=True)
    return path


def saved_states(folder: Path) -> list[Path]:
    """The states in a folder, newest first."""
    return sorted((p for p in folder.glob("step-*.safetensors") if re.fullmatch(r"step-\d+", p.stem)), reverse=True)


def load_state(path: Path) -> dict[str, Any]:
    """Reads a state, with its tensors on the CPU.

    Raises `DamagedStateError` where the file was cut or altered, `UserError` where a newer version wrote it.
    """
    try:
        with safe_open(path, "pt") as file:
            record = json.loads((file.metadata() or {})[_KEY])
            version = record["format_version"]
            if version > VERSION:
                raise UserError(f"{path} has format version {version}, and this tfx reads up to {VERSION}: update tfx")
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - no mapping
        if _digest(record["value"], tensors) != record["sha256"]:
            raise DamagedStateError(f"{path} does not match its checksum")
        return _restore(json.loads(record["value"]), tensors)
    except (SafetensorError, OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise DamagedStateError(f"{path} is not readable: {error}") from error


def _flatten(value: Any, place: str, tensors: dict[str, Tensor]) -> Any:
    """The value with a reference in place of each tensor, which goes to ``tensors``."""
    if isinstance(value, Tensor):
        # A copy of its own: safetensors refuses tensors that share memory.
        tensors[place] = value.detach().to("cpu", copy=True).contiguous()
        return {_TENSOR: place}
    if isinstance(value, dict):
        return {key: _flatten(item, f"{place}/{key}", tensors) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_flatten(item, f"{place}/{index}", tensors) for index, item in enumerate(value)]
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
