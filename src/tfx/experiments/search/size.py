"""The bytes of a config's file before it is trained, and the width whose file has as many as are wanted.

The file is written: of a model with drawn weights, by the stack and the codecs of the config, to memory that is not
kept. So header, tokenizer and side information are what they will be, and what a rate or a sparsity costs is what the
codec makes of it. Drawn weights differ from trained ones in the shape of their histogram alone. What that is worth is
learned from the trials that have ended.
"""

from __future__ import annotations

import math
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING

import numpy as np

from tfx.config.schema import ModelConfig, Root
from tfx.record.seeds import derive_seed

if TYPE_CHECKING:
    from tfx.compression.checkpoint import FileBytes
    from tfx.data.tokenizer import Tokenizer
    from tfx.model.architecture import Architecture, Outputs
    from tfx.model.transformer import Transformer
    from tfx.tasks.prepare import PreparedData

# How far the vectors of a trained model lie from the values that they begin with.
_VECTOR_SPREAD = 0.05
# Trials until a correction counts in full.
_TRUSTED = 2
# The share of a limit that stays free: at first, at least, and after how many trials it is what their errors say.
FIRST_MARGIN, _LEAST_MARGIN, _ENOUGH = 0.02, 0.002, 6
# The next width is looked at unless it is about this many times too large.
_WORTH_WRITING = 1.01


def untrained_bytes(
    config: Root, tokenizer: Tokenizer, outputs: Outputs | None = None, origin: Architecture | None = None
) -> FileBytes:
    """The bytes of the file of ``config`` with this tokenizer, written with drawn weights.

    ``outputs`` are those of a classifier. ``origin`` is the architecture of the model that training starts from, if it
    is not a new one.
    Structure that pruning removes is left out; tokens that it removes are not, for which they are is up to the data.
    """
    from tfx.compression import checkpoint
    from tfx.model.transformer import Transformer
    from tfx.techniques.calibration import Calibration
    from tfx.techniques.stack import Stack

    stack = Stack.from_config(_quickly(config))
    architecture = first_architecture(config, tokenizer, outputs, origin)
    for technique in stack.compressing:
        technique.see_tokenizer(tokenizer)
        if "rewire" in technique.hooks():
            architecture = technique.reduced(architecture)
    model = Transformer(architecture)
    _draw_weights(model, config.seed)
    for _ in stack.finish(model, Calibration(model, lambda count: [])):
        pass
    storage = stack.storage() if stack.compressing else None
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "untrained.safetensors"
        checkpoint.save(file, model, tokenizer, config.evaluation, storage)
        return checkpoint.read_header(file).bytes


def first_architecture(
    config: Root, tokenizer: Tokenizer, outputs: Outputs | None, origin: Architecture | None
) -> Architecture:
    """The architecture of a config's training before its first step: its own, or that of the model it starts from."""
    from tfx.model.architecture import Architecture, with_outputs

    if origin is None:
        return Architecture.from_config(config.model, tokenizer.vocab_size, outputs)
    return origin if origin.family == config.dataset.task else with_outputs(origin, config.model, outputs)


def _quickly(config: Root) -> Root:
    """The config with rounding in place of a trellis, whose codes take as many bits at a rate, and a minute to find."""
    quantize = config.technique.get("quantize")
    if quantize is None or quantize["method"] != "trellis":
        return config
    return replace(config, technique=config.technique | {"quantize": quantize | {"method": "nearest"}})


def _draw_weights(model: Transformer, seed: int) -> None:
    """Normal weights of the scale that they begin with, and vectors around the values that they begin with."""
    import torch

    generator = torch.Generator().manual_seed(derive_seed(seed, "size"))
    with torch.no_grad():
        for parameter in model.parameters():
            drawn = torch.randn(parameter.shape, generator=generator)
            if parameter.dim() < 2:
                parameter.add_(_VECTOR_SPREAD * drawn)
            else:
                parameter.copy_(drawn / math.sqrt(parameter.shape[1]))


def head_unit(model: ModelConfig) -> int:
    """Widths are multiples of this, for heads of a whole width, an even one where positions turn pairs."""
    return model.heads * (2 if model.positions == "rotary" or model.heads % 2 else 1)


def at_width(config: Root, width: int, ffn_factor: float | None) -> Root:
    """The config with another width; with ``ffn_factor`` the feed-forward width is that many times the width."""
    ffn = config.model.ffn_width if ffn_factor is None else round(ffn_factor * width)
    return replace(config, model=replace(config.model, width=width, ffn_width=ffn))


def stack_of(config: Root) -> str:
    """What decides how drawn weights differ from trained ones: the techniques of the stack, and whether by a rate."""
    quantize = config.technique.get("quantize")
    kind = [] if quantize is None else ["rate" if quantize["rate"] is not None else f"{quantize['bits']} bits"]
    # A teacher has no part in how weights are coded.
    return "+".join([*sorted(set(config.technique) - {"distill"}), *kind])


