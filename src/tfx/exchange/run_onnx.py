"""A folder with a model as ONNX files, run by onnxruntime.

Shapes: B rows, T new positions, P positions in the caches, S source positions, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from tfx.compression.checkpoint import LoadedModel
from tfx.exchange.target import padded
from tfx.model.engine import Ids, StepEngine

Array = NDArray[Any]

GENERATION, CONFIG = "generation_config.json", "config.json"
ENCODER, DECODER, ONE = "encoder.onnx", "decoder.onnx", "model.onnx"
TYPES = "token_type_ids"


class OnnxModel(StepEngine):
    """The files of a folder, each in a session of onnxruntime on the threads that torch has."""

    name = "onnx"

    def __init__(self, folder: Path, loaded: LoadedModel) -> None:
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = torch.get_num_threads()
        options.inter_op_num_threads = 1
        options.log_severity_level = 3
        # Without it, sums of int8 products overflow on processors that have no instructions for them (no VNNI).
        options.add_session_config_entry("session.x64quantprecision", "1")

        def session(name: str) -> Any:
            return onnxruntime.InferenceSession(str(folder / name), options, providers=["CPUExecutionProvider"])

        self.architecture, self._pad = loaded.model.architecture, loaded.tokenizer.pad
        self.is_seq2seq = (folder / DECODER).is_file()
        self._encoder = session(ENCODER) if self.is_seq2seq else None
        self._model = session(DECODER if self.is_seq2seq else ONE)
        self._inputs = {place.name: place for place in self._model.get_inputs()}

    def decoder(self, sources: Sequence[Ids] | None, hypotheses: int) -> _Decoder:
        return _Decoder(self, sources, hypotheses)

    def read(self, sources: Sequence[Ids]) -> Caches:
        """Encodes sources, each with its end token."""
        assert self._encoder is not None
        ids, mask = (part.numpy() for part in padded(sources, self._pad))
        found = self._encoder.run(None, {"input_ids": ids, "attention_mask": mask})
        crossing = [name for name in self._inputs if name.startswith("cross.")]
        return self._new(mask, dict(zip(crossing, found, strict=True)))

    def no_caches(self, rows: int) -> Caches:
        """Caches of rows that have read nothing, of a language model."""
        return self._new(np.zeros((rows, 0), np.int64), {})

    def step(self, ids_BT: Array, caches: Caches, mask_BT: Array | None = None) -> Array:
        """Logits (B, T, V) behind new tokens, which the caches then hold.

        ``mask`` is 0 on padding among the tokens of a language model.
        """
        feed = {"input_ids": ids_BT, **caches.past, **caches.source}
        if self.is_seq2seq:
            feed["encoder_attention_mask"] = caches.mask_BS
        else:
            new = np.ones_like(ids_BT) if mask_BT is None else mask_BT
            caches.mask_BS = np.concatenate([caches.mask_BS, new], 1)
            positions = np.maximum(caches.mask_BS.cumsum(1) - 1, 0)
            feed |= {"attention_mask": caches.mask_BS, "position_ids": positions[:, -ids_BT.shape[1] :]}
        logits, *present = self._model.run(None, feed)
        caches.past = dict(zip(caches.past, present, strict=True))
        return logits

    def once(self, sources: Sequence[Ids], types: Sequence[Ids] | None = None) -> Array:
        """The hidden states (B, S, D) of an encoder alone, or the outputs (B, C) of a classifier.

        ``types`` are those of the tokens of pairs.
        """
        ids, mask = (part.numpy() for part in padded(sources, self._pad))
        feed = {"input_ids": ids, "attention_mask": mask}
        if TYPES in self._inputs:
            assert types is not None
            feed[TYPES] = padded(types, 0)[0].numpy()
        return self._model.run(None, feed)[0]

    def _new(self, mask_BS: Array, source: dict[str, Array]) -> Caches:
        past = {
            name: np.zeros((len(mask_BS), place.shape[1], 0, place.shape[3]), np.float32)
            for name, place in self._inputs.items()
            if name.startswith("past.")
        }
        return Caches(mask_BS, past, source)


class Caches:
    """What a batch has read: keys and values by the names of the file's inputs, (B, G, P or S, K) each."""

    def __init__(self, mask_BS: Array, past: dict[str, Array], source: dict[str, Array]) -> None:
        self.mask_BS, self.past, self.source = mask_BS, past, source

    def select(self, rows: Array) -> None:
        """Keeps these rows, in this order."""
        self.select_past(rows)
        self.mask_BS = self.mask_BS[rows]
        self.source = {name: value[rows] for name, value in self.source.items()}

    def select_past(self, rows: Array) -> None:
        """The same for new tokens alone, where rows with the same source change places."""
        self.past = {name: value[rows] for name, value in self.past.items()}


class _Decoder:
    """What `tfx.model.decoding.Decoder` offers to a search. Its hidden states are logits already."""

    is_near = True

    def __init__(self, model: OnnxModel, sources: Sequence[Ids] | None, hypotheses: int) -> None:
        self.model, self.device, self._hypotheses = model, torch.device("cpu"), hypotheses
        self._caches: Caches | None = None
        if sources is not None:
            self._caches = model.read(sources)
            self._caches.select(np.arange(len(sources)).repeat(hypotheses))

    def read(self, token_RT: Tensor, first_R: Tensor | None = None) -> Tensor:
        """Logits (R, V) behind prompts; ``first`` is the place of the first token of each, behind its padding."""
        rows, length = token_RT.shape
        first_R = torch.zeros(rows) if first_R is None else first_R
        mask_RT = (torch.arange(length) >= first_R.unsqueeze(1)).long()
        self._caches = self.model.no_caches(rows)
        return torch.from_numpy(self.model.step(token_RT.numpy(), self._caches, mask_RT.numpy())[:, -1])

    def step(self, token_N: Tensor) -> Tensor:
        """Logits (N, V) behind the next token of each hypothesis."""
        assert self._caches is not None
        return torch.from_numpy(self.model.step(token_N.unsqueeze(1).numpy(), self._caches)[:, 0])

    def logits(self, logits_NV: Tensor) -> Tensor:
        """The same."""
        return logits_NV

    def reorder(self, parent_N: Tensor) -> None:
        """Hypothesis i of all goes on from hypothesis ``parent[i]``, which is one of the same source."""
        assert self._caches is not None
        self._caches.select_past(parent_N.numpy())

    def keep(self, going: list[int]) -> Tensor:
        """Keeps these inputs; returns their order."""
        assert self._caches is not None
        rows = np.asarray(going)[:, None] * self._hypotheses + np.arange(self._hypotheses)
        self._caches.select(rows.flatten())
        return torch.tensor(going)
