"""Checks of a composed config: names, types, ranges, and settings that do not fit together."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import fields, is_dataclass
from typing import Any

from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from tfx.config.choices import choices
from tfx.config.grammar import escaped
from tfx.config.keys import all_keys, unknown_key
from tfx.config.paths import make_absolute
from tfx.config.registry import technique_class
from tfx.config.schema import BUDGET_UNITS, DEFAULT_BUDGET_SECONDS, Budget, Root, bounds, in_full, is_in_range
from tfx.config.task_facts import LABEL_METRICS, TASKS, facts_of
from tfx.errors import UserError, suggest, unknown

_LARGEST_INTEGER = 2**63 - 1
# Settings of quantization of which one decides its rate.
_DECIDE_THE_RATE = ("rate", "bytes", "ratio")
# Key that replaces the settings of another package's technique if they cannot be read; its value says why.
UNREADABLE = "cannot be read"


def check_technique(name: str, values: Any) -> dict[str, Any]:
    """All settings of a technique as plain values, checked like any others.

    Also raises `UserError` if another package's technique cannot be loaded, or if its YAML cannot be read.
    """
    if isinstance(values, dict) and UNREADABLE in values:
        raise UserError(values[UNREADABLE])
    schema = technique_class(name).Settings
    prefix = f"technique.{name}."
    if not isinstance(values, dict):
        raise UserError(f"technique.{name}={values} is not a group of settings: set {prefix}<name>=…")
    check_keys(values, schema, prefix)
    make_absolute(values, schema, prefix)
    try:
        merged = OmegaConf.merge(OmegaConf.structured(schema), escaped(values))
        settings: Any = OmegaConf.to_object(merged)
    except OmegaConfBaseException as error:
        raise UserError(f"{prefix}{getattr(error, 'full_key', '')}: {str(error).splitlines()[0]}") from error
    check_values(settings, prefix)
    if settings.start >= settings.end:
        raise UserError(f"{prefix}start={settings.start:g} must be below {prefix}end={settings.end:g}")
    for f in fields(settings):
        value = getattr(settings, f.name)
        if isinstance(value, Budget) and sum(getattr(value, key) is not None for key in BUDGET_UNITS) > 1:
            raise UserError(f"{prefix}{f.name} is one budget: name one of {', '.join(BUDGET_UNITS)}")
    return OmegaConf.to_container(merged, resolve=True)  # type: ignore[return-value]


def check_monolingual(config: Root) -> None:
    """Raises `UserError` for text without references that no technique of the run learns from."""
    dataset = config.dataset
    if dataset.monolingual is None and dataset.monolingual_share is not None:
        raise UserError(
            f"dataset.monolingual_share={dataset.monolingual_share:g} is a share of text without references: name that "
            "with dataset.monolingual=…"
        )
    if dataset.monolingual is not None and not any(technique_class(name).reads_unlabelled for name in config.technique):
        raise UserError(
            f"dataset.monolingual={dataset.monolingual} is text without references, and no technique of this run "
            "learns from it: add one that does (+technique=distill), or leave it out"
        )


def renew(values: dict[str, Any], typed: Sequence[str]) -> None:
    """Says what a config of an earlier version says in the keys of today.

    Raises `UserError` if the user typed an old key.
    """
    if any(word.lstrip("+").startswith("trainer.tensorboard=") for word in typed):
        raise UserError("trainer.tensorboard is gone: set tracking.to=[tensorboard]")
    trainer = values.get("trainer")
    if isinstance(trainer, dict) and trainer.pop("tensorboard", False):
        values.setdefault("tracking", {}).setdefault("to", ["tensorboard"])


def check_keys(values: dict[str, Any], schema: Any, prefix: str) -> None:
    """Raises `UserError` for a key that the schema, a settings dataclass, does not have."""

    def visit(values: dict[str, Any], part: Any, inner: str) -> None:
        known = {f.name: f for f in fields(part)}
        for key, value in values.items():
            if key not in known:
                raise unknown_key(f"{inner}{key}", all_keys(schema, prefix))
            factory = known[key].default_factory
            if is_dataclass(factory):
                if not isinstance(value, dict):
                    raise UserError(f"{inner}{key}={value} is not a group of settings: set {inner}{key}.<name>=…")
                visit(value, factory, f"{inner}{key}.")

    visit(values, schema, prefix)


def check_names(typed: Sequence[str]) -> None:
    """Raises `UserError` if the user typed the name of a choice where that changes the name, and nothing else."""
    for override in typed:
        key, _, value = override.lstrip("+").partition("=")
        group = key.removesuffix(".name")
        if f"{group}={value}" in typed:
            continue
        named = key in ("model.name", "dataset.name", "optimizer.name", "schedule.name")
        if named and any(each in choices(group) for each in value.split(",")):  # several in a sweep
            raise UserError(
                f"{key}={value} changes the name alone, and none of the settings that come with it: choose "
                f"{group}={value}"
            )


def on_and_off(values: dict[str, Any], schema: Any) -> None:
    """Writes ``on`` and ``off``, where they are choices, for true and false, as YAML reads them."""
    for f in fields(schema):
        value = values.get(f.name)
        if is_dataclass(f.default_factory) and isinstance(value, dict):
            on_and_off(value, f.default_factory)
        elif f.name in values and "on" in f.metadata.get("choices", ()):
            values[f.name] = {"true": "on", "false": "off"}.get(str(value).lower(), value)


def check_given(values: dict[str, Any], prefix: str) -> None:
    """Raises `UserError` for the text ``???``, which OmegaConf reads as a missing value."""
    for key, value in values.items():
        if isinstance(value, dict):
            check_given(value, f"{prefix}{key}.")
        elif "???" in (value if isinstance(value, list) else [value]):
            raise UserError(f"{prefix}{key}=??? has no value: ??? stands for a missing one, so set another")


def choose_budget(budget: dict[str, Any], typed: Sequence[str]) -> None:
    """Leaves one budget: the one that the user typed, else the config's, else the default."""
    named = _given_by_user("trainer.budget", BUDGET_UNITS, typed)
    if not named:
        named = [name for name in BUDGET_UNITS if budget.get(name) is not None]
    if len(named) > 1:
        both = " and ".join(f"trainer.budget.{name}={budget.get(name)}" for name in named)
        raise UserError(f"a run has one budget, and {both} are named: keep one of them")
    for name in BUDGET_UNITS:
        if named and name != named[0]:
            budget[name] = None
    if not named:
        budget["seconds"] = DEFAULT_BUDGET_SECONDS


