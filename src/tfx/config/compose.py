"""A config: composed from overrides, loaded from a run, changed, merged into the schema and checked, and written."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, fields, is_dataclass
from functools import cache
from itertools import chain
from pathlib import Path
from typing import Any

import yaml
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from tfx.config.checks import (
    check_combinations,
    check_given,
    check_keys,
    check_monolingual,
    check_names,
    check_technique,
    check_values,
    choose_budget,
    choose_rate,
    on_and_off,
    renew,
)
from tfx.config.explain import check_yaml, explain, of_yaml
from tfx.config.grammar import check_words, escaped, listed_names, parse, technique_of
from tfx.config.hydra_driver import compose_tree, register
from tfx.config.inheritance import inherit
from tfx.config.mixture import check_corpora, complete
from tfx.config.paths import make_absolute
from tfx.config.registry import entry_points
from tfx.config.schema import Root
from tfx.config.task_choice import follow_task
from tfx.errors import UserError

# What a data set's task is told by, and what that brings.
_OF_TASK = ("dataset.task", "dataset.predict", "dataset.metrics")
# Makes a saved config a primary config of Hydra's: `tfx train --config-dir RUN --config-name config`.
_SAVED_HEAD = """\
# Reruns with no other file: tfx train --config-dir THIS_FOLDER --config-name config
defaults:
  - _self_
  - override hydra/output: tfx
  - override hydra/launcher: tfx
  - override hydra/hydra_logging: none
  - override hydra/job_logging: none
hydra:
  output_subdir: null
"""


def compose(overrides: Sequence[str]) -> Root:
    """The checked config of ``overrides`` on top of the defaults, without running anything."""
    return check(compose_tree(overrides), overrides, is_new=True)


def compose_values(overrides: Sequence[str]) -> dict[str, Any]:
    """The same as plain values, before their types, ranges and combinations are checked: what a help text shows."""
    return _values(follow_task(compose_tree(overrides), overrides), overrides, is_new=True)


def load(path: Path) -> Root:
    """The config that a run saved."""
    check_yaml(path)
    try:
        return check(OmegaConf.load(path), ())  # type: ignore[arg-type]
    except UserError as error:
        raise UserError(f"{path}: {error}") from error
    except (OSError, OmegaConfBaseException, ValueError, RecursionError, yaml.YAMLError) as error:
        raise UserError(f"{path} is not a readable config: {of_yaml(error)}") from error


def change(config: Root, overrides: Sequence[str]) -> Root:
    """A saved config with ``overrides`` on top: values (a.b=1), or whole groups (dataset=multi30k) chosen anew."""
    register()
    saved: Any = OmegaConf.merge(_schema(), escaped(asdict(config)))
    groups = {f.name for f in fields(Root) if is_dataclass(f.default_factory)} | {"technique"}
    chosen = [o for o in overrides if o.lstrip("+").split("=", 1)[0] in groups]
    check_words(overrides)
    if chosen:
        composed = _composed(chosen, overrides)
        for override in chosen:
            name = override.lstrip("+").split("=", 1)[0]
            saved[name] = composed[name]
    values = [o.lstrip("+") for o in overrides if o not in chosen]
    for override in values:
        try:
            key, value = parse(override)
            OmegaConf.update(saved, key, value)
        except UserError:
            raise
        except Exception as error:  # like Hydra, it raises errors of any kind
            raise explain(error) from error
    return check(saved, values)


def _composed(chosen: Sequence[str], overrides: Sequence[str]) -> DictConfig:
    """The groups chosen anew; a task typed beside them brings its metrics."""
    of_task = [o for o in overrides if o.lstrip("+").partition("=")[0] in _OF_TASK]
    if any(o.lstrip("+").startswith("dataset=") for o in chosen):
        chosen = [*chosen, *of_task]
    return follow_task(compose_tree(chosen), chosen)


def to_yaml(config: Root) -> str:
    """The resolved config as YAML; it reruns with no other file."""
    return _SAVED_HEAD + OmegaConf.to_yaml(OmegaConf.create(escaped(asdict(config))))


def check(composed: DictConfig, typed: Sequence[str], *, is_new: bool = False) -> Root:
    """Merges what was composed into the schema and checks names, types, ranges and combinations.

    ``typed`` are the user's own overrides, which decide which budget counts. A new config, unlike one that a run has
    saved, inherits what ``init_from`` brings.
    """
    values = _values(follow_task(composed, typed) if is_new else composed, typed, is_new=is_new)
    try:
        config: Root = OmegaConf.to_object(OmegaConf.merge(_schema(), escaped(values)))  # type: ignore[assignment]
    except OmegaConfBaseException as error:
        raise explain(error) from error
    check_values(config, "")
    config.technique = {name: check_technique(name, config.technique[name]) for name in sorted(config.technique)}
    check_combinations(config)
    check_monolingual(config)
    check_corpora(config.dataset)
    return config


@cache
def _schema() -> DictConfig:
    """The schema as a tree, for `OmegaConf.merge`, which copies it."""
    return OmegaConf.structured(Root)


def _values(composed: DictConfig, typed: Sequence[str], *, is_new: bool) -> dict[str, Any]:
    """What was composed as plain values: resolved, with absolute paths, what it inherits, and one budget."""
    try:
        content = OmegaConf.to_container(composed, resolve=True)
    except (OmegaConfBaseException, RecursionError) as error:
        raise explain(error) from error
    if not isinstance(content, dict):
        raise UserError("the config is a list, not groups of settings")
    values = {str(key): value for key, value in content.items() if key not in ("experiment", "hydra", "defaults")}
    renew(values, typed)
    check_names(typed)
    check_keys(values, Root, "")
    on_and_off(values, Root)
    check_given(values, "")
    make_absolute(values, Root, "")
    if isinstance(values.get("dataset"), dict):
        complete(values["dataset"], typed)
    if is_new and values.get("init_from") is not None:
        origin = Path(str(values["init_from"]))
        # A model file that lies in its run brings what the run does.
        file = (origin.parent if origin.is_file() else origin) / "config.yaml"
        inherit(values, typed, asdict(load(file)) if file.is_file() else None)
    choose_budget(values.setdefault("trainer", {}).setdefault("budget", {}), typed)
    if isinstance(values.get("technique"), dict):
        if is_new:
            values["technique"] = _as_typed(values["technique"], typed)
        choose_rate(values["technique"], typed)
    return values


def _as_typed(techniques: dict[str, Any], typed: Sequence[str]) -> dict[str, Any]:
    """The techniques of a list that the user typed; those that an experiment has besides are left out.

    Raises `UserError` for settings of a technique that is left out.
    """
    lists = [plain for word in typed if (plain := word.removeprefix("+")).startswith("technique=")]
    named = set(chain(*listed_names(lists[-1]))) if lists else set()
    if not lists or techniques.keys() <= named or not named <= entry_points().keys():
        return techniques  # a choice of the user's own may bring techniques of other names
    for name in (name for word in typed if (name := technique_of(word)) is not None and name not in named):
        raise UserError(f"technique '{name}' has settings here, and {lists[-1]} leaves it out: add it to the list")
    return {name: settings for name, settings in techniques.items() if name in named}
