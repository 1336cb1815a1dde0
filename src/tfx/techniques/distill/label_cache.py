"""The cached answers of a classifier's teachers: the largest logits for each training text.

Texts of the same tokens share them.

They are made once for teachers and their data, and kept in the cache folder. Their cost counts as the teacher's.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from tfx.errors import UserError
from tfx.model.batch import Batch
from tfx.model.flops import forward_flops
from tfx.model.transformer import run_batch
from tfx.tasks import task_named
from tfx.tasks.mixture import Mixture
from tfx.tasks.prepare import PreparedData
from tfx.tasks.texts import Texts
from tfx.techniques.contract import Teacher
from tfx.techniques.distill.kept_logits import kept, key_of, picked
from tfx.techniques.distill.soft_targets import mean_of_probabilities

# Raise it when the content of the cache changes.
_VERSION = 1
_BATCH_TOKENS = 2048


@dataclass(frozen=True)
class LabelLogits:
    """The K largest logits of each training text: ``ids`` (int32) and ``logits`` (float32) are (texts, K), on the CPU.

    ``places[c][i]`` is the row of text i of corpus c in both.
    """

    ids: Tensor
    logits: Tensor
    places: Sequence[np.ndarray]

    @classmethod
    def of(cls, teachers: Sequence[Teacher], data: PreparedData, count: int, device: torch.device) -> LabelLogits:
        """The logits of a teacher in its precision, or of the mean of several: from the cache, or computed and cached.

        Their cost counts as that of the first.
        """
        train, context = data.splits["train"], teachers[0].model.architecture.context
        parts = train.parts if isinstance(train, Mixture) else [train]
        texts = [part for part in parts if isinstance(part, Texts)]
        if len(texts) < len(parts):
            raise UserError(
                "technique.distill.cache_top_k keeps the teacher's answers to all training texts, and a streamed data "
                "set has not all of them at hand: leave it out"
            )
        k = min(count, teachers[0].model.architecture.output_count)
        known: dict[bytes, int] = {}
        places = [np.zeros(len(part), dtype=np.int64) for part in texts]
        for batch in _batches(texts, data):
            places[batch.corpus][batch.rows] = [known.setdefault(tokens, len(known)) for tokens in _tokens(batch)]
        if not teachers[0].sha256:  # an untrained stand-in: any logits cost as much to learn from
            size = (len(known), k)
            return cls(torch.arange(k, dtype=torch.int32).expand(size), torch.zeros(1).expand(size), places)
        key = key_of(teachers, k, _VERSION)
        key.update(f"{context}\0{data.tokenizer.fingerprint}".encode())
        for tokens in known:
            key.update(tokens + b"\0\0\0\0")
        size = (len(known), k)
        ids, logits = kept(
            "teacher-labels",
            key,
            teachers,
            lambda: _largest(teachers, _batches(texts, data), data, size, places, device),
        )
        return cls(ids, logits, places)

    def of_batch(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """Ids (B, 1, K) and logits (B, 1, K) of the texts of a batch, where the batch is."""
        places_B = torch.from_numpy(self.places[batch.corpus][batch.rows])
        device = batch.target_out_BT.device
        ids_BK, logits_BK = (picked(values, places_B, device) for values in (self.ids, self.logits))
        return ids_BK.long().unsqueeze(1), logits_BK.unsqueeze(1)


def _batches(texts: Sequence[Texts], data: PreparedData) -> Iterator[Batch]:
    """All texts once, of like length in a batch."""
    for corpus, part in enumerate(texts):
        for rows in part.in_order(_BATCH_TOKENS, part.longest):
            yield replace(part.collate(rows, part.longest, data.tokenizer), corpus=corpus)


def _tokens(batch: Batch) -> list[bytes]:
    """The tokens of each text of a batch on the CPU, without padding, as bytes."""
    assert batch.source_BS is not None
    source = batch.source_BS.numpy().astype(np.int32)
    mask = None if batch.source_mask_BS is None else batch.source_mask_BS.numpy()
    return [(row if mask is None else row[mask[number]]).tobytes() for number, row in enumerate(source)]


@torch.no_grad()
def _largest(
    teachers: Sequence[Teacher],
    batches: Iterable[Batch],
    data: PreparedData,
    size: tuple[int, int],
    places: Sequence[np.ndarray],
    device: torch.device,
) -> tuple[Tensor, Tensor, float]:
    """Ids and logits (texts, K) of all training texts, and the FLOPs of making them."""
    task = task_named(data.task)
    ids, logits = torch.zeros(size, dtype=torch.int32), torch.zeros(size)
    flops = 0.0
    for batch in batches:
        found = []
        for teacher in teachers:
            own = batch
            if teacher.tokenizer_fingerprint != data.tokenizer.fingerprint:
                context = teacher.model.architecture.context
                own = task.retold(batch, data.tokenizer, teacher.tokenizer, context).batch
            with teacher.precision.forward(device):
                hidden_B1D = run_batch(teacher.model, own.to(device))
            found.append(teacher.model.project(hidden_B1D.squeeze(1).float()))
            assert own.source_BS is not None
            rows_read, length = own.source_BS.shape
            flops += forward_flops(teacher.model.architecture, rows_read, length, 0)
        top = (found[0] if len(found) == 1 else mean_of_probabilities(found)).topk(size[1], dim=-1)
        rows = torch.from_numpy(places[batch.corpus][batch.rows])
        ids[rows], logits[rows] = top.indices.int().cpu(), top.values.float().cpu()
    return ids, logits, flops
