"""The end of the stack: weights take their final form, and the model is written plain and compressed."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING

from tfx.compression import checkpoint
from tfx.record.directory import RunDirectory
from tfx.run.measure import Measurer
from tfx.techniques.calibration import Calibration

if TYPE_CHECKING:
    from tfx.run.setup import Parts


def compress(parts: Parts, run: RunDirectory, measurer: Measurer, seconds: float) -> Path:
    """Finishes the stack, and writes the model: as plain tensors, and compressed if a technique compresses.

    Returns the final file. Each technique that acts on weights adds a row to ``stages``; if there is none, the trained
    model adds one, with the ``seconds`` of its training.
    """
    written = None
    start = time.perf_counter()
    calibration = Calibration.on(parts.model, parts.data, parts.config, parts.device)
    for technique in parts.stack.finish(parts.model, calibration):
        written = measurer.measure_compressed(technique.name, parts.model, parts.stack, time.perf_counter() - start)
        start = time.perf_counter()
    if written is None:
        parts.stack.tune(parts.model, calibration)
    checkpoint.save(run.model, parts.model, parts.data.tokenizer, parts.config.evaluation)
    if written is None:
        measurer.measure_dense("trained", run.model, seconds)
        return run.model
    written.rename(run.compressed)
    return run.compressed
