"""The cached outputs of teachers: their texts for the training sources, and their largest logits.

Both are made once for teachers and their data, and kept in the cache folder. Their cost counts as the teacher's.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from tfx.config.schema import EvaluationConfig
from tfx.data.ragged import Ragged
from tfx.errors import UserError
from tfx.model.batch import Batch
from tfx.model.device import carried
from tfx.model.flops import decoding_flops, forward_flops
from tfx.model.transformer import run_batch
from tfx.record.directory import writable_cache
from tfx.record.files import read_json, write_json
from tfx.record.lock import making
from tfx.tasks.prepare import PreparedData
from tfx.tasks.seq2seq import Pairs, collate_pairs, decode_sources
from tfx.techniques.contract import Teacher, Work
from tfx.techniques.distill.kept_logits import kept, key_of, picked
from tfx.techniques.distill.soft_targets import mean_of_probabilities

# Raise it when the content of the cache changes.
_VERSION = 2
_ROWS = 128


def decoded_outputs(
    teachers: Sequence[Teacher], sources: list[str], fingerprint: str, beam: int
) -> tuple[list[str], str]:
    """A teacher's beam output for each source, and a key that identifies them all, as ``fingerprint`` does the sources.

    Of n teachers each writes an equal share: every n-th source. That costs what one teacher does, shows the student how
    each of them puts it, and asks for no common tokenizer. A search with their mean probabilities would cost n times as
    much.
    """
    outputs, keys = [""] * len(sources), []
    # With fewer sources than teachers the last have none.
    for place, teacher in enumerate(teachers[: max(1, len(sources))]):
        share = slice(place, None, len(teachers))
        of = f"{fingerprint}\0share {place} of {len(teachers)}" if len(teachers) > 1 else fingerprint
        # The technique sets the beam, however the teacher's own run was scored.
        decoding = replace(teacher.generation, method="beam", beam=beam)
        outputs[share], key = _outputs(teacher, sources[share], of, decoding)
        keys.append(key)
    return outputs, " ".join(keys)


def _outputs(teacher: Teacher, sources: list[str], of: str, decoding: EvaluationConfig) -> tuple[list[str], str]:
    """The outputs of one teacher; ``of`` identifies the sources."""
    shape: tuple[float, ...] = (decoding.beam, decoding.length_penalty, decoding.max_length_ratio)
    rules = (decoding.min_length, decoding.no_repeat_ngram, decoding.repetition_penalty)
    if rules != (0, 0, 1):  # else as the entries of before
        shape += rules
    content = f"{_VERSION}\0{of}\0{teacher.sha256}\0{shape}"
    key = hashlib.sha256(content.encode()).hexdigest()[:32]
    path = writable_cache("teacher-outputs") / f"{key}.json"
    with making(path):
        if not path.is_file():
            start = time.perf_counter()
            longest = teacher.model.architecture.context - 1
            ids = [row[:longest] for row in teacher.tokenizer.encode(sources)]
            encoded = Ragged.from_lists(ids, np.int64)
            teacher.model.eval()
            decoded = decode_sources(teacher.model, encoded, teacher.tokenizer, decoding, seed=0)
            seconds, flops = time.perf_counter() - start, _decoding_flops(teacher, ids, decoded, decoding.beam)
            write_json(path, {"seconds": seconds, "flops": flops, "outputs": decoded})
        # JSON, because an output may hold any kind of line end.
        made = read_json(path)
    teacher.work[f"outputs {key}"] = Work(made["seconds"], made["flops"])
    return made["outputs"], key


def _decoding_flops(teacher: Teacher, sources: list[list[int]], outputs: list[str], beam: int) -> float:
    """Of a search that ends each source as soon as its output is whole: it never ends sooner."""
    lengths = [len(ids) for ids in teacher.tokenizer.encode(outputs)]
    return sum(
        decoding_flops(teacher.model.architecture, len(source) + 1, length + 1, beam)
        for source, length in zip(sources, lengths, strict=True)
    )


@dataclass(frozen=True)
class TopLogits:
    """The K largest logits at each target position of the training pairs, one pair behind another.

    ``ids`` (int32) and ``logits`` (float16) are (positions, K), on the CPU; pair i has the positions from
    ``offsets[i]`` to ``offsets[i + 1]``.
    """

    ids: Tensor
    logits: Tensor
    offsets: np.ndarray

    @classmethod
    def of(cls, teachers: Sequence[Teacher], data: PreparedData, count: int, device: torch.device) -> TopLogits:
        """The logits of a teacher in its precision, or of the mean of several: from the cache, or computed and cached.

        Their cost counts as that of the first.
        """
        k = min(count, teachers[0].model.architecture.vocab_size)
        train = data.splits["train"]
        if not isinstance(train, Pairs):
            raise UserError(
                "technique.distill.cache_top_k keeps the teacher's logits of all training pairs, which a streamed data "
                "set and a mixture do not number: leave it out"
            )
        offsets = np.concatenate([[0], np.cumsum(train.target.lengths + 1)])
        if not teachers[0].sha256:  # an untrained stand-in: any logits cost as much to learn from
            size = (int(offsets[-1]), k)
            ids = torch.arange(k, dtype=torch.int32).expand(size)
            return cls(ids, torch.zeros(1, dtype=torch.float16).expand(size), offsets)
        key = key_of(teachers, k, _VERSION)
        key.update(data.fingerprint.encode())
        # Which of the data's pairs are trained on is another matter than what they are.
        for side in (train.source, train.target):
            key.update(side.lengths.tobytes())
        ids, logits = kept("teacher-logits", key, teachers, lambda: _largest(teachers, train, data, k, offsets, device))
        return cls(ids, logits, offsets)

    def of_batch(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """Ids (B, T, K) and logits (B, T, K) of a batch, where the batch is.

        Padding gets ids from 0 on with equal logits; it does not count.
        """
        starts_B = self.offsets[batch.rows]
        counts_B = self.offsets[batch.rows + 1] - starts_B
        steps_T = np.arange(batch.target_out_BT.shape[1])
        real_BT = steps_T < counts_B[:, None]
        places_N = torch.from_numpy(np.where(real_BT, starts_B[:, None] + steps_T, 0).ravel())
        device, shape = batch.target_out_BT.device, (*real_BT.shape, -1)
        real_BT1 = carried(torch.from_numpy(real_BT), device).unsqueeze(-1)
        ids_BTK = picked(self.ids, places_N, device).view(shape).long()
        logits_BTK = picked(self.logits, places_N, device).view(shape).float()
        first_K = torch.arange(self.ids.shape[1], device=device)
        return torch.where(real_BT1, ids_BTK, first_K), torch.where(real_BT1, logits_BTK, 0.0)


@torch.no_grad()
def _largest(
    teachers: Sequence[Teacher], train: Pairs, data: PreparedData, k: int, offsets: np.ndarray, device: torch.device
) -> tuple[Tensor, Tensor, float]:
    """Ids and logits (positions, K) of all training pairs, and the FLOPs of making them."""
    ids = torch.zeros(int(offsets[-1]), k, dtype=torch.int32)
    logits = torch.zeros(int(offsets[-1]), k, dtype=torch.float16)
    flops = 0.0
    for start in range(0, len(train), _ROWS):
        rows = np.arange(start, min(start + _ROWS, len(train)))
        batch = collate_pairs(train, rows, data.tokenizer)
        real_N = carried((batch.target_out_BT >= 0).flatten().nonzero().squeeze(1), device)
        moved = batch.to(device)
        assert batch.source_BS is not None
        shape = (batch.source_BS.shape[1], batch.target_in_BT.shape[1])
        found = []
        for teacher in teachers:
            with teacher.precision.forward(device):
                hidden_BTD = run_batch(teacher.model, moved)
            found.append(teacher.model.project(hidden_BTD.flatten(0, 1)[real_N].float()))
            flops += forward_flops(teacher.model.architecture, len(rows), *shape)
        top = (found[0] if len(found) == 1 else mean_of_probabilities(found)).topk(k, dim=-1)
        span = slice(int(offsets[start]), int(offsets[rows[-1] + 1]))
        ids[span] = top.indices.int().cpu()
        logits[span] = top.values.half().cpu()
    return ids, logits, flops
