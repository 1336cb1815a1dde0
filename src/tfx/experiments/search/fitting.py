"""Which configs of a space keep the limits, known before any of them is trained."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tfx.config.schema import Root
from tfx.errors import UserError
from tfx.experiments.search.axes import FFN_FACTOR, Axis
from tfx.experiments.search.goal import Goal
from tfx.experiments.search.latency import LatencyModel
from tfx.experiments.search.size import Observation, SizeModel, at_width, stack_of
from tfx.experiments.search.space import RATE, SIZE, SPARSITY, WIDTH, Space
from tfx.terminal.console import size

if TYPE_CHECKING:
    from tfx.model.architecture import Architecture
    from tfx.tasks.prepare import PreparedData

# What a file has of the bytes that it is made for (`tfx.techniques.quantize.allocation`).
_FILLED = 0.998
# A file that may have less than this share of about its most bytes fills them; others are written to know.
_SURE = 0.8

# The rates that are looked at for a width.
_RATES = 8


@dataclass(frozen=True)
class Prediction:
    """What is known of a config before its training: bytes of the file, and milliseconds for one input.

    ``planned`` are the bytes at the rate of its axis, where the file is made to have others. None: there is no limit on
    it. Both are with corrections, and ``untrained_*`` as measured with drawn weights.
    """

    bytes: int
    planned: int
    untrained_weights: int
    stack: str
    latency_ms: float | None = None
    untrained_latency_ms: float | None = None


class Fitter:
    """Chooses widths so that files are as large as they may be, and turns down what breaks a limit."""

    def __init__(self, space: Space, goal: Goal, config: Root, threads: int = 1) -> None:
        """``config`` is that of the command, without values on the axes; its model is read, if it has ``init_from``.

        ``threads`` are those of a trial on a CPU.
        """
        self.space, self.goal = space, goal
        self._heads = config.model.heads
        self._configs: dict[str, Root] = {}
        self._data: dict[str, PreparedData] = {}
        self._origin: tuple[Architecture, Any] | None = None
        if config.init_from is not None:
            from tfx.compression import checkpoint
            from tfx.exchange.importing import local_file

            loaded = checkpoint.load(local_file(Path(config.init_from)), kernels=False)
            self._origin = (loaded.model.architecture, loaded.tokenizer)
        architecture = self._origin[0] if self._origin else None
        self.sizes, self.latencies = SizeModel(architecture), LatencyModel(architecture, threads)
        # Why the last config was turned down, by its settings and not by a limit.
        self.refusal: UserError | None = None

    @property
    def fills(self) -> bool:
        """Whether the width is chosen by the size of the file, and is no axis of the sampler."""
        return WIDTH in self.space.axes and self.goal.max_bytes is not None and self.goal.is_of_quality

    @property
    def _sizes(self) -> tuple[int, ...]:
        return self.space.axes[SIZE].choices if SIZE in self.space.axes else ()

    def sampled_axes(self) -> dict[str, Any]:
        """The axes that the sampler draws from."""
        return {key: axis for key, axis in self.space.axes.items() if not (self.fills and key == WIDTH)}

    def learn(self, sizes: list[Observation], latencies: list[Observation]) -> None:
        """Corrects predictions from all trials that have ended."""
        self.sizes.learn(sizes)
        self.latencies.learn(latencies)

    def accept(self, values: Mapping[str, Any]) -> dict[str, Any] | None:
        """The values with their width, or None for a config that breaks a limit or whose settings do not fit."""
        try:
            whole = self._with_width(values)
            if whole is None or not self._has_room(whole):
                return None
            found = self.predict(whole)
        except UserError as error:
            self.refusal = error
            return None
        # With the rate of the axis, not with the one that a limit of bytes makes of it.
        too_large = found.planned > self._limit(whole)
        too_slow = found.latency_ms is not None and found.latency_ms > (self.goal.max_latency_ms or math.inf)
        # Of sizes that it cannot fill, one is enough.
        smaller = max((limit for limit in self._sizes if limit < whole.get(SIZE, 0)), default=0)
        return None if too_large or too_slow or found.bytes < smaller * _FILLED else whole

    def own(self, config: Root) -> dict[str, Any] | None:
        """The values of ``config`` itself, as near as the axes have them; None if it breaks a limit.

        Where the width is chosen by the size, the rate is the one at which it comes nearest to the config's.
        """
        values = {key: _nearest(axis, _own_value(config, key)) for key, axis in self.sampled_axes().items()}
        if SIZE not in values:
            return self._nearest_width(values, config)
        # The limit itself, or the largest size below that it can fill.
        limits = sorted((limit for limit in self._sizes if limit <= (self.goal.max_bytes or 0)), reverse=True)
        found = (self._nearest_width(values | {SIZE: limit}, config) for limit in limits)
        return next((whole for whole in found if whole is not None), None)

    def _nearest_width(self, values: dict[str, Any], config: Root) -> dict[str, Any] | None:
        axis = self.space.axes.get(RATE)
        if axis is None or not self.fills:
            return self.accept(values)
        rates = axis.choices or [axis.low * (axis.high / axis.low) ** (step / _RATES) for step in range(_RATES + 1)]
        found = [whole for rate in rates if (whole := self.accept(values | {RATE: float(f"{rate:.4g}")})) is not None]
        return min(found, key=lambda whole: abs(whole[WIDTH] - config.model.width), default=None)

    def _limit(self, values: Mapping[str, Any]) -> float:
        """The most bytes that the file of these values may have, less the margin for wrong predictions."""
        wanted = values.get(SIZE, math.inf if self.goal.max_bytes is None else self.goal.max_bytes)
        return min(float(wanted), self.goal.largest_of_interest) * (1 - self._margin)

    def _has_room(self, values: Mapping[str, Any]) -> bool:
        """Whether the weights that pruning leaves can have the rate; a file that is made to have a size needs none."""
        from tfx.techniques.quantize.settings import highest_rate

        technique = self.config(values).technique
        quantize, prune = technique.get("quantize"), technique.get("prune")
        if self.space.max_bytes is not None or quantize is None or prune is None:
            return True
        return (quantize["rate"] or 0.0) <= highest_rate(quantize["bits"] or 8, prune["sparsity"])

    @property
    def _margin(self) -> float:
        """The share of a limit that stays free; none where the file is made to keep it."""
        return self.sizes.margin if self.space.max_bytes is None else 0.0

    def _with_width(self, values: Mapping[str, Any]) -> dict[str, Any] | None:
        if WIDTH not in self.space.axes:
            self.config(values)
            return dict(values)
        config = self.config(values)
        widths = self.space.widths(config)
        if not widths:
            return None
        if self.fills:
            data = self.data(config)
            width = self.sizes.widest(config, data, widths, values.get(FFN_FACTOR), self._limit(values))
        else:
            width = min(widths, key=lambda one: abs(one - values[WIDTH]))
        return None if width is None else dict(values) | {WIDTH: width}

    def config(self, values: Mapping[str, Any]) -> Root:
        """The config at values, composed once for all widths; without a width it has one that is valid for its heads.

        Raises `UserError` if its settings do not fit together.
        """
        rest = {key: value for key, value in values.items() if key != WIDTH}
        key = repr(sorted(rest.items()))
        if WIDTH not in self.space.axes:
            if key not in self._configs:
                self._configs[key] = self.space.config(values)
            return self._configs[key]
        if key not in self._configs:
            heads = int(values.get("model.heads", self._heads))
            self._configs[key] = self.space.config(rest | {WIDTH: math.lcm(64, 2 * heads)})
        found = self._configs[key]
        return at_width(found, values[WIDTH], values.get(FFN_FACTOR)) if WIDTH in values else found

    def predict(self, values: Mapping[str, Any]) -> Prediction:
        """What is known of a config before its training. Latency is measured where the goal is about it."""
        config = self.config(values)
        data = self.data(config)
        bytes_ = self.sizes.untrained(config, data)
        latency = untrained = None
        if self.goal.is_of_time:
            latency, untrained = self.latencies.predict(config, data), self.latencies.untrained(config, data)
        planned = self.sizes.predict(config, data)
        made = self.space.file_bytes(values)
        whole = planned if made is None else self._filled(config, made, planned, bytes_.weights, data)
        return Prediction(whole, planned, bytes_.weights, stack_of(config), latency, untrained)

    def _filled(self, config: Root, made: int, planned: int, weights: int, data: PreparedData) -> int:
        """The bytes of a file that is made to have ``made``: at the highest rate there may be fewer to fill it with.

        At the rate of ``config`` it has ``planned`` bytes, of which ``weights`` are nearly in proportion to the rate.
        """
        from tfx.techniques.quantize.settings import highest_rate

        filled, quantize = round(made * _FILLED), config.technique["quantize"]
        prune, bits = config.technique.get("prune"), quantize["bits"] or 8
        # What all weights have room for if all are pruned; embeddings are not, so the file may still be larger.
        sure = highest_rate(bits, prune["sparsity"] if prune else 0.0)
        if made < _SURE * (planned + weights * (sure / quantize["rate"] - 1)):
            return filled
        most = quantize | {"rate": highest_rate(bits)}
        return min(filled, self.sizes.predict(replace(config, technique=config.technique | {"quantize": most}), data))

    def data(self, config: Root) -> PreparedData:
        """The data of a config, each once: it differs where the tokenizer does."""
        from tfx.tasks.prepare import prepare_data

        key = repr((config.dataset, config.model.context))
        if key not in self._data:
            if self._origin is None:
                self._data[key] = prepare_data(config.dataset, config.model.context)
            else:
                architecture, tokenizer = self._origin
                outputs = architecture.outputs
                self._data[key] = prepare_data(config.dataset, architecture.context, tokenizer, outputs=outputs)
        return self._data[key]

    # --- what can be had at all -------------------------------------------------------------------------

    def check(self) -> None:
        """Raises `UserError`, with the nearest that can be had, where the smallest config breaks a limit."""
        smallest, found = self._smallest()
        goal = self.goal
        what = " ".join(f"{key}={value}" for key, value in smallest.items())
        if goal.max_bytes is not None and found.planned > self._limit(smallest) / (1 - self._margin):
            raise UserError(
                f"max_bytes={goal.max_bytes} cannot be reached: the smallest file of this space has about "
                f"{found.planned:,} bytes ({size(found.planned)}; {what}); allow more, or widen an axis"
            )
        if found.latency_ms is not None and found.latency_ms > (goal.max_latency_ms or math.inf):
            raise UserError(
                f"max_latency_ms={goal.max_latency_ms:g} cannot be reached on this machine: the smallest model of this "
                f"space takes about {found.latency_ms:.3g} ms for one input ({what}); allow more, or widen an axis"
            )

    def _smallest(self) -> tuple[dict[str, Any], Prediction]:
        """The least of each axis, most zeros, and the narrowest width: about the smallest file that there is.

        Where these settings do not fit together, another choice on one axis. Raises `UserError`, with what is wrong
        with the first, where none do.
        """
        least = {key: _least(axis) for key, axis in self.space.axes.items() if key not in (WIDTH, SIZE)}
        others = (least | {key: choice} for key in least for choice in self.space.axes[key].choices)
        refusals = []
        for values in (least, *others):
            try:
                whole = self._narrowest(values)
                return whole, self.predict(whole)
            except UserError as error:
                refusals.append(error)
        raise refusals[0]

    def _narrowest(self, values: dict[str, Any]) -> dict[str, Any]:
        """The values with the least width of its axis. Raises `UserError` if that has none that fits."""
        if WIDTH not in self.space.axes:
            return values
        config = self.config(values)
        widths = self.space.widths(config)
        if not widths:
            raise UserError(
                f"{WIDTH}: no width of its axis ({self.space.axes[WIDTH].describe()}) is a multiple of "
                f"{self.space.unit(config)}, which heads, positions and groups ask for: widen it"
            )
        return values | {WIDTH: widths[0]}


def _least(axis: Axis) -> Any:
    """The value on an axis that makes the smallest file."""
    end, of_range = (max, axis.high) if axis.key == SPARSITY else (min, axis.low)
    numbers = [choice for choice in axis.choices if isinstance(choice, int | float)]
    found = end(numbers) if numbers else axis.choices[0] if axis.choices else of_range
    return int(found) if axis.whole else found


def _own_value(config: Root, key: str) -> Any:
    """What a config has at the key of an axis; None if that is the search's to say."""
    if key == FFN_FACTOR:
        return config.model.ffn_width / config.model.width
    found: Any = config
    for part in key.split("."):
        found = found.get(part) if isinstance(found, Mapping) else getattr(found, part, None)
    return found


def _nearest(axis: Axis, value: Any) -> Any:
    """The value on an axis that is nearest; without one its first choice, or the middle of its range."""
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    if axis.choices:
        if not is_number or value in axis.choices:
            return value if value in axis.choices else axis.choices[0]
        numbers = [choice for choice in axis.choices if isinstance(choice, int | float)]
        return min(numbers, key=lambda choice: abs(choice - value), default=axis.choices[0])
    held = min(axis.high, max(axis.low, value)) if is_number else math.sqrt(axis.low * axis.high)
    return int(axis.low + round((held - axis.low) / axis.step) * axis.step) if axis.whole else float(f"{held:.4g}")
