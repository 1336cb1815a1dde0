"""Loss and decoded text of a whole split."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from tfx.config.schema import EvaluationConfig
from tfx.data.batching import Batch, bucket, collate_pairs, scoring_batches
from tfx.data.prepare import Pairs, Stream
from tfx.data.tokenizer import Tokenizer
from tfx.model.decoding import Ends, output_limit, translate
from tfx.model.loss import linear_cross_entropy
from tfx.model.transformer import Transformer


@dataclass
class LossScore:
    """Negative log-likelihood of a split. ``nll`` and ``targets`` are by row, where rows are sentences."""

    total_nll: float
    total_targets: int
    text_bytes: int | None
    nll: np.ndarray | None = None
    targets: np.ndarray | None = None

    @property
    def metrics(self) -> dict[str, float]:
        """``loss`` in nats a token, ``perplexity``, and for streams ``bits_per_byte`` of the text."""
        loss = self.total_nll / max(1, self.total_targets)
        values = {"loss": loss, "perplexity": math.exp(min(loss, 700.0))}
        if self.text_bytes:
            values["bits_per_byte"] = self.total_nll / math.log(2) / self.text_bytes
        return values


def run_batch(model: Transformer, batch: Batch) -> Tensor:
    """Teacher-forced hidden states (B, T, D) of a batch."""
    return model(batch.target_in_BT, batch.source_BS, batch.source_mask_BS)


@torch.inference_mode()
def score_loss(
    model: Transformer, split: Pairs | Stream, tokenizer: Tokenizer, *, batch_tokens: int, device: torch.device
) -> LossScore:
    """Scores every target of a split once, in fp32. The model is left in the mode that it was in."""
    was_training = model.training
    model.eval()
    is_pairs = isinstance(split, Pairs)
    nll = np.zeros(len(split)) if is_pairs else None
    targets = np.zeros(len(split), dtype=np.int64) if is_pairs else None
    total, count = 0.0, 0
    context = model.architecture.context
    for batch in scoring_batches(split, tokenizer, batch_tokens=batch_tokens, context=context):
        moved = batch.to(device)
        hidden = run_batch(model, moved).flatten(0, 1)
        _, nll_N = linear_cross_entropy(hidden, model.output.weight, moved.target_out_BT.flatten())
        by_row = nll_N.view(moved.target_out_BT.shape).double().sum(1).cpu().numpy()
        total += float(by_row.sum())
        count += batch.targets
        if nll is not None and targets is not None:
            nll[batch.rows] = by_row
            targets[batch.rows] = (batch.target_out_BT >= 0).sum(1).numpy()
    model.train(was_training)
    text_bytes = None
    if isinstance(split, Stream):
        # The first token is never predicted: its bytes are left out of the denominator.
        text_bytes = split.text_bytes - len(tokenizer.decode([int(split.tokens[0])]).encode())
    return LossScore(total, count, text_bytes, nll, targets)


def decode_split(
    model: Transformer,
    pairs: Pairs,
    tokenizer: Tokenizer,
    config: EvaluationConfig,
    device: torch.device,
    *,
    seed: int,
    rows: np.ndarray | None = None,
    progress: Callable[[int, int], Any] | None = None,
) -> list[str]:
    """The model's output text for each row of a split, in order; batched by length.

    ``progress`` is called with the number of sentences done and their total.
    """
    model.eval()
    rows = np.arange(len(pairs)) if rows is None else rows
    ends = Ends(tokenizer.bos, tokenizer.eos, tokenizer.pad)
    context = model.architecture.context
    lengths = pairs.source.lengths[rows] + 1
    limits = np.asarray([output_limit(int(length), config, context) for length in lengths])
    beams = config.beam if config.method in ("auto", "beam") else 1
    # A sentence takes its source once, and its likely output (about as long) once a hypothesis.
    groups = bucket(lengths, lengths * beams, config.batch_tokens, np.arange(len(rows)))
    outputs: list[str] = [""] * len(rows)
    done = 0
    for group in groups:
        batch = collate_pairs(pairs, rows[group], tokenizer).to(device)
        assert batch.source_BS is not None
        limit = torch.from_numpy(limits[group]).to(device)
        ids = translate(model, batch.source_BS, batch.source_mask_BS, limit, ends, config, seed)
        for position, sequence in zip(group, ids, strict=True):
            outputs[position] = tokenizer.decode(sequence)
        done += len(group)
        if progress is not None:
            progress(done, len(rows))
    return outputs
