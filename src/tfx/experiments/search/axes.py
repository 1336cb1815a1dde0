"""The axes of a search: what a config may differ in, each with its range, and how the user narrows or fixes one."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from tfx.errors import UserError

# Axes of the search's own: no setting of `tfx train` could have their one value, which is an axis of one choice.
FFN_FACTOR = "ffn_factor"
# The rate of embeddings and output in that of the blocks; None: what their sensitivity is worth.
EMBEDDING_FACTOR = "embedding_rate_factor"
# Whether a config has the teacher that the command line names.
TEACHER = "teacher"
_OWN = (FFN_FACTOR, EMBEDDING_FACTOR, TEACHER)


@dataclass(frozen=True)
class Axis:
    """One axis: its key, and either ``choices``, or a range from ``low`` to ``high``, both included.

    ``whole``: integers, ``step`` apart. ``log``: its logarithm is what is even. ``key`` is a setting of `tfx train`, or
    a name of the search's own for what settings are made from.
    """

    key: str
    low: float = 0.0
    high: float = 0.0
    whole: bool = False
    step: int = 1
    log: bool = False
    choices: tuple[Any, ...] = ()

    def holds(self, value: Any) -> bool:
        """Whether a value lies on it."""
        if self.choices:
            return value in self.choices
        return self.low <= value <= self.high and (not self.whole or (value - self.low) % self.step == 0)

    @property
    def points(self) -> int | None:
        """How many values it has; None: a whole interval."""
        if self.choices:
            return len(self.choices)
        return int((self.high - self.low) // self.step) + 1 if self.whole else None

    def describe(self) -> str:
        """Its range in words."""
        if self.choices:
            return ", ".join(str(choice) for choice in self.choices)
        step = f", steps of {self.step}" if self.whole and self.step > 1 else ""
        return f"{self.low:g} to {self.high:g}{step}{' (log)' if self.log else ''}"


def named_axes(words: Sequence[str]) -> tuple[list[str], dict[str, Axis]]:
    """The words that give one value, and the axes of those that give several, in Hydra's grammar for sweeps.

    ``a=1,2,4`` and ``a=choice(1,2,4)`` are choices, ``a=range(1,9,2)`` whole numbers, ``a=interval(0.1,1)`` an
    interval, and ``a=tag(log,interval(0.1,1))`` one whose logarithm is even. The axes of the search's own are axes with
    one value too. Raises `UserError`.
    """
    from hydra.core.override_parser.overrides_parser import OverridesParser
    from hydra.core.override_parser.types import IntervalSweep, RangeSweep
    from hydra.errors import HydraException

    from tfx.config.grammar import literal, not_grammar

    fixed, axes = [], {}
    for word in words:
        if word.startswith(("-", "~")) or "=" not in word:
            fixed.append(word)
            continue
        try:
            override = OverridesParser.create().parse_override(literal(word, sweep=True))
        except HydraException as error:
            raise not_grammar(word, error) from error
        key, value = override.key_or_group, override.value()
        if not override.is_sweep_override():
            if key in _OWN:
                axes[key] = Axis(key, choices=(_own(key, value),))
            else:
                fixed.append(word)
            continue
        log = "log" in getattr(value, "tags", ())
        if isinstance(value, IntervalSweep):
            low, high = value.start, value.end
            if low is None or high is None or not low < high or (log and low <= 0):
                raise UserError(f"{word} is no interval: its end must lie above its start, and with log both above 0")
            axes[key] = Axis(key, float(low), float(high), log=log)
        elif isinstance(value, RangeSweep) and all(
            isinstance(part, int) for part in (value.start, value.stop, value.step)
        ):
            whole = range(int(value.start or 0), int(value.stop or 0), int(value.step))
            if len(whole) < 2 or whole.step < 1:
                raise UserError(f"{word} names {len(whole)} values: a range goes up, and its end is not in it")
            axes[key] = Axis(key, float(whole[0]), float(whole[-1]), whole=True, step=whole.step)
        else:
            texts = list(dict.fromkeys(override.sweep_string_iterator()))
            choices = tuple(_own(key, _number(text)) for text in texts)
            if len(choices) == 1 and key not in _OWN:
                fixed.append(f"{key}={texts[0]}")
            else:
                axes[key] = Axis(key, choices=choices)
    return fixed, axes


def _own(key: str, value: Any) -> Any:
    """The choice that a word of the command line means."""
    return None if key == EMBEDDING_FACTOR and value in ("none", "null") else value


def _number(text: str) -> Any:
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            continue
    return text
