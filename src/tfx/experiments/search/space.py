"""The space of a search: which configs there are, and the overrides of `tfx train` that name one."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from tfx.config.compose import compose
from tfx.config.grammar import parse
from tfx.config.schema import Root
from tfx.errors import UserError
from tfx.experiments.search.axes import EMBEDDING_FACTOR, FFN_FACTOR, TEACHER, Axis
from tfx.experiments.search.goal import Goal
from tfx.experiments.search.size import head_unit

WIDTH, FFN = "model.width", "model.ffn_width"
VOCABULARY, SPARSITY = "dataset.tokenizer.vocab_size", "technique.prune.sparsity"
RATE, EMBEDDING_RATE = "technique.quantize.rate", "technique.quantize.embedding_rate"
# The bytes that the file of a config is to have; its width is chosen for that.
SIZE = "file_bytes"

Values = Mapping[str, Any]

# Below it a wider model has more weights than it can use.
_LOWEST_RATE = 1.25
_SMALLEST_BPE = 300  # the 256 bytes, the special tokens, and a few merges
_WIDEST = 4  # times the model's own width
_SIZES = 2  # sizes of files on either side of the limit
_PER_TOKEN = ("loss", "perplexity")
# A trellis takes 30 µs for each weight and try, more than a short training: it ends whole trainings alone, after the
# training with a grid that others have too. Shorter ones only say which configs go on.
METHOD, AWARE = "technique.quantize.method", "technique.quantize.aware"
TRELLIS = f"{METHOD}=trellis"
# Trials of a search know no test data: its choices look at validation data only.
_NO_TEST = "dataset.splits.test=[]"
# The length of a whole training; that of others follows from it.
BUDGET_KEYS = tuple(f"trainer.budget.{unit}" for unit in ("steps", "tokens", "seconds"))
# They are measured as far as choices need it, which halves what a short one takes on top of its training.
_MEASURED_LESS = ("evaluation.latency_inputs=10", "trainer.validate_every=1")


@dataclass(frozen=True)
class Space:
    """``axes`` by key; ``base`` are the words that all configs share; ``techniques`` their stack.

    ``optional`` are the techniques that an axis decides about, each with words that it brings. ``max_bytes``: the file
    of a config has as many, or what the axis of sizes says, and its rate follows; None: its rate is what the axis says.
    """

    base: tuple[str, ...]
    techniques: tuple[str, ...]
    axes: Mapping[str, Axis]
    optional: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    max_bytes: int | None = None
    # What a whole training ends with, beside its words.
    ending: tuple[str, ...] = ()
    # Of the base, what trials have and no other run.
    of_trials: tuple[str, ...] = ()
    # Tells composing where the user's own configs are.
    place: tuple[str, ...] = ()
    # That of the model where the width is no axis.
    width: int = 0

    def words(self, values: Values, *, whole: bool = False) -> list[str]:
        """The overrides of `tfx train` for the config at ``values``, of a ``whole`` training or of a shorter one."""
        words = self._words(values, rate=None)
        return [*words, *(self.ending if whole else ())]

    def outside(self, words: Sequence[str]) -> list[str]:
        """Words of a trial for a run that is no trial: it has test data, and is measured whole."""
        return [word for word in words if word not in self.of_trials]

    def effective(self, values: Values) -> dict[str, Any]:
        """The values that a training has: where bytes decide it, a rate has only led to the width."""
        return {key: value for key, value in values.items() if key != RATE or self.max_bytes is None}

    def file_bytes(self, values: Values) -> int | None:
        """The bytes that the file of a config is made to have; None if its rate decides."""
        return None if self.max_bytes is None else int(values.get(SIZE, self.max_bytes))

    def _words(self, values: Values, rate: float | None) -> list[str]:
        """With a limit that decides the rate there is this ``rate`` in its place, if it is named."""
        techniques, words = list(self.techniques), []
        if self.max_bytes is not None:
            limit = f"technique.quantize.bytes={self.file_bytes(values)}"
            words.append(limit if rate is None else f"{RATE}={rate:.6g}")
        for key, value in values.items():
            if key == FFN_FACTOR:
                words.append(f"{FFN}={round(value * values.get(WIDTH, self.width))}")
            elif key == SPARSITY and "prune" in self.optional:
                if value > 0:
                    techniques.append("prune")
                    words += [*self.optional["prune"], f"{key}={value}"]
            elif key == TEACHER:
                if value == "yes":
                    techniques.append("distill")
                    words += self.optional["distill"]
            elif key == EMBEDDING_FACTOR:
                if value is not None:
                    words.append(f"{EMBEDDING_RATE}={min(6.0, max(0.5, value * values[RATE])):.4g}")
            elif key != SIZE and (key != RATE or self.max_bytes is None):
                words.append(f"{key}={value:.6g}" if isinstance(value, float) else f"{key}={value}")
        return [*self.base, f"technique=[{','.join(sorted(techniques))}]", *words]

    def config(self, values: Values) -> Root:
        """The config at ``values``, with the rate that they say. Raises `UserError` if its settings do not fit.

        If they say none, because a limit of bytes decides it, it is the least that there is. Its file is as large as
        that of a whole training, whose other code takes as many bits at a rate.
        """
        from tfx.techniques.quantize.settings import LEAST_RATE

        return self.compose(self._words(values, values.get(RATE, LEAST_RATE)))

    def compose(self, words: Sequence[str]) -> Root:
        """The config of overrides of `tfx train`."""
        return compose([*words, *self.place])

    def unit(self, config: Root) -> int:
        """Widths are multiples of this: heads of an even width, and whole groups of weights that share a scale."""
        unit = head_unit(config.model)
        quantize = config.technique.get("quantize")
        if quantize and quantize["rate"] is None and quantize["granularity"] in (None, "group"):
            unit = math.lcm(unit, int(quantize["group"]))
        return unit

    def widths(self, config: Root) -> list[int]:
        """The widths on the axis that the config can have; its own where the width is no axis."""
        axis, unit = self.axes.get(WIDTH), self.unit(config)
        if axis is None:
            return [config.model.width]
        some = sorted(axis.choices) if axis.choices else range(unit, int(axis.high) + 1, unit)
        return [width for width in some if width % unit == 0 and axis.holds(width)]


def make_space(typed: Sequence[str], named: Mapping[str, Axis], config: Root, goal: Goal) -> Space:
    """The axes of a search around ``config``, which the words ``typed`` compose.

    What ``typed`` sets is no axis, and an axis that is ``named`` has the range that it names. If files around the
    limit are of interest too, their size is an axis. Raises `UserError`.
    """
    _check_axes(named)
    fixed = {parse(word)[0] for word in typed if "=" in word}
    is_new = config.init_from is None
    stack, optional = _stack(config, typed, fixed)
    distill = config.technique.get("distill")
    if distill is not None and distill["teacher"] is None and is_new:
        raise UserError(
            "every config of the search would train a teacher of its own: train one first, and name it with "
            "technique.distill.teacher=RUN"
        )
    own = _of_model(config) if is_new else []
    own += _of_techniques(stack, optional, fixed, named)
    # Losses per token of two vocabularies cannot be compared.
    if is_new and distill is None and config.dataset.tokenizer.path is None and goal.metric not in _PER_TOKEN:
        own += _of_vocabulary(config)
    axes = {axis.key: axis for axis in own if axis.key not in fixed}
    if FFN in fixed or FFN in named:
        axes.pop(FFN_FACTOR, None)
    axes |= named
    if WIDTH in named and not all(isinstance(choice, int) for choice in named[WIDTH].choices):
        raise UserError(f"{WIDTH}={','.join(map(str, named[WIDTH].choices))}: name whole numbers")
    if goal.max_bytes is not None and goal.spread > 1:
        factors = (goal.spread ** (step / _SIZES) for step in range(-_SIZES, _SIZES + 1))
        axes[SIZE] = Axis(SIZE, choices=tuple(round(goal.max_bytes * factor) for factor in factors))
    apart = tuple(word for words in optional.values() for word in words)
    base = [word for word in typed if key_of(word) not in ("technique", "dry_run") and word not in apart]
    if distill is not None and is_new and config.dataset.tokenizer.path is None:
        base.append(f"dataset.tokenizer.path={distill['teacher']}/tokenizer.json")
    fills = RATE in axes and goal.max_bytes is not None and goal.is_of_quality
    ending = (TRELLIS,) if TRELLIS in base else ()
    if fills and WIDTH not in axes:  # of models of one size the limit alone decides the rate
        if RATE in named:
            raise UserError(
                f"max_bytes={goal.max_bytes} decides the rate of a model of one width: leave out {RATE}, or give "
                f"{WIDTH} several values"
            )
        axes = {key: axis for key, axis in axes.items() if key not in (RATE, EMBEDDING_FACTOR)}
    _check_own(named, optional, axes)
    may_be = named[METHOD].choices if METHOD in named else ()
    if (TRELLIS in base or ("trellis" in may_be and "gptq" not in may_be)) and AWARE not in fixed | named.keys():
        base.append(f"{AWARE}=true")
    of_trials = (_NO_TEST, *(word for word in _MEASURED_LESS if _is_free(word, config, fixed | named.keys())))
    return Space(
        (*(word for word in base if word not in ending), *of_trials),
        stack,
        axes,
        optional,
        goal.max_bytes if fills else None,
        ending,
        of_trials,
        width=config.model.width,
    )


def _check_axes(named: Mapping[str, Axis]) -> None:
    """Raises `UserError` for several values of what the search itself decides for each trial."""
    shorter = dict.fromkeys(BUDGET_KEYS, "rungs and keep say how much shorter trainings are")
    for key, instead in (("seed", "seeds=3 gives the leaders more seeds"), *shorter.items()):
        if key in named:
            raise UserError(f"{key}={named[key].describe()} makes no other config: name one value; {instead}")
    some = {
        FFN_FACTOR: "numbers above 0, such as 2 or 2,4",
        EMBEDDING_FACTOR: "none, or numbers such as 0.7 or 0.7,1.4",
    }
    for key, of_what in ((FFN_FACTOR, WIDTH), (EMBEDDING_FACTOR, RATE)):
        factors = named.get(key)
        for factor in (factors.choices or (factors.low,)) if factors else ():
            is_number = isinstance(factor, int | float) and not isinstance(factor, bool) and factor > 0
            if not is_number and (key, factor) != (EMBEDDING_FACTOR, None):
                raise UserError(f"{key}={factor} is no multiple of {of_what}: name {some[key]}")


def _check_own(named: Mapping[str, Axis], optional: Mapping[str, Any], axes: Mapping[str, Axis]) -> None:
    """Raises `UserError` for axes of the search's own that have nothing to act on."""
    if TEACHER in named:
        if not named[TEACHER].choices or not set(named[TEACHER].choices) <= {"yes", "no"}:
            raise UserError(f"{TEACHER}={named[TEACHER].describe()}: it is yes or no")
        if "distill" not in optional:
            raise UserError(
                f"{TEACHER} says which configs have the teacher of technique.distill.teacher=RUN: name that one, "
                "and leave out technique=…, which all configs have"
            )
    if EMBEDDING_FACTOR in named and RATE not in axes:
        raise UserError(
            f"{EMBEDDING_FACTOR} is a multiple of {RATE} where that is an axis: name {EMBEDDING_RATE} instead"
        )


