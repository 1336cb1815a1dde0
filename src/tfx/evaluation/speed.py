"""How fast a model runs here: latency of single inputs, throughput of many, memory of its weights."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from tfx.config.schema import EvaluationConfig
from tfx.data.prepare import Pairs, Ragged, Stream
from tfx.data.tokenizer import Tokenizer
from tfx.evaluation.generation import decode_sources
from tfx.model.decoding import continue_text, make_picker
from tfx.model.transformer import Transformer
from tfx.record.summary import Speed

_NEW_TOKENS = 32


@dataclass(frozen=True)
class Candidate:
    """A model whose speed is asked for, with the split that its inputs are from, in its own tokens."""

    model: Transformer
    split: Pairs | Stream
    tokenizer: Tokenizer


def measure_speed(candidates: Mapping[str, Candidate], config: EvaluationConfig) -> dict[str, Speed]:
    """Times the candidates, each by its name.

    Text to text: a sentence at a time for the latency, and all of them batched for the throughput, of output
    tokens, with the run's own decoding. Language model: greedy decoding of 32 tokens behind a prompt; the
    latency is that of one token. The first ``latency_inputs`` inputs of the split, after a warm-up. The candidates take
    turns input by input, so that whatever else the machine does meets them all alike.
    """
    works = {name: _work(candidate, config) for name, candidate in candidates.items()}
    for work in works.values():
        work.one(0)
    times: dict[str, list[float]] = {name: [] for name in works}
    for place in range(max(work.count for work in works.values())):
        order = list(works)
        # Whoever comes behind another finds its caches: nobody does so always.
        for name in order[place % len(order) :] + order[: place % len(order)]:
            work = works[name]
            if place < work.count:
                times[name].append(_timed(lambda work=work, place=place: work.one(place), work.device)[1] / work.units)
    measured = {}
    for name, work in works.items():
        tokens, seconds = work.throughput(times[name])
        latency_ms = {f"p{part}": float(np.percentile(times[name], part) * 1e3) for part in (50, 95)}
        measured[name] = Speed(latency_ms, tokens / seconds, weight_bytes(candidates[name].model))
    return measured


@dataclass(frozen=True)
class _Work:
    """What is timed of one model: ``one(i)`` decodes the i-th of ``count`` inputs, which is so many ``units``."""

    one: Callable[[int], Any]
    count: int
    units: int
    device: torch.device
    throughput: Callable[[list[float]], tuple[int, float]]


def _work(candidate: Candidate, config: EvaluationConfig) -> _Work:
    model, split, tokenizer = candidate.model, candidate.split, candidate.tokenizer
    device = model.embedding.weight.device
    model.eval()
    if isinstance(split, Pairs):
        pairs, count = split, min(config.latency_inputs, len(split))

        def decode(first: int, last: int) -> list[str]:
            offsets = pairs.source.offsets[first : last + 1]
            return decode_sources(model, Ragged(pairs.source.values, offsets), tokenizer, config, seed=0)

        def batched(times: list[float]) -> tuple[int, float]:
            outputs, seconds = _timed(lambda: decode(0, count), device)
            return sum(len(ids) + 1 for ids in tokenizer.encode(outputs)), seconds

        return _Work(lambda place: decode(place, place + 1), count, 1, device, batched)
    greedy = make_picker(EvaluationConfig(method="greedy"), 0, device)
    length = max(1, min(len(split), model.architecture.context) // 2)
    most = max(1, min(config.latency_inputs, len(split) - length))
    starts = np.linspace(0, max(0, len(split) - length - 1), most).astype(int)
    prompts = [split.tokens[start : start + length].astype(np.int64).tolist() for start in starts]

    def extend(place: int) -> list[int]:
        return continue_text(model, prompts[place], _NEW_TOKENS, -1, greedy)

    def one_by_one(times: list[float]) -> tuple[int, float]:
        return _NEW_TOKENS * len(times), sum(times) * _NEW_TOKENS

    return _Work(extend, len(prompts), _NEW_TOKENS, device, one_by_one)


def weight_bytes(model: Transformer) -> int:
    """Bytes of the weights in memory; a layer that keeps them in a form of its own says how many those are."""
    plain = sum(parameter.numel() * parameter.element_size() for parameter in model.parameters())
    return plain + sum(int(getattr(module, "memory_bytes", 0)) for module in model.modules())


def _timed(work: Any, device: torch.device) -> tuple[Any, float]:
    start = time.perf_counter()
    result = work()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return result, time.perf_counter() - start
