"""Decoding by onnxruntime: it runs the steps, and the search among them is the one of `tfx.model.decoding`.

Shapes: N hypotheses, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from torch import Tensor

from tfx.compression.checkpoint import LoadedModel
from tfx.config.schema import EvaluationConfig
from tfx.exchange.run_onnx import OnnxModel
from tfx.model.decoding import make_picker
from tfx.model.engine import Engine

Ids = Sequence[int]

# Sentences that are decoded at once, of about one length.
_BATCH = 64


class OnnxEngine(Engine):
    """A converted folder on the threads that torch has."""

    name = "onnx"

    def __init__(self, folder: Path, loaded: LoadedModel) -> None:
        self._model = OnnxModel(folder, torch.get_num_threads())

    def translate(
        self, sources: Sequence[Ids], limits: Sequence[int], config: EvaluationConfig, seed: int, streams: Sequence[int]
    ) -> list[list[int]]:
        outputs: list[list[int]] = [[] for _ in sources]
        order = sorted(range(len(sources)), key=lambda row: len(sources[row]), reverse=True)
        for first in range(0, len(order), _BATCH):
            rows = order[first : first + _BATCH]
            inputs, most = [sources[row] for row in rows], [limits[row] for row in rows]
            if config.method in ("auto", "beam") and config.beam > 1:
                found = self._model.beam(inputs, most, config)
            else:
                pick = make_picker(config, seed, torch.device("cpu"), [streams[row] for row in rows])
                found = self._model.step_by_step(inputs, most, pick)
            for row, ids in zip(rows, found, strict=True):
                outputs[row] = ids
        return outputs

    def continue_texts(
        self, prompts: Sequence[Ids], new_tokens: int, pick: Callable[[Tensor, list[int]], Tensor]
    ) -> list[list[int]]:
        return self._model.step_by_step(prompts, [new_tokens] * len(prompts), pick)
