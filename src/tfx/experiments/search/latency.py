"""The latency of a config on this machine before it is trained: decoding with drawn weights, to a fixed length."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from statistics import median
from typing import TYPE_CHECKING

from tfx.config.schema import Root
from tfx.experiments.search.size import Observation, corrections, stack_of

if TYPE_CHECKING:
    from tfx.model.architecture import Architecture
    from tfx.model.transformer import Transformer
    from tfx.tasks.prepare import PreparedData

_INPUTS = 12
# The shortest output that decoding can be held to (`output_limit`), and the ratio that does so.
_SHORT, _SHORT_RATIO = 10, 1e-6


def untrained_latency_ms(config: Root, data: PreparedData, origin: Architecture | None = None) -> float:
    """Milliseconds for one input, the median over validation inputs, by the config's own decoding.

    How long decoding takes depends on the lengths and on no weight. Outputs of drawn weights have any length: so each
    input is decoded to ten tokens and to ten more than its own, no output ends before, and the time for as many tokens
    as its target has lies on the line through both. A language model is timed as in its result.
    """
    import torch

    from tfx.model.architecture import Architecture
    from tfx.model.transformer import Transformer, initialise
    from tfx.tasks.contract import timed
    from tfx.tasks.seq2seq import Pairs

    model = Transformer(origin or Architecture.from_config(config.model, data.tokenizer.vocab_size))
    initialise(model, config.seed)
    model.eval()
    split, tokenizer = data.splits["valid"], data.tokenizer
    lengths: tuple[float, ...] = (1.0,)
    if isinstance(split, Pairs):
        _never_ends(model, tokenizer.eos)
        lengths = (_SHORT_RATIO, 1.0)
    settings = [replace(config.evaluation, latency_inputs=_INPUTS, max_length_ratio=ratio) for ratio in lengths]
    works = [split.timed_work(model, tokenizer, one) for one in settings]
    device = torch.device("cpu")
    times = []
    for work in works:
        work.one(0)
    for place in range(min(_INPUTS, works[0].count)):
        took = [timed(partial(work.one, place), device)[1] / work.units for work in works]
        if isinstance(split, Pairs):
            a_token = (took[1] - took[0]) / max(1, int(split.source.lengths[place]))
            times.append(took[0] + a_token * (int(split.target.lengths[place]) + 1 - _SHORT))
        else:
            times.append(took[0])
    return 1e3 * median(times)


def _never_ends(model: Transformer, eos: int) -> None:
    """Makes the end token impossible."""
    import torch
    from torch import Tensor

    project = model.project

    def endless(hidden: Tensor) -> Tensor:
        logits = project(hidden)
        return logits.index_fill(-1, torch.tensor([eos], device=logits.device), -torch.inf)

    model.project = endless  # type: ignore[method-assign]


class LatencyModel:
    """Predicts latencies, with corrections from the trials so far, which are timed while others run beside them."""

    def __init__(self, origin: Architecture | None = None) -> None:
        self._origin = origin
        self._factors: Mapping[str, float] = {}
        self._known: dict[tuple[object, ...], float] = {}

    def learn(self, seen: Sequence[Observation]) -> None:
        """Corrects from these trials, all that there are."""
        self._factors = corrections(seen)

    def untrained(self, config: Root, data: PreparedData) -> float:
        """`untrained_latency_ms`, each once."""
        key = (repr(config.model), repr(config.evaluation), data.tokenizer.fingerprint)
        if key not in self._known:
            self._known[key] = untrained_latency_ms(config, data, self._origin)
        return self._known[key]

    def predict(self, config: Root, data: PreparedData) -> float:
        """Milliseconds for one input."""
        return self.untrained(config, data) * self._factors.get(stack_of(config), 1.0)
