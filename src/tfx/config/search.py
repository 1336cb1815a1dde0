"""What `tfx search` is asked for, beside the config that its trials share: a goal, a budget, and how it spends it."""

from __future__ import annotations

from dataclasses import dataclass

from tfx.config.schema import group, setting


@dataclass
class SearchBudget:
    """How much is spent: exactly one counts."""

    seconds: float | None = setting(None, "time of the whole search", above=0, unit="s")
    hours: float | None = setting(None, "time of the whole search", above=0, unit="hours")
    trials: int | None = setting(None, "trainings, of any length", minimum=1, maximum=1000000)


@dataclass
class SearchConfig:
    """What `tfx search` looks for."""

    max_bytes: int | None = setting(
        None, "largest file: weights, header and tokenizer together", minimum=1, unit="bytes"
    )
    max_latency_ms: float | None = setting(
        None, "longest median time for one input, decoded alone on this machine", above=0, unit="ms"
    )
    min_quality: float | None = setting(None, "worst quality on validation data", unit="units of the metric")
    objective: str | None = setting(
        None, "what is made best: a metric of the validation data, bytes, or latency; null: the primary metric"
    )
    budget: SearchBudget = group(SearchBudget)
    spread: float = setting(
        1.0,
        "files of up to this many times max_bytes, and down to that part of it, are tried too, for the front",
        minimum=1,
        maximum=1000,
    )
    candidates: int = setting(9, "configs that a round begins with", minimum=1, maximum=1000)
    rungs: int = setting(
        3,
        "lengths of training: the last is the whole budget of a run",
        minimum=1,
        maximum=6,
        paper="successive halving, Jamieson 2016, arXiv 1502.07943; Li 2018, arXiv 1603.06560",
    )
    keep: int = setting(3, "one config in `keep` goes on, and trains `keep` times as long", minimum=2)
    seeds: int = setting(3, "most seeds of the leading configs, where they are close", minimum=1, maximum=100)
    final: bool = setting(False, "train the winner at the end, with seeds of its own, and score it on test data")
    final_seeds: int = setting(3, "runs of the winner with final=true", minimum=1, maximum=1000)
    dense: bool = setting(
        True,
        "with final=true and max_bytes: also train a narrower dense model of the same size in 8 bits, as often and as "
        "long, for comparison",
    )