def choose_rate(technique: dict[str, Any], typed: Sequence[str]) -> None:
    """Of the settings that decide the rate of quantization, what the user typed replaces what a config brings."""
    quantize = technique.get("quantize")
    given = _given_by_user("technique.quantize", _DECIDE_THE_RATE, typed)
    if isinstance(quantize, dict) and given:
        quantize.update({name: None for name in _DECIDE_THE_RATE if name not in given})


def _given_by_user(group: str, names: Sequence[str], typed: Sequence[str]) -> list[str]:
    """Those of the settings of a group that the user typed with a value, in the order of ``names``."""
    given = set()
    for override in typed:
        key, _, value = override.lstrip("+").partition("=")
        if key.startswith(f"{group}.") and value not in ("null", "None", ""):
            given.add(key.removeprefix(f"{group}."))
    return [name for name in names if name in given]


def check_values(node: Any, prefix: str) -> None:
    """Raises `UserError` for a value of a settings dataclass that is out of its range or choices."""
    for f in fields(node):
        name, value, meta = f"{prefix}{f.name}", getattr(node, f.name), f.metadata
        if is_dataclass(value):
            check_values(value, f"{name}.")
            continue
        if meta.get("are_groups"):  # each is checked as the config of its own that it becomes
            continue
        allowed = meta.get("choices")
        for chosen in value if isinstance(value, list) else [value]:
            if allowed and chosen is not None and chosen not in allowed:
                raise unknown(name, str(chosen), allowed)
        words = meta.get("words")
        if words and isinstance(value, str) and value not in words:
            raise UserError(f"{name}={value} must be a number or {' or '.join(words)}{suggest(value, words)}")
        for number in value if isinstance(value, list) else [value]:
            if isinstance(value, list) and isinstance(number, dict | list):  # merging lets them through
                raise UserError(f"{name}={value} must be a list of single values")
            if isinstance(number, bool) or not isinstance(number, (int, float)):
                continue
            _check_range(name, number, meta)


