"""A file of teachers' logits in the cache folder: made once for the same teachers, data and numbers, then read."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from tfx.record.directory import writable_cache
from tfx.record.files import replacing
from tfx.record.lock import making
from tfx.techniques.contract import Teacher, Work


def key_of(teachers: Sequence[Teacher], count: int, version: int) -> Any:
    """The hash of what the ``count`` largest logits of these teachers depend on; the data are for the caller to add."""
    precision = teachers[0].precision
    numbers = precision.products if precision.autocast is None else f"autocast {precision.autocast}"
    files = " ".join(teacher.sha256 for teacher in teachers)
    return hashlib.sha256(f"{version}\0{files}\0{count}\0{numbers}".encode())


def kept(
    folder: str, key: Any, teachers: Sequence[Teacher], make: Callable[[], tuple[Tensor, Tensor, float]]
) -> tuple[Tensor, Tensor]:
    """Ids and logits from the cache, or made with their FLOPs by ``make``. Their cost counts as the first teacher's."""
    path = writable_cache(folder) / f"{key.hexdigest()[:32]}.npz"
    with making(path):
        if not path.is_file():
            begun = time.perf_counter()
            ids, logits, flops = make()
            seconds = time.perf_counter() - begun
            with replacing(path) as temporary, open(temporary, "wb") as file:
                np.savez(file, ids=ids.numpy(), logits=logits.numpy(), seconds=seconds, flops=flops)
    with np.load(path) as stored:
        teachers[0].work["logits"] = Work(float(stored["seconds"]), float(stored["flops"]))
        return torch.from_numpy(stored["ids"]), torch.from_numpy(stored["logits"])