def _is_free(word: str, config: Root, given: set[str]) -> bool:
    """Whether the search may say how much is measured: the user has not, and no training depends on it."""
    depends = config.trainer.keep != "last" or config.trainer.early_stopping.metric is not None
    return key_of(word) not in given and not (depends and key_of(word) == "trainer.validate_every")


def _stack(config: Root, typed: Sequence[str], fixed: set[str]) -> tuple[tuple[str, ...], dict[str, tuple[str, ...]]]:
    """The techniques of all configs, and those that some have, with the words that are theirs alone.

    The user's own; else quantization, with or without pruning and the teacher that is named.
    """
    if "technique" in fixed:
        return tuple(config.technique), {}
    # A share of zeros that is fixed is one that all configs have.
    prunes = SPARSITY in fixed and config.technique["prune"]["sparsity"] > 0
    optional = {} if prunes else {"prune": "technique.prune."}
    if config.technique.get("distill") is not None:
        optional["distill"] = "technique.distill."
    return ("prune", "quantize") if prunes else ("quantize",), {
        name: tuple(word for word in typed if key_of(word).startswith(begin)) for name, begin in optional.items()
    }


def named_techniques(words: Sequence[str]) -> list[str]:
    """The techniques that words set something of, where none names the techniques themselves; with quantization."""
    keys = [key_of(word) for word in words]
    if "technique" in keys:
        return []
    return sorted({"quantize", *(key.split(".")[1] for key in keys if key.startswith("technique."))})


