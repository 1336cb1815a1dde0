"""How fast a model runs here: latency of single inputs, throughput of many, memory of its weights."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial

import numpy as np

from tfx.config.schema import EvaluationConfig
from tfx.data.tokenizer import Tokenizer
from tfx.model.transformer import Transformer
from tfx.record.summary import Speed
from tfx.tasks.contract import Split, timed


@dataclass(frozen=True)
class Candidate:
    """A model to time, with the split of its inputs in its own tokens."""

    model: Transformer
    split: Split
    tokenizer: Tokenizer


def measure_speed(candidates: Mapping[str, Candidate], config: EvaluationConfig) -> dict[str, Speed]:
    """Times the candidates, by name.

    Text to text: one sentence at a time for the latency, and all of them batched for the throughput in output tokens,
    with the run's own decoding. Language model: greedy decoding of 32 tokens after a prompt; the latency is per token.
    Uses the first ``latency_inputs`` inputs of the split, after a warm-up. The candidates take turns input by input,
    so that other load on the machine affects all of them alike.
    """
    works = {}
    for name, candidate in candidates.items():
        candidate.model.eval()
        works[name] = candidate.split.timed_work(candidate.model, candidate.tokenizer, config)
    for work in works.values():
        work.one(0)
    times: dict[str, list[float]] = {name: [] for name in works}
    for place in range(max(work.count for work in works.values())):
        order = list(works)
        # The second to run finds warm caches, so the order changes.
        for name in order[place % len(order) :] + order[: place % len(order)]:
            work = works[name]
            if place < work.count:
                times[name].append(timed(partial(work.one, place), work.device)[1] / work.units)
    measured = {}
    for name, work in works.items():
        tokens, seconds = work.throughput(times[name])
        latency_ms = {f"p{part}": float(np.percentile(times[name], part) * 1e3) for part in (50, 95)}
        measured[name] = Speed(latency_ms, tokens / seconds, weight_bytes(candidates[name].model))
    return measured


def weight_bytes(model: Transformer) -> int:
    """Bytes of the weights in memory; a layer with its own format reports its bytes."""
    plain = sum(parameter.numel() * parameter.element_size() for parameter in model.parameters())
    return plain + sum(int(getattr(module, "memory_bytes", 0)) for module in model.modules())
