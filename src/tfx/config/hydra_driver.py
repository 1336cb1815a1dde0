"""Hydra's part: registers the schema and the techniques, and composes the tree of settings from overrides."""

from __future__ import annotations

import re
import secrets
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from itertools import chain

import hydra
import yaml
from hydra.core.config_store import ConfigStore
from hydra.core.global_hydra import GlobalHydra
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from tfx.config.checks import UNREADABLE
from tfx.config.explain import check_yaml, explain, of_yaml
from tfx.config.grammar import check_words, listed_names, literal
from tfx.config.paths import absolute
from tfx.config.registry import entry_points, foreign_yaml, is_foreign, technique_class
from tfx.config.schema import LauncherConfig, Root
from tfx.errors import UserError

PRIMARY = "train"
_IN_ENTRY = re.compile(r"^\+?(?=dataset\.mix\.\d+\.)")
# What stands for the empty list of techniques.
_NO_TECHNIQUE = ("null", "none")
# No shell replaces a tilde in the middle of a word.
_AT_HOME = re.compile(r"^(hydra\.(?:run|sweep)\.dir)=(~.*)", re.DOTALL)


def register() -> None:
    """Tells Hydra of the schema, of tfx's launcher, and of other packages' techniques."""
    _register_own()
    store = ConfigStore.instance()
    for name, point in entry_points().items():
        if is_foreign(point):
            try:
                node = OmegaConf.create({name: _foreign_settings(name)})
            except UserError as error:
                # It must not stop runs that do not choose it.
                node = OmegaConf.create({name: {UNREADABLE: str(error)}})
            # A YAML may leave settings to the class: `check_technique` knows them, Hydra does not.
            OmegaConf.set_struct(node[name], False)
            store.store(group="technique", name=name, node=node, provider=point.value)
    OmegaConf.register_new_resolver("tfx.random_hex", lambda: secrets.token_hex(2), use_cache=True, replace=True)


@cache
def _register_own() -> None:
    """What never changes in a process: it takes a tenth of the time that composing does."""
    store = ConfigStore.instance()
    store.store(name="schema", node=Root, provider="tfx")
    store.store(group="hydra/launcher", name="tfx", node=LauncherConfig, provider="tfx")


def _foreign_settings(name: str) -> DictConfig:
    """The settings of another package's technique, from its YAML or else its class.

    Raises `UserError` if the YAML is broken, or if the class cannot be loaded.
    """
    file = foreign_yaml(entry_points()[name])
    if file is None:
        return OmegaConf.structured(technique_class(name).Settings)
    check_yaml(file)
    try:
        content = OmegaConf.create(file.read_text(encoding="utf-8"))
    except (OmegaConfBaseException, ValueError, RecursionError, yaml.YAMLError) as error:
        raise UserError(f"{file} is not readable YAML, repair it: {of_yaml(error)}") from error
    if not isinstance(content, DictConfig) or list(content) != [name] or not isinstance(content[name], DictConfig):
        raise UserError(f"{file} must hold only the settings of its technique: write '{name}:' and them below")
    return content[name]


@contextmanager
def hydra_ready() -> Iterator[None]:
    """Inside, Hydra can compose; on the command line with its instance, which knows the user's own folder."""
    if GlobalHydra.instance().is_initialized():
        yield
    else:
        with hydra.initialize_config_module("tfx.conf", version_base="1.3"):
            yield


def compose_tree(overrides: Sequence[str]) -> DictConfig:
    """What Hydra composes of the defaults and the overrides, unchecked; raises `UserError`."""
    register()
    check_words(overrides)
    try:
        with hydra_ready():
            return hydra.compose(PRIMARY, [literal(word) for word in in_place(overrides)])
    except Exception as error:  # Hydra raises any kind of error for wrong input
        raise explain(error) from error


def in_place(overrides: Sequence[str]) -> list[str]:
    """Overrides as Hydra takes them.

    ``+technique=…`` becomes ``technique=…``: Hydra would put it after the experiment, which may set it too. Null and
    ``none`` are the empty list of techniques. A setting of an entry of a list, as ``dataset.mix.0.path=…``, gets
    ``++``: what the entry does not say is no error. Hydra's folders may begin with ``~``, as every path of the config
    may. Raises `UserError` for two lists of techniques, or if no home folder is known.
    """
    lists = [word for word in overrides if word.startswith(("technique=", "+technique="))]
    named = [set(chain(*listed_names(word.removeprefix("+")))) for word in lists]
    if any(word.startswith("+") for word in lists) and not set().union(*named) <= named[-1]:
        raise UserError(f"{' and '.join(lists)}: the last list would count alone: write one, '+technique=[a,b]'")
    placed = [_with_lists(word.removeprefix("+")) if word in lists else word for word in overrides]
    found = [_AT_HOME.sub(lambda m: f"{m[1]}={absolute(m[2], m[1])}", word) for word in placed]
    return [_IN_ENTRY.sub("++", word) for word in found]


def _with_lists(word: str) -> str:
    """A choice of techniques, or of several in a sweep, without null and ``none``."""
    names = listed_names(word)
    if not any(len(each) == 1 and each[0].lower() in _NO_TECHNIQUE for each in names):
        return word
    lists = ("[]" if len(each) == 1 and each[0].lower() in _NO_TECHNIQUE else f"[{','.join(each)}]" for each in names)
    return f"technique={','.join(lists)}"
