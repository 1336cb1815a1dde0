"""A file of teachers' logits in the cache folder: made once for the same teachers, data and numbers, then read.

What a training reads of it stays on the CPU, and of each batch the rows are copied to the device while that computes.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Sequence
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from tfx.model.device import carried
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
    """Ids and logits from the cache, or made with their FLOPs by ``make``. Their cost counts as the first teacher's.

    They are mapped into memory: the processes of a machine share them, and what is not read takes none.
    """
    path = writable_cache(folder) / f"{key.hexdigest()[:32]}.safetensors"
    with making(path):
        if not path.is_file():
            begun = time.perf_counter()
            ids, logits, flops = make()
            seconds = time.perf_counter() - begun
            with replacing(path) as temporary:
                cost = {"seconds": repr(seconds), "flops": repr(flops)}
                save_file({"ids": ids, "logits": logits}, temporary, cost)
    with safe_open(path, "pt") as stored:
        cost = stored.metadata()
        teachers[0].work["logits"] = Work(float(cost["seconds"]), float(cost["flops"]))
        return stored.get_tensor("ids"), stored.get_tensor("logits")


def picked(values: Tensor, places_N: Tensor, device: torch.device) -> Tensor:
    """The rows (N, K) of a table on the CPU, on a device that does not wait for them."""
    out = torch.empty(len(places_N), values.shape[1], dtype=values.dtype, pin_memory=device.type == "cuda")
    return carried(torch.index_select(values, 0, places_N, out=out), device)