@dataclass(frozen=True)
class Observation:
    """One trial that has ended: its stack (`stack_of`), and what was predicted without corrections, and the truth."""

    stack: str
    predicted: float
    truth: float


def corrections(seen: Sequence[Observation]) -> dict[str, float]:
    """The factor on predictions for each stack: the median of truth to prediction, less of it after one trial."""
    ratios: dict[str, list[float]] = {}
    for one in seen:
        ratios.setdefault(one.stack, []).append(one.truth / one.predicted)
    return {
        stack: math.exp(math.log(median(found)) * min(1.0, len(found) / _TRUSTED)) for stack, found in ratios.items()
    }


class SizeModel:
    """Predicts the bytes of files, with corrections of the weights' part from the trials so far."""

    def __init__(self, origin: Architecture | None = None) -> None:
        """``origin`` is the architecture of the model that all trials start from, if they do."""
        self._origin = origin
        self._factors: dict[str, float] = {}
        self._known: dict[tuple[object, ...], FileBytes] = {}
        # The share of a limit that is left free, because a prediction may be wrong by as much.
        self.margin = FIRST_MARGIN

    def learn(self, seen: Sequence[Observation]) -> None:
        """Corrects from these trials, all that there are; what is left of their errors becomes the margin."""
        self._factors = corrections(seen)
        if len(seen) >= _ENOUGH:
            errors = [abs(one.truth / (one.predicted * self._factors[one.stack]) - 1) for one in seen]
            self.margin = min(FIRST_MARGIN, max(_LEAST_MARGIN, sorted(errors)[int(0.9 * (len(errors) - 1))]))

    @property
    def factors(self) -> Mapping[str, float]:
        """The correction of the weights' bytes for each stack."""
        return self._factors

    def untrained(self, config: Root, data: PreparedData) -> FileBytes:
        """`untrained_bytes`, each once."""
        key = (repr(config.model), repr(config.technique), data.tokenizer.fingerprint)
        if key not in self._known:
            self._known[key] = untrained_bytes(config, data.tokenizer, data.outputs, self._origin)
        return self._known[key]

    def predict(self, config: Root, data: PreparedData) -> int:
        """The bytes of the whole file."""
        found = self.untrained(config, data)
        return round(found.weights * self._factors.get(stack_of(config), 1.0)) + found.header + found.tokenizer

    def widest(
        self, config: Root, data: PreparedData, widths: Sequence[int], ffn_factor: float | None, limit: float
    ) -> int | None:
        """The largest of ``widths``, ascending, whose file has at most ``limit`` bytes; None if none has.

        With ``ffn_factor`` the feed-forward width is that many times the width. Bytes go with the number of weights, as
        good as: a file or two are written near the answer, and one of a narrow model.
        """
        from tfx.model.architecture import Architecture
        from tfx.model.transformer import count_parameters

        def at(place: int) -> Root:
            return at_width(config, widths[place], ffn_factor)

        def bytes_at(place: int) -> int:
            return self.predict(at(place), data)

        # The number of weights is a polynomial of the width, of degree 2.
        some = sorted({0, len(widths) // 2, len(widths) - 1})
        vocabulary = data.tokenizer.vocab_size
        counts = [
            count_parameters(Architecture.from_config(at(place).model, vocabulary, data.outputs)) for place in some
        ]
        polynomial = np.polyfit([widths[place] for place in some], counts, len(some) - 1)

        def weights_at(place: int) -> float:
            return float(np.polyval(polynomial, widths[place]))

        def about(place: int, known: int) -> float:
            """The bytes at a place, from those at another one: nearly in proportion to the weights."""
            return bytes_at(known) * weights_at(place) / weights_at(known)

        if bytes_at(0) > limit:  # a small file, quickly written
            return None
        place = _guess(about, len(widths), limit)
        while bytes_at(place) > limit:
            place -= 1
        # A file is written only where it may fit.
        while place < len(widths) - 1 and about(place + 1, place) <= limit * _WORTH_WRITING:
            if bytes_at(place + 1) > limit:
                break
            place += 1
        return widths[place]

    def fullest(self, config: Root, data: PreparedData, limit: float) -> int:
        """The largest feed-forward width, from the config's own on, whose file has at most ``limit`` bytes."""

        def bytes_at(ffn: int) -> int:
            return self.predict(replace(config, model=replace(config.model, ffn_width=ffn)), data)

        own = config.model.ffn_width
        first = bytes_at(own)
        a_unit = (bytes_at(2 * own) - first) / own
        ffn = own + max(0, int((limit - first) / a_unit))
        while ffn > own and bytes_at(ffn) > limit:
            ffn -= 1
        return ffn


def _guess(about: Callable[[int, int], float], count: int, limit: float) -> int:
    """The last place whose bytes are about the limit at most: judged from a narrow model, then from one near it."""
    place = min(count - 1, 3)
    for _ in range(2):
        low, high = 0, count - 1
        while low < high:
            middle = (low + high + 1) // 2
            low, high = (middle, high) if about(middle, place) <= limit else (low, middle - 1)
        if low == place:
            break
        place = low
    return place
