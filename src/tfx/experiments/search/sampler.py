"""Which configs to try next: Optuna's tree-structured Parzen estimator, asked anew for each round.

Why this one: axes are few, of all kinds, and conditional on a limit; a trial costs minutes, so tens of them must do.
TPE models good and bad regions axis by axis and together (``multivariate``), takes limits as constraints, and needs no
gradient or kernel (Bergstra 2011; Falkner 2018, arXiv 1807.01774; Watanabe 2023, arXiv 2304.11127). NSGA-II needs
populations of tens for as many generations.

A round depends on the seed, its number, and the results so far, and on nothing else: a search that was killed asks the
same.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from tfx.errors import UserError
from tfx.experiments.search.axes import Axis
from tfx.record.seeds import derive_seed

if TYPE_CHECKING:
    import optuna

Values = dict[str, Any]

# Configs drawn at random before the estimator has anything to go by.
_AT_RANDOM = 8
# Draws in a row out of which nothing keeps the limits, until the search gives up on finding another config.
_MOST_MISSES = 60


@dataclass(frozen=True)
class Outcome:
    """What is known of a config: ``merits`` (more is better) and ``violations`` of limits (zero or less: kept)."""

    values: Mapping[str, Any]
    merits: tuple[float, ...]
    violations: tuple[float, ...] = ()


def require_optuna() -> None:
    """Raises `UserError` with what to install where Optuna is missing."""
    try:
        import optuna  # noqa: F401
    except ImportError:
        raise UserError("tfx search needs Optuna 4: pip install 'path/to/tfx[search]'") from None


def propose(
    axes: Mapping[str, Axis],
    outcomes: Sequence[Outcome],
    count: int,
    seed: int,
    number: int,
    accept: Callable[[Values], Values | None] = lambda values: values,
    first: Values | None = None,
    turns: str | None = None,
) -> list[Values]:
    """The configs of round ``number``: up to ``count``, none twice, and none that an outcome has; ``first`` before all.

    ``accept`` says what becomes of values, or that they are out of the question (None). Fewer are returned where no
    more are found. ``turns`` is the key of an axis whose choices take turns, and are not drawn: about as
    often each, where all can be had.
    """
    with _quiet_optuna() as optuna:
        merits = len(outcomes[0].merits) if outcomes else 1
        distributions = {key: _distribution(axis) for key, axis in axes.items()}
        study = optuna.create_study(
            sampler=optuna.samplers.TPESampler(
                seed=derive_seed(seed, "search", number) % 2**32,
                n_startup_trials=_AT_RANDOM,
                multivariate=True,
                constant_liar=True,
                constraints_func=lambda trial: trial.system_attrs.get("constraints", (0.0,)),
            ),
            directions=["maximize"] * merits,
        )
        study.add_trials([_finished(optuna, outcome, distributions) for outcome in outcomes])
        seen = {_key(outcome.values, axes) for outcome in outcomes}
        found: list[Values] = [] if first is None else [first]
        seen |= {_key(values, axes) for values in found}
        draw = misses = 0
        while len(found) < count and misses < _MOST_MISSES:
            if turns is not None:
                choices = axes[turns].choices
                # Where the rounds before have left off: a short round would have the first choices alone.
                study.enqueue_trial({turns: choices[(len(outcomes) + draw) % len(choices)]})
            draw += 1
            trial = study.ask(distributions)
            values = {key: _plain(trial.params[key], axis) for key, axis in axes.items()}
            whole = accept(values) if _key(values, axes) not in seen else None
            if whole is None:
                # Told as what cannot be had, so that the estimator looks elsewhere.
                study.tell(trial, state=optuna.trial.TrialState.FAIL)
                misses += 1
                continue
            misses = 0
            seen.add(_key(values, axes))
            found.append(whole)
        return found


def _distribution(axis: Axis) -> optuna.distributions.BaseDistribution:
    import optuna

    if axis.choices:
        return optuna.distributions.CategoricalDistribution(axis.choices)
    if axis.whole:
        return optuna.distributions.IntDistribution(int(axis.low), int(axis.high), step=axis.step)
    return optuna.distributions.FloatDistribution(axis.low, axis.high, log=axis.log)


def _plain(value: Any, axis: Axis) -> Any:
    """A drawn value; a float to four digits, as it is typed, logged and drawn again."""
    return float(f"{value:.4g}") if isinstance(value, float) and not axis.choices else value


def _key(values: Mapping[str, Any], axes: Mapping[str, Axis]) -> tuple[Any, ...]:
    return tuple(values[key] for key in axes)


def _finished(optuna: Any, outcome: Outcome, distributions: Mapping[str, Any]) -> Any:
    """An outcome as a trial that has ended. What is not finite counts as worse than all else."""
    return optuna.trial.create_trial(
        params={
            key: min(max(outcome.values[key], d.low), d.high) if hasattr(d, "low") else outcome.values[key]
            for key, d in distributions.items()
        },
        distributions=dict(distributions),
        values=[merit if math.isfinite(merit) else -1e30 for merit in outcome.merits],
        system_attrs={"constraints": [float(over) for over in outcome.violations] or [0.0]},
    )


@contextmanager
def _quiet_optuna() -> Iterator[Any]:
    """Optuna without its log lines and its warnings about experimental arguments."""
    import warnings

    import optuna

    before = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield optuna
    finally:
        optuna.logging.set_verbosity(before)
