"""Loss of a whole split."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor

from tfx.data.tokenizer import Tokenizer
from tfx.evaluation.labels import label_metrics
from tfx.model.early_exit import label_logits
from tfx.model.label_loss import plain_losses
from tfx.model.modes import scoring
from tfx.model.transformer import Transformer, run_batch
from tfx.processes.group import ALONE, Group
from tfx.tasks.batches import scoring_batches
from tfx.tasks.contract import Answers, Split

_SLICE = 1024


@dataclass
class LossScore:
    """Negative log-likelihood of a split. ``nll`` and ``targets`` are by row: a sentence, or a window of a stream.

    ``text_bytes`` of a stream are the bytes of its targets; ``unknown_bytes``, by row, those of characters that the
    tokenizer does not know. ``logits`` (rows, C) are the outputs of a classifier, which ``judge`` turns into answers;
    ``depth`` is the number of blocks that each row took, where texts leave the model early.
    """

    text_bytes: int | None
    nll: np.ndarray
    targets: np.ndarray
    unknown_bytes: np.ndarray = field(default_factory=lambda: np.zeros(0, dtype=np.int64))
    logits: np.ndarray | None = None
    judge: Callable[[np.ndarray, np.ndarray | None], Answers] | None = None
    depth: np.ndarray | None = None

    def completed(self, group: Group) -> LossScore:
        """The score of all rows, from the rows that each process has scored: the same bits as that of one process."""
        scored = {name: getattr(self, name) for name in ("nll", "targets", "logits", "depth")}
        parts: dict[str, Any] = {
            name: torch.from_numpy(values.copy()) for name, values in scored.items() if values is not None
        }
        group.add_up(list(parts.values()))
        for name, part in parts.items():
            parts[name] = part.numpy()
        return replace(self, **parts)

    @cached_property
    def answers(self) -> Answers | None:
        """What a classifier answers."""
        return None if self.logits is None or self.judge is None else self.judge(self.logits, self.depth)

    @property
    def total_nll(self) -> float:
        """The sum over all rows, in nats."""
        return float(self.nll.sum())

    @property
    def total_targets(self) -> int:
        """How many targets there are."""
        return int(self.targets.sum())

    @property
    def metrics(self) -> dict[str, float]:
        """``loss`` in nats per token, ``perplexity``, and for streams ``bits_per_byte`` of the text.

        Of a classifier, ``loss`` by text, and what its answers are worth.

        The code for an unknown character does not say which one it is. Each of its bytes costs 8 bits more, so that the
        text could be restored from the bits.
        """
        if self.answers is not None:
            return {"loss": float(self.answers.loss.mean()), **label_metrics(self.answers)}
        loss = self.total_nll / max(1, self.total_targets)
        values = {"loss": loss, "perplexity": math.exp(min(loss, 700.0))}
        if self.text_bytes:
            bits = self.total_nll / math.log(2) + 8 * int(self.unknown_bytes.sum())
            values["bits_per_byte"] = bits / self.text_bytes
        return values


@torch.inference_mode()
def score_loss(
    model: Transformer,
    split: Split,
    tokenizer: Tokenizer,
    *,
    batch_tokens: int,
    device: torch.device,
    between: Callable[[], Any] | None = None,
    group: Group = ALONE,
) -> LossScore:
    """Scores every target of a split once, in fp32 unless inside `scoring_in`. The model keeps its mode.

    ``between`` is called before each batch, and may raise to stop. Each process of a ``group`` scores its share of the
    batches: `LossScore.completed` adds them up.
    """
    context = model.architecture.context
    rows = split.scored_rows(context)
    nll = np.zeros(rows)
    targets = np.zeros(rows, dtype=np.int64)
    outputs = split.outputs
    kept = None if outputs is None else np.zeros((rows, outputs.count), dtype=np.float32)
    depths = None if model.architecture.exit_threshold is None else np.zeros(rows, dtype=np.int64)
    with scoring(model):
        for batch in scoring_batches(split, tokenizer, batch_tokens=batch_tokens, context=context, group=group):
            if between is not None:
                between()
            moved = batch.to(device)
            if kept is not None:  # one position a row
                logits_BC, depth_B = label_logits(model, moved)
                place = split.places(batch.rows, context)
                target_B = moved.target_out_BT.flatten()
                nll[place] = (
                    plain_losses(model.architecture, logits_BC, target_B, moved.values_BC).double().cpu().numpy()
                )
                targets[place] = (batch.target_out_BT >= 0).sum(1).numpy()
                kept[place] = logits_BC.float().cpu().numpy()
                if depths is not None and depth_B is not None:
                    depths[place] = depth_B.cpu().numpy()
                continue
            hidden = run_batch(model, moved).flatten(0, 1)
            # The model projects in slices: all logits at once would be the largest tensor.
            target = moved.target_out_BT.flatten()
            pieces: list[Tensor] = []
            place = split.places(batch.rows, context)
            for start in range(0, len(hidden), _SLICE):
                piece = slice(start, start + _SLICE)
                logits_NV = model.project(hidden[piece])
                pieces.append(plain_losses(model.architecture, logits_NV, target[piece], None))
            by_row = torch.cat(pieces).view(moved.target_out_BT.shape).double().sum(1).cpu().numpy()
            nll[place] = by_row
            targets[place] = (batch.target_out_BT >= 0).sum(1).numpy()
    text = split.scored_text(tokenizer, context)
    if text is None:
        judge = None if kept is None else split.answers
        return LossScore(None, nll, targets, np.zeros(rows, dtype=np.int64), kept, judge, depths)
    return LossScore(text.text_bytes, nll, targets, text.unknown_bytes)
