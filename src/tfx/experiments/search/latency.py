"""The latency of a config on this machine before it is trained: decoding with drawn weights, to a fixed length."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from statistics import median
from typing import TYPE_CHECKING

from tfx.config.schema import EvaluationConfig, Root
from tfx.experiments.search.size import Observation, corrections, first_architecture, stack_of

if TYPE_CHECKING:
    from tfx.model.architecture import Architecture
    from tfx.model.transformer import Transformer
    from tfx.tasks.prepare import PreparedData

# The shortest output that decoding can be held to (`output_limit`), and the ratio that does so.
_SHORT, _SHORT_RATIO = 10, 1e-6


def untrained_latency_ms(
    config: Root, data: PreparedData, origin: Architecture | None = None, threads: int = 1
) -> float:
    """`held_latency_ms` of a model with drawn weights, on the config's own device."""
    import torch

    from tfx.model.device import choose_device
    from tfx.model.transformer import Transformer, initialise

    torch.set_num_threads(config.trainer.threads or threads)
    model = Transformer(first_architecture(config, data.tokenizer, data.outputs, origin))
    initialise(model, config.seed)
    model.eval().to(choose_device(config.trainer.device))
    return held_latency_ms(model, config.evaluation, data)


def held_latency_ms(model: Transformer, evaluation: EvaluationConfig, data: PreparedData) -> float:
    """Milliseconds for one input whose output is as long as its target: the median over the inputs that the result of
    a run will be timed on.

    How long decoding takes depends on the lengths and on no weight. Outputs of drawn weights have any length: so each
    input is decoded to ten tokens and to about ten more than its target, and no output ends before. The time for as
    many tokens as its target has lies on the line through both. A language model is timed as in its result.
    """
    from tfx.model.decoding.rules import output_limit
    from tfx.tasks.contract import timed
    from tfx.tasks.seq2seq import Pairs

    split, tokenizer = data.splits["valid"], data.tokenizer
    lengths: tuple[float, ...] = (1.0,)
    shared = evaluation
    if isinstance(split, Pairs):
        shared = replace(shared, min_length=model.architecture.context)
        # So that most targets are no longer than what is decoded.
        longer = max(1.0, float(split.target.lengths.sum() / max(1, split.source.lengths.sum())))
        lengths = (_SHORT_RATIO, longer)
    settings = [replace(shared, max_length_ratio=ratio) for ratio in lengths]
    works = [split.timed_work(model, tokenizer, one) for one in settings]
    times = []
    for work in works:
        work.one(0)
    for place in range(works[0].count):
        took = [timed(partial(work.one, place), work.device)[1] / work.units for work in works]
        if isinstance(split, Pairs):
            more = output_limit(int(split.source.lengths[place]), settings[1], model.architecture.context) - _SHORT
            a_token = (took[1] - took[0]) / max(1, more)
            found = took[0] + a_token * (int(split.target.lengths[place]) + 1 - _SHORT)
            # Noise must not make a short target free.
            times.append(max(found, took[0] / _SHORT))
        else:
            times.append(took[0])
    return 1e3 * median(times)


class LatencyModel:
    """Predicts latencies, with corrections from the trials so far, which are timed while others run beside them."""

    def __init__(self, origin: Architecture | None = None, threads: int = 1) -> None:
        """``threads`` are those of a trial on a CPU."""
        self._origin, self._threads = origin, threads
        self._factors: Mapping[str, float] = {}
        self._known: dict[tuple[object, ...], float] = {}

    def learn(self, seen: Sequence[Observation]) -> None:
        """Corrects from these trials, all that there are."""
        self._factors = corrections(seen)

    def untrained(self, config: Root, data: PreparedData) -> float:
        """`untrained_latency_ms`, each once."""
        key = (repr(config.model), repr(config.evaluation), data.tokenizer.fingerprint)
        if key not in self._known:
            self._known[key] = untrained_latency_ms(config, data, self._origin, self._threads)
        return self._known[key]

    def predict(self, config: Root, data: PreparedData) -> float:
        """Milliseconds for one input."""
        return self.untrained(config, data) * self._factors.get(stack_of(config), 1.0)
