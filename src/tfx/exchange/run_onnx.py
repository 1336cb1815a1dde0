"""A folder with a model as ONNX files, run by onnxruntime.

Shapes: B rows, T new positions, P positions in the caches, S source positions, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from tfx.config.schema import EvaluationConfig
from tfx.exchange.target import Ids
from tfx.model.decoding import Decoder, Ends, Picker, Rules
from tfx.model.decoding.beam import beam_search
from tfx.record.files import read_json

Array = NDArray[Any]

GENERATION = "generation_config.json"
ENCODER, DECODER, ONE = "encoder.onnx", "decoder.onnx", "model.onnx"


class OnnxModel:
    """The files of a folder, each in a session of onnxruntime on so many ``threads``."""

    def __init__(self, folder: Path, threads: int = 1) -> None:
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        options.inter_op_num_threads = 1
        options.log_severity_level = 3

        def session(name: str) -> Any:
            return onnxruntime.InferenceSession(str(folder / name), options, providers=["CPUExecutionProvider"])

        roles = read_json(folder / GENERATION)
        self.eos, self.pad = roles["eos_token_id"], roles["pad_token_id"]
        self.never = [ids[0] for ids in roles.get("bad_words_ids", [])]
        self.begin = roles.get("decoder_start_token_id")
        self.is_seq2seq = (folder / DECODER).is_file()
        self._encoder = session(ENCODER) if self.is_seq2seq else None
        self._model = session(DECODER if self.is_seq2seq else ONE)
        # Of an encoder alone, the width.
        self.vocab_size = self._model.get_outputs()[0].shape[2]
        self._inputs = {place.name: place for place in self._model.get_inputs()}

    def read(self, sources: Sequence[Ids]) -> Caches:
        """Encodes sources, each with its end token."""
        ids, mask = padded(sources, self.pad)
        names = [place.name for place in self._encoder.get_outputs()]
        found = self._encoder.run(names, {"input_ids": ids, "attention_mask": mask})
        crossing = [name for name in self._inputs if name.startswith("cross.")]
        return self._new(mask, dict(zip(crossing, found, strict=True)))

    def begin_texts(self, prompts: Sequence[Ids]) -> tuple[Array, Caches]:
        """Logits (B, V) behind prompts, which are padded on their left, and the caches that hold them."""
        ids, mask = padded(prompts, self.pad, left=True)
        caches = self.no_caches(len(prompts))
        return self.step(ids, caches, mask)[:, -1], caches

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

    def step_by_step(self, inputs: Sequence[Ids], limits: Sequence[int], pick: Picker) -> list[list[int]]:
        """One output of each input of a batch, token by token: without the end token, at most ``limits`` long."""
        if self.is_seq2seq:
            caches = self.read(inputs)
            logits_BV = self.step(np.full((len(inputs), 1), self.begin, np.int64), caches)[:, -1]
        else:
            logits_BV, caches = self.begin_texts(inputs)
        outputs: list[list[int]] = [[] for _ in inputs]
        alive = np.arange(len(inputs))
        most = np.asarray(limits)
        while True:
            logits_BV[:, self.never] = -np.inf
            tokens = pick(torch.from_numpy(logits_BV), alive.tolist()).numpy()
            for row, token in zip(alive.tolist(), tokens.tolist(), strict=True):
                if token != self.eos:
                    outputs[row].append(token)
            going = (tokens != self.eos) & (np.asarray([len(outputs[row]) for row in alive]) < most[alive])
            if not going.all():
                kept = np.flatnonzero(going)
                if not len(kept):
                    return outputs
                alive, tokens = alive[kept], tokens[kept]
                caches.select(kept)
            logits_BV = self.step(tokens[:, None], caches)[:, -1]

    def beam(self, sources: Sequence[Ids], limits: Sequence[int], config: EvaluationConfig) -> list[list[int]]:
        """The best output of each source by beam search, without the end token, at most ``limits`` long."""
        ends = Ends(self.begin, self.eos, self.pad, tuple(self.never))
        rules = Rules(ends, config, torch.device("cpu"))
        hypotheses = cast("Decoder", _Hypotheses(self, sources, config.beam))
        return [found[0].tokens for found in beam_search(hypotheses, list(limits), ends, rules, config)]

    def hidden(self, sources: Sequence[Ids]) -> Array:
        """The hidden states (B, S, D) of an encoder alone."""
        ids, mask = padded(sources, self.pad)
        return self._model.run(None, {"input_ids": ids, "attention_mask": mask})[0]

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


def padded(rows: Sequence[Ids], pad: int, *, left: bool = False) -> tuple[Array, Array]:
    """Rows of one length, and a mask with 1 on their real tokens."""
    longest = max(map(len, rows))
    ids = np.full((len(rows), longest), pad, np.int64)
    mask = np.zeros((len(rows), longest), np.int64)
    for row, own in enumerate(rows):
        place = slice(longest - len(own), None) if left else slice(0, len(own))
        ids[row, place], mask[row, place] = own, 1
    return ids, mask


class _Hypotheses:
    """What `beam_search` asks of a decoder, for the K hypotheses of each source, run by onnxruntime.

    Its hidden states are logits already, and it is its own model, which projects them no further.
    """

    output = None

    def __init__(self, model: OnnxModel, sources: Sequence[Ids], hypotheses: int) -> None:
        self.model, self.device = self, torch.device("cpu")
        self.architecture = SimpleNamespace(vocab_size=model.vocab_size)
        self._model, self._hypotheses = model, hypotheses
        self._caches = model.read(sources)
        self._caches.select(np.arange(len(sources)).repeat(hypotheses))

    def step(self, token_N: Tensor) -> Tensor:
        return torch.from_numpy(self._model.step(token_N.unsqueeze(1).numpy(), self._caches)[:, 0])

    def project(self, logits_NV: Tensor) -> Tensor:
        return logits_NV

    def reorder(self, parent_N: Tensor) -> None:
        self._caches.select_past(parent_N.numpy())

    def keep(self, going: list[int]) -> Tensor:
        rows = np.asarray(going)[:, None] * self._hypotheses + np.arange(self._hypotheses)
        self._caches.select(rows.flatten())
        return torch.tensor(going)