def key_of(word: str) -> str:
    """The key of an override."""
    return word.lstrip("+").partition("=")[0]


def _of_model(config: Root) -> list[Axis]:
    model = config.model
    axes = [
        Axis(WIDTH, 8, _WIDEST * model.width, whole=True, step=1),
        Axis(FFN_FACTOR, choices=(1, 2, 3, 4)),
        Axis("model.heads", choices=(2, 4, 8)),
        Axis("model.passes", choices=(1, 2)),
        Axis("model.dropout", 0.0, 0.3),
        Axis("optimizer.weight_decay", 0.03, 1.0, log=True),
    ]
    for key, layers in (("encoder", model.encoder_layers), ("decoder", model.decoder_layers)):
        if layers:
            axes.append(Axis(f"model.{key}_layers", 1, max(6, layers), whole=True))
    return axes


def _of_techniques(
    stack: Sequence[str], optional: Mapping[str, Any], fixed: set[str], named: Mapping[str, Axis]
) -> list[Axis]:
    axes, given = [], fixed | named.keys()
    if "quantize" in stack and not given & {"technique.quantize.bits", "technique.quantize.granularity"}:
        axes.append(Axis(RATE, _LOWEST_RATE, 4.0, log=True))
        if RATE not in fixed and not given & {EMBEDDING_RATE, "technique.quantize.embeddings"}:
            axes.append(Axis(EMBEDDING_FACTOR, choices=(None, 0.7, 1.4)))
    if "prune" in optional:
        axes.append(Axis(SPARSITY, choices=(0.0, 0.3, 0.5, 0.7)))
    elif "prune" in stack:
        axes.append(Axis(SPARSITY, 0.1, 0.8))
    if "distill" in optional:
        axes.append(Axis(TEACHER, choices=("yes", "no")))
    return axes


def _of_vocabulary(config: Root) -> list[Axis]:
    tokenizer = config.dataset.tokenizer
    if tokenizer.kind != "bpe":
        return []
    sizes = {max(_SMALLEST_BPE, round(tokenizer.vocab_size * factor)) for factor in (0.125, 0.25, 0.5, 1, 2)}
    return [Axis(VOCABULARY, choices=tuple(sorted(sizes)))]
