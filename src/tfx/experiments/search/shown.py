"""What people see of a search: its plan, and what it found."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import mean
from typing import Any

from tfx.config.schema import Budget
from tfx.errors import UserError
from tfx.experiments.search.halving import costs, course
from tfx.experiments.search.outcome import given_up
from tfx.experiments.search.sampler import Values, propose
from tfx.experiments.search.search import NOTHING_FITS, Search
from tfx.experiments.search.space import WIDTH
from tfx.terminal.console import clock, counted, number, plain_console
from tfx.terminal.tables import Column, Sheet

# So many configs that fit are shown in a dry run.
_SHOWN = 3
# Each trains for this many steps, to learn what a training takes.
_TRIED = 6


def show_plan(search: Search) -> None:
    """Prints the axes, some configs that keep the limits, and what a round costs. Raises `UserError` if none does."""
    search.fitter.check()
    console = plain_console()
    console.print(f"goal: {search.goal.describe()}", highlight=False, soft_wrap=True)
    table = Sheet(Column("axis", wrap=False), Column("range"), lines=False)
    filled = " (chosen so that the file fills max_bytes)" if search.fitter.fills else ""
    for key, axis in search.space.axes.items():
        table.add_row(key, axis.describe() + (filled if key == WIDTH else ""))
    console.print(table)
    seed = search.request.config.seed
    plain_console(stderr=True).print("looking for configs that fit")
    some = propose(search.fitter.sampled_axes(), [], _SHOWN, seed, 0, search.fitter.accept)
    if not some:
        raise search.fitter.refusal or UserError(NOTHING_FITS)
    timed = search.goal.is_of_time
    fits = Sheet(
        Column("configs that fit, at random"),
        Column("bytes", number=True),
        *([Column("ms", number=True)] if timed else []),
        lines=False,
    )
    for values in some:
        found = search.fitter.predict(values)
        cells = [
            describe_values(search.space.effective(values)),
            f"{found.bytes:,}",
            *([number(found.latency_ms)] if timed else []),
        ]
        fits.add_row(*cells)
    console.print(fits)
    for line in _costs(search, some):
        console.print(line, highlight=False, soft_wrap=True)


def _costs(search: Search, shown: Sequence[Values]) -> list[str]:
    """What a round is, and what it takes by a few steps of the configs that are ``shown``."""
    settings, whole = search.settings, search.budgets[-1]
    count = search.affordable()
    if not count:
        return ["the budget is spent: a larger one goes on with this search"]
    steps = course(count, settings.rungs, settings.keep)
    rungs = ", ".join(str(search.budgets[rung]) for rung, _ in steps)
    goes_on = f"; one in {settings.keep} goes on each time" if len(steps) > 1 else ""
    as_much = costs(count, settings.rungs, settings.keep)
    lines = [
        f"a round: {counted(count, 'config')}, trained for {rungs}{goes_on}: as much as "
        f"{counted(as_much, 'whole training')}"
    ]
    pace = _pace(search, shown)
    whole_seconds = pace.seconds(whole)
    trainings = sum(left for _, left in steps)
    a_round = (whole_seconds * as_much + pace.on_top * trainings) / search.machine.jobs
    together = f"{counted(search.machine.jobs, 'training')} at a time"
    if search.seconds is not None:
        rounds = search.seconds / a_round
        lines.append(f"{clock(search.seconds)} for all of it, {together}: about {rounds:.2g} rounds at most")
    else:
        assert search.most_trials is not None
        time = clock(max(whole_seconds + pace.on_top, a_round * search.most_trials / trainings))
        lines.append(f"{counted(search.most_trials, 'training')} in all, {together}: about {time} at least")
    lines.append(
        f"a whole training takes about {clock(whole_seconds)}, and start-up, validation and the file of each training "
        f"{clock(pace.on_top)} more: measured now, on {_TRIED} steps of each config above, and on one trial of as many"
    )
    return lines


@dataclass(frozen=True)
class _Pace:
    """Seconds for a token and for a step of training, and what a trial takes ``on_top``."""

    a_token: float
    a_step: float
    on_top: float

    def seconds(self, budget: Budget) -> float:
        """The seconds of a training."""
        return budget.amount * {"seconds": 1.0, "tokens": self.a_token, "steps": self.a_step}[budget.unit]


def _pace(search: Search, shown: Sequence[Values]) -> _Pace:
    """The mean of some configs, each trained for a few steps, one after the other; and a whole trial of the first."""
    from tfx.experiments.trial import seconds_on_top, try_configs

    configs = {f"config {place}": search.space.compose(search.space.words(one)) for place, one in enumerate(shown)}
    plain_console(stderr=True).print(f"trying {counted(len(configs), 'config')} for {_TRIED} steps each")
    environment = search.machine.environment(0)
    rates = [trial.rates for trial in try_configs(configs, _TRIED, environment).values()]
    words = [*search.request.flags, *search.space.words(shown[0]), f"trainer.budget.steps={_TRIED}"]
    on_top = seconds_on_top(words, environment)
    return _Pace(mean(one.seconds for one in rates), mean(one.seconds / one.steps for one in rates), on_top)


def describe_values(values: dict[str, Any]) -> str:
    """The values of a config in one line, by the last part of their keys."""
    return " ".join(f"{key.rpartition('.')[2]}={number(value)}" for key, value in values.items())


def show_found(search: Search) -> None:
    """Prints the front, the winner with its command, and what is to be known of the choice."""
    found, console = search.book.outcome, plain_console()
    metric = found["metric"]
    table = Sheet(
        Column("config", number=True),
        Column(metric, number=True),
        Column("bytes", number=True),
        Column("ms", number=True),
        Column("budget", number=True, spare=2),
        Column("the next smaller one", spare=1),
        Column("values", spare=3),
        title=f"{found['goal']}: the front of what trained longest, on validation data; * is the best",
        lines=False,
    )
    shown = list(found["front"])
    if found["best"] not in {row["run"] for row in shown}:  # one that trained for less is as good
        shown += [row for row in found["tried"] if row["run"] == found["best"]]
    for place, row in enumerate(shown):
        mark = "*" if row["run"] == found["best"] else ""
        table.add_row(
            f"{mark}{row['config']}",
            number(row["quality"]),
            f"{row['bytes']:,}",
            number(row["latency_ms"]),
            f"{row['part_of_budget']:.0%}",
            given_up(shown, place, metric) if place < len(found["front"]) else "",
            describe_values(row["values"]),
        )
    if shown:
        console.print(table)
    for line in notes(found):
        console.print(line, highlight=False, soft_wrap=True)
    if found["best"] is not None:
        print(f"best: {found['best']}")
        print(f"again: {found['command']}")


def _of_winner(row: dict[str, Any], metric: str) -> list[str]:
    """What its figure in the table is, where that is not the one of a whole training."""
    if row["part_of_budget"] < 1:
        return [
            f"no config had a whole training: the winner had {row['part_of_budget']:.0%} of one, and is not scored on "
            "test data; a larger budget goes on"
        ]
    if row["seeds"] > 1:
        return [f"the winner's {metric} is the mean of {row['seeds']} seeds; `best` is the run of the best of them"]
    return []


def notes(found: dict[str, Any]) -> list[str]:
    """Sentences on the cost of a search, on its choice, and on its predictions."""
    lines = []
    if found["best"] is not None and not found["best_is_met"]:
        lines.append(f"no config so far is {found['goal']}: * is the nearest")
    lines += [
        f"{counted(found['trials'], 'training')} of {counted(found['looked_at'], 'config')}, {found['ended']} with a "
        f"result, in {clock(found['seconds'])}; {found['training_flops'] / 1e12:,.3g} TFLOPs"
    ]
    for row in found["tried"]:
        if row["run"] == found["best"]:
            lines += _of_winner(row, found["metric"])
    chosen = found["selection"]
    if chosen["at_full_length"] > 1 and "optimism" in chosen:
        lines.append(
            f"the winner is the best of {chosen['at_full_length']} at full length: if they were equally good, the best "
            f"of one seed each would stand {chosen['optimism']:.2g} {found['metric']} too high on validation data "
            f"(standard deviation between seeds {chosen['seed_deviation']:.2g})"
        )
    elif chosen["at_full_length"] > 1:
        lines.append(
            f"the winner is the best of {chosen['at_full_length']} at full length by its validation score: how much of "
            "that is luck is not known without more seeds"
        )
    if errors := found["size"]:
        largest = errors["largest_error"]
        smaller = f", the file was {'smaller' if largest > 0 else 'larger'}" if largest else ""
        lines.append(
            f"bytes were predicted within {errors['mean_absolute_error']:.2%} on average (largest error "
            f"{abs(largest):.2%}{smaller}; {errors['within_3_percent']:.0%} within 3 %)"
        )
    if (test := found.get("test")) and test["run"] == found["best"]:
        values = ", ".join(f"{name} {number(value)}" for name, value in test["metrics"].items())
        others = counted(test["earlier"], "earlier winner")
        before = f" (as {others} of this search)" if test["earlier"] else ", once"
        lines.append(f"on {test['split']}{before}, for the winner: {values}")
    winners = [row["config"] for row in found["tried"] if row["run"] == found["best"]]
    if (final := found.get("final")) and final["test"] and final["config"] in winners:
        for name, arm in (("the winner", final), ("a narrower dense model in 8 bits", final.get("dense"))):
            if arm and arm["test"]:
                lines.append(
                    f"{name}, trained for {clock(mean(arm['training_seconds']))}, {len(arm['test'])} new seeds: "
                    f"{found['metric']} {', '.join(map(number, arm['test']))} on {arm['test_split']}, "
                    f"{mean(arm['bytes']):,.0f} bytes"
                )
    return lines
