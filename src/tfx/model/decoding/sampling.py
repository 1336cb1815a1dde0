"""How the next token of a text is chosen: the likeliest one, or a sample.

Shapes: N texts, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from tfx.config.schema import EvaluationConfig
from tfx.errors import UserError
from tfx.model.decoding.top import best_tokens
from tfx.model.device import running_sums
from tfx.record.seeds import derive_seed

Picker = Callable[[Tensor, list[int]], Tensor]
"""Chooses the next token (N,) from logits (N, V); the list gives the number of each row's input in the batch."""


def make_picker(config: EvaluationConfig, seed: int, device: torch.device, streams: Sequence[int] = (0,)) -> Picker:
    """Greedy choice, or sampling with temperature, top-k (Fan 2018) and top-p (Holtzman 2020).

    Each input has its own random stream, keyed by the seed and by the input's entry in ``streams``. So its sample
    does not depend on the rest of the batch, and no stream is a shifted copy of another. Sampling raises
    `UserError` if the model's outputs are not finite.
    """
    if config.method != "sample":
        return lambda logits, rows: best_tokens(logits)
    generators = [torch.Generator(device).manual_seed(derive_seed(seed, "sample", stream)) for stream in streams]

    def pick(logits: Tensor, rows: list[int]) -> Tensor:
        probabilities = sampling_distribution(logits.float(), config.temperature, config.top_k, config.top_p)
        if not bool(probabilities.isfinite().all()):
            raise UserError("the model's outputs are not finite: its training diverged, or its file has been altered")
        # Of exponential waiting times with the probabilities as rates, the shortest one is a draw from them.
        times = torch.empty_like(probabilities)
        for row, time in zip(rows, times, strict=True):
            time.exponential_(generator=generators[row])
        return (probabilities / times.clamp_(min=1e-30)).argmax(-1)

    return pick


def sampling_distribution(logits: Tensor, temperature: float, top_k: int | None, top_p: float | None) -> Tensor:
    """Probabilities (..., V) after temperature, then top-k, then top-p; the most likely token always stays."""
    # Shift the largest logit to 0 first, or a small temperature would overflow.
    logits = (logits - logits.amax(-1, keepdim=True)) / temperature
    if top_k is not None and top_k < logits.shape[-1]:
        # By index, not by value, so that ties leave no more than k tokens.
        top = logits.topk(top_k, dim=-1)
        logits = torch.full_like(logits, -torch.inf).scatter(-1, top.indices, top.values)
    probabilities = logits.softmax(-1)
    if top_p is not None and top_p < 1:
        ranked, order = probabilities.sort(dim=-1, descending=True)
        before = running_sums(ranked, -1) - ranked
        ranked = ranked.masked_fill(before >= top_p, 0.0)
        probabilities = torch.zeros_like(probabilities).scatter(-1, order, ranked)
        probabilities = probabilities / probabilities.sum(-1, keepdim=True)
    return probabilities
