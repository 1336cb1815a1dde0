"""Loss of a whole split."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from tfx.data.tokenizer import Tokenizer
from tfx.model.batch import IGNORE
from tfx.model.transformer import Transformer, run_batch
from tfx.processes.group import ALONE, Group
from tfx.tasks.batches import scoring_batches
from tfx.tasks.contract import Split

_SLICE = 1024


@dataclass
class LossScore:
    """Negative log-likelihood of a split. ``nll`` and ``targets`` are by row: a sentence, or a window of a stream.

    ``text_bytes`` of a stream are the bytes of its targets; ``unknown_bytes``, by row, those of characters that the
    tokenizer does not know.
    """

    text_bytes: int | None
    nll: np.ndarray
    targets: np.ndarray
    unknown_bytes: np.ndarray = field(default_factory=lambda: np.zeros(0, dtype=np.int64))

    def completed(self, group: Group) -> LossScore:
        """The score of all rows, from the rows that each process has scored: the same bits as that of one process."""
        parts = [torch.from_numpy(values.copy()) for values in (self.nll, self.targets)]
        group.add_up(parts)
        nll, targets = (part.numpy() for part in parts)
        return replace(self, nll=nll, targets=targets)

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

        The code for an unknown character does not say which one it is. Each of its bytes costs 8 bits more, so that the
        text could be restored from the bits.
        """
        loss = self.total_nll / max(1, self.total_targets)
        values = {"loss": loss, "perplexity": math.exp(min(loss, 700.0))}
        if self.text_bytes:
            bits = self.total_nll / math.log(2) + 8 * int(self.unknown_bytes.sum())
            values["bits_per_byte"] = bits / self.text_bytes
        return values


def _nll(logits_NV: Tensor, target_N: Tensor) -> Tensor:
    return functional.cross_entropy(logits_NV.float(), target_N, reduction="none", ignore_index=IGNORE)


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
    """Scores every target of a split once, in fp32. The model keeps its mode.

    ``between`` is called before each batch, and may raise to stop. Each process of a ``group`` scores its share of the
    batches: `LossScore.completed` adds them up.
    """
    was_training = model.training
    model.eval()
    context = model.architecture.context
    rows = split.scored_rows(context)
    nll = np.zeros(rows)
    targets = np.zeros(rows, dtype=np.int64)
    for batch in scoring_batches(split, tokenizer, batch_tokens=batch_tokens, context=context, group=group):
        if between is not None:
            between()
        moved = batch.to(device)
        hidden = run_batch(model, moved).flatten(0, 1)
        # The model projects in slices: all logits at once would be the largest tensor.
        target = moved.target_out_BT.flatten()
        slices = zip(hidden.split(_SLICE), target.split(_SLICE), strict=True)
        nll_N = torch.cat([_nll(model.project(hidden_nD), target_n) for hidden_nD, target_n in slices])
        by_row = nll_N.view(moved.target_out_BT.shape).double().sum(1).cpu().numpy()
        place = split.places(batch.rows, context)
        nll[place] = by_row
        targets[place] = (batch.target_out_BT >= 0).sum(1).numpy()
    model.train(was_training)
    text = split.scored_text(tokenizer, context)
    if text is None:
        return LossScore(None, nll, targets, np.zeros(rows, dtype=np.int64))
    return LossScore(text.text_bytes, nll, targets, text.unknown_bytes)