def _check_range(name: str, number: float, meta: Any) -> None:
    if isinstance(number, int) and abs(number) > _LARGEST_INTEGER:
        raise UserError(f"{name}={number} is out of range: it is not a 64-bit integer")
    if not math.isfinite(number):
        raise UserError(f"{name}={number:g} is out of range: it must be finite")
    if not is_in_range(number, meta):
        raise UserError(f"{name}={in_full(number)} is out of range: it must be {' and '.join(bounds(meta))}")


def _check_judge(config: Root) -> None:
    """Raises `UserError` for a metric that no validation row has, and for two that would judge the same weights."""
    trainer, dataset = config.trainer, config.dataset
    known = ("loss", *LABEL_METRICS[dataset.predict])
    if dataset.task != "classification":
        known = TASKS[dataset.task].watchable
    stopping = trainer.early_stopping.metric
    for name, metric in (("trainer.best_by", trainer.best_by), ("trainer.early_stopping.metric", stopping)):
        if metric is not None and metric not in known:
            raise unknown(name, metric, known)
    if None not in (trainer.best_by, stopping) and trainer.best_by != stopping:
        raise UserError(
            f"trainer.best_by={trainer.best_by} and trainer.early_stopping.metric={stopping} both say which weights "
            "are the best: name one"
        )


def check_combinations(config: Root) -> None:
    """Raises `UserError` for settings that are valid by themselves but do not fit together."""
    model, dataset, schedule = config.model, config.dataset, config.schedule
    task = TASKS[dataset.task]
    facts_of(model.family, f"model '{model.name}'")
    if model.family != dataset.task and config.init_from is None:
        raise UserError(
            f"model '{model.name}' is for {TASKS[model.family].what} and dataset '{dataset.name}' for {task.what}: "
            f"choose a model for it, such as model={task.example}"
        )
    if config.trainer.keep_zeros and config.init_from is None:
        raise UserError(
            "trainer.keep_zeros keeps the zeros of the model that training starts from: name it with init_from=…"
        )
    if len(config.optimizer.betas) != 2:
        raise UserError(f"optimizer.betas={config.optimizer.betas} must be two numbers")
    if schedule.name == "wsd" and schedule.warmup + schedule.decay > 1:
        raise UserError(
            f"schedule.warmup={schedule.warmup:g} and schedule.decay={schedule.decay:g} are more than the budget"
        )
    _check_judge(config)
    if dataset.document_mask and not task.is_stream:
        raise UserError(
            f"dataset.document_mask is for a language model, and the examples of {task.what} never see each other: "
            "leave it out"
        )
    if config.evaluation.method == "beam" and not task.decodes:
        raise UserError(f"evaluation.method=beam is for text to text: {task.what} decodes by greedy or sample")
    if dataset.metrics and task.metrics == ():
        raise UserError(
            f"dataset.metrics={dataset.metrics} score generated text, but {task.what} is scored by its loss"
        )
    known = LABEL_METRICS[dataset.predict]
    for name in dataset.metrics if task.metrics else ():
        if name not in known:
            raise UserError(
                f"dataset.metrics={dataset.metrics}: '{name}' is no metric of {task.what} with "
                f"dataset.predict={dataset.predict}{suggest(name, known)}"
            )
    if dataset.predict != "one" and dataset.task != "classification":
        raise UserError(
            f"dataset.predict={dataset.predict} is for classification, and '{dataset.name}' is for {task.what}: "
            "set dataset.task=classification"
        )
    if dataset.class_weights != "none" and dataset.predict != "one":
        raise UserError(f"dataset.class_weights={dataset.class_weights} needs dataset.predict=one: one label a text")
