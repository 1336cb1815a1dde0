"""How fast a model runs here: latency of single inputs, throughput of many, memory of its weights."""

from __future__ import annotations

import time
from typing import Any

import numpy as np
import torch

from tfx.config.schema import EvaluationConfig
from tfx.data.prepare import Pairs, Ragged, Stream
from tfx.data.tokenizer import Tokenizer
from tfx.evaluation.generation import decode_sources
from tfx.model.decoding import continue_text, make_picker
from tfx.model.transformer import Transformer

_NEW_TOKENS = 32


def measure_speed(
    model: Transformer, split: Pairs | Stream, tokenizer: Tokenizer, config: EvaluationConfig
) -> dict[str, Any]:
    """Returns ``latency_ms`` (p50, p95), ``tokens_per_second`` and ``memory_bytes``.

    Text to text: a sentence at a time for the latency, and all of them batched for the throughput, of output
    tokens, with the run's own decoding. Language model: greedy decoding of 32 tokens behind a prompt; the
    latency is that of one token. The first ``latency_inputs`` inputs of the split, after a warm-up.
    """
    device = model.embedding.weight.device
    model.eval()
    count = min(config.latency_inputs, len(split))
    times: list[float] = []
    if isinstance(split, Pairs):

        def decode(first: int, last: int) -> list[str]:
            offsets = split.source.offsets[first : last + 1]
            return decode_sources(model, Ragged(split.source.values, offsets), tokenizer, config, seed=0)

        decode(0, 1)
        for row in range(count):
            times.append(_timed(lambda row=row: decode(row, row + 1), device)[1])
        outputs, seconds = _timed(lambda: decode(0, count), device)
        tokens = sum(len(ids) + 1 for ids in tokenizer.encode(outputs))
    else:
        greedy = make_picker(EvaluationConfig(method="greedy"), 0, device)
        length = max(1, min(len(split), model.architecture.context) // 2)
        starts = np.linspace(0, max(0, len(split) - length - 1), min(count, 8)).astype(int)
        prompts = [split.tokens[start : start + length].astype(np.int64).tolist() for start in starts]

        def extend(prompt: list[int]) -> list[int]:
            return continue_text(model, prompt, _NEW_TOKENS, -1, greedy)

        extend(prompts[0])
        for prompt in prompts:
            times.append(_timed(lambda prompt=prompt: extend(prompt), device)[1] / _NEW_TOKENS)
        tokens, seconds = _NEW_TOKENS * len(prompts), sum(times) * _NEW_TOKENS
    return {
        "latency_ms": {
            "p50": float(np.percentile(times, 50) * 1e3),
            "p95": float(np.percentile(times, 95) * 1e3),
        },
        "tokens_per_second": tokens / seconds,
        "memory_bytes": memory_bytes(model),
    }


def memory_bytes(model: Transformer) -> int:
    """Bytes of the weights in memory; a layer that keeps them in a form of its own says how many those are."""
    plain = sum(parameter.numel() * parameter.element_size() for parameter in model.parameters())
    return plain + sum(int(getattr(module, "memory_bytes", 0)) for module in model.modules())


def _timed(work: Any, device: torch.device) -> tuple[Any, float]:
    start = time.perf_counter()
    result = work()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return result, time.perf_counter() - start
