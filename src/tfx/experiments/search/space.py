"""The space of a search: which configs there are, and the overrides of `tfx train` that name one."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from tfx.config.compose import compose
from tfx.config.grammar import parse
from tfx.config.schema import Root
from tfx.errors import UserError
from tfx.experiments.search.axes import Axis
from tfx.experiments.search.goal import Goal

WIDTH, FFN, FFN_FACTOR = "model.width", "model.ffn_width", "ffn_factor"
VOCABULARY, SPARSITY, RATE = (
    "dataset.tokenizer.vocab_size",
    "technique.prune.sparsity",
    "technique.quantize.rate",
)
# The bytes that the file of a config is to have; its width is chosen for that.
SIZE = "file_bytes"

Values = Mapping[str, Any]

_SMALLEST_BPE = 300  # the 256 bytes, the special tokens, and a few merges
_WIDEST = 4  # times the model's own width
_SIZES = 2  # sizes of files on either side of the limit
_PER_TOKEN = ("loss", "perplexity")
# Trials of a search know no test data: its choices look at validation data only.
NO_TEST = "dataset.splits.test=[]"


@dataclass(frozen=True)
class Space:
    """``axes`` by key; ``base`` are the words that all configs share; ``techniques`` their stack."""

    base: tuple[str, ...]
    techniques: tuple[str, ...]
    axes: Mapping[str, Axis]
    # Without sparsity there is no pruning: then the technique leaves the stack.
    may_prune: bool = False
    # Tells composing where the user's own configs are.
    place: tuple[str, ...] = ()

    def words(self, values: Values) -> list[str]:
        """The overrides of `tfx train` for the config at ``values``."""
        techniques, words = list(self.techniques), []
        for key, value in values.items():
            if key == FFN_FACTOR:
                words.append(f"{FFN}={round(value * values[WIDTH])}")
            elif key == SPARSITY and self.may_prune:
                if value > 0:
                    techniques.append("prune")
                    words.append(f"{key}={value}")
            elif key != SIZE:
                words.append(f"{key}={value:.6g}" if isinstance(value, float) else f"{key}={value}")
        return [*self.base, f"technique=[{','.join(sorted(techniques))}]", *words]

    def config(self, values: Values) -> Root:
        """The config at ``values``. Raises `UserError` if its settings do not fit together."""
        return self.compose(self.words(values))

    def compose(self, words: Sequence[str]) -> Root:
        """The config of overrides of `tfx train`."""
        return compose([*words, *self.place])

    def unit(self, config: Root) -> int:
        """Widths are multiples of this: heads of an even width, and whole groups of weights that share a scale."""
        model = config.model
        unit = model.heads * (2 if model.positions == "rotary" or model.heads % 2 else 1)
        quantize = config.technique.get("quantize")
        if quantize and quantize["rate"] is None and quantize["granularity"] in (None, "group"):
            unit = math.lcm(unit, int(quantize["group"]))
        return unit

    def widths(self, config: Root) -> list[int]:
        """The widths on the axis that the config can have; its own where the width is no axis."""
        axis, unit = self.axes.get(WIDTH), self.unit(config)
        if axis is None:
            return [config.model.width]
        if axis.choices:
            return sorted(width for width in axis.choices if width % unit == 0)
        return [width for width in range(unit, int(axis.high) + 1, unit) if width >= axis.low]

    def at_width(self, values: Values, width: int) -> dict[str, Any]:
        """The values with another width."""
        return dict(values) | {WIDTH: width}


def make_space(typed: Sequence[str], named: Mapping[str, Axis], config: Root, goal: Goal) -> Space:
    """The axes of a search around ``config``, which the words ``typed`` compose.

    What ``typed`` sets is no axis, and an axis that is ``named`` has the range that it names. If files around the
    limit are of interest too, their size is an axis. Raises `UserError`.
    """
    fixed = {parse(word)[0] for word in typed if "=" in word}
    is_new = config.init_from is None
    stack, may_prune = _stack(config, fixed)
    distill = config.technique.get("distill")
    if distill is not None and distill["teacher"] is None and is_new:
        raise UserError(
            "every config of the search would train a teacher of its own: train one first, and name it with "
            "technique.distill.teacher=RUN"
        )
    own = _of_model(config) if is_new else []
    own += _of_technique(config, stack, may_prune, fixed)
    # Losses per token of two vocabularies cannot be compared.
    if is_new and distill is None and config.dataset.tokenizer.path is None and goal.metric not in _PER_TOKEN:
        own += _of_vocabulary(config)
    axes = {axis.key: axis for axis in own if axis.key not in fixed}
    if FFN in fixed or FFN in named:
        axes.pop(FFN_FACTOR, None)
    axes |= named
    if goal.max_bytes is not None and goal.spread > 1:
        factors = (goal.spread ** (step / _SIZES) for step in range(-_SIZES, _SIZES + 1))
        axes[SIZE] = Axis(SIZE, choices=tuple(round(goal.max_bytes * factor) for factor in factors))
    base = [word for word in typed if word.lstrip("+").partition("=")[0] not in ("technique", "dry_run")]
    if distill is not None and is_new and config.dataset.tokenizer.path is None:
        base.append(f"dataset.tokenizer.path={distill['teacher']}/tokenizer.json")
    return Space(tuple(base), stack, axes, may_prune)


def _stack(config: Root, fixed: set[str]) -> tuple[tuple[str, ...], bool]:
    """The techniques of all configs, and whether pruning may come to them: the user's own, else quantization."""
    if "technique" in fixed:
        return tuple(config.technique), False
    if any(key.startswith("technique.prune.") for key in fixed):
        return ("prune", "quantize"), False
    return ("quantize",), True


def _of_model(config: Root) -> list[Axis]:
    model = config.model
    axes = [
        Axis(WIDTH, 8, _WIDEST * model.width, whole=True, step=1),
        Axis(FFN_FACTOR, choices=(1, 2, 3, 4)),
        Axis("model.heads", choices=(2, 4, 8)),
        Axis("model.dropout", 0.0, 0.3),
        Axis("optimizer.weight_decay", 0.03, 1.0, log=True),
    ]
    for key, layers in (("encoder", model.encoder_layers), ("decoder", model.decoder_layers)):
        if layers:
            axes.append(Axis(f"model.{key}_layers", 1, max(6, layers), whole=True))
    return axes


def _of_technique(config: Root, stack: Sequence[str], may_prune: bool, fixed: set[str]) -> list[Axis]:
    axes = []
    if "quantize" in stack and not fixed & {"technique.quantize.bits", "technique.quantize.granularity"}:
        axes.append(Axis(RATE, 1.25, 4.0, log=True))
    if may_prune:
        axes.append(Axis(SPARSITY, choices=(0.0, 0.3, 0.5, 0.7)))
    elif "prune" in stack:
        axes.append(Axis(SPARSITY, 0.1, 0.8))
    return axes


def _of_vocabulary(config: Root) -> list[Axis]:
    tokenizer = config.dataset.tokenizer
    if tokenizer.kind != "bpe":
        return []
    sizes = {max(_SMALLEST_BPE, round(tokenizer.vocab_size * factor)) for factor in (0.125, 0.25, 0.5, 1, 2)}
    return [Axis(VOCABULARY, choices=tuple(sorted(sizes)))]
