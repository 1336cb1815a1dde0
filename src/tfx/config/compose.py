"""How a config is composed by Hydra, merged into the schema, and checked; errors become one line with a remedy."""

from __future__ import annotations

import argparse
import logging
import math
import os
import re
import secrets
import sys
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, fields, is_dataclass, replace
from importlib import resources
from pathlib import Path
from typing import Any, NoReturn

import hydra
import yaml
from hydra._internal.utils import get_args_parser
from hydra.core.config_store import ConfigStore
from hydra.core.default_element import GroupDefault
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException, MissingConfigException, OverrideParseException
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import GrammarParseError, InterpolationResolutionError, OmegaConfBaseException

from tfx.config.grammar import check_words, escaped, literal, not_grammar, parse
from tfx.config.registry import entry_points, foreign_yaml, is_foreign, technique_class
from tfx.config.schema import BUDGET_UNITS, DEFAULT_BUDGET_SECONDS, RATES, Budget, LauncherConfig, Root
from tfx.errors import UserError, unknown

_CONF = "pkg://tfx.conf"
_PRIMARY = "train"
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
# Far above any config; aliases of aliases can unfold a short text to any size.
_MOST_YAML_NODES = 100_000
_LARGEST_INTEGER = 2**63 - 1
# Stands in place of the settings of another package's technique where those cannot be read, and says why.
_UNREADABLE = "cannot be read"
# Hydra's flags that are followed by a value.
_FLAGS_WITH_VALUE = (
    *("-c", "--cfg", "-p", "--package", "-i", "--info", "--experimental-rerun"),
    *("-cp", "--config-path", "-cn", "--config-name", "-cd", "--config-dir"),
)


def _register() -> None:
    store = ConfigStore.instance()
    store.store(name="schema", node=Root, provider="tfx")
    store.store(group="hydra/launcher", name="tfx", node=LauncherConfig, provider="tfx")
    for name, point in entry_points().items():
        if is_foreign(point):
            try:
                node = OmegaConf.create({name: _foreign_settings(name)})
            except UserError as error:
                # Runs that do not choose it go on.
                node = OmegaConf.create({name: {_UNREADABLE: str(error)}})
            # A YAML may leave settings to the class: which there are, `_check_technique` knows better than Hydra.
            OmegaConf.set_struct(node[name], False)
            store.store(group="technique", name=name, node=node, provider=point.value)
    OmegaConf.register_new_resolver("tfx.random_hex", lambda: secrets.token_hex(2), use_cache=True, replace=True)


def _foreign_settings(name: str) -> DictConfig:
    """What another package's technique is set to: by its YAML, else by its class.

    Raises `UserError` where the YAML is broken, or the class cannot be loaded.
    """
    file = foreign_yaml(entry_points()[name])
    if file is None:
        return OmegaConf.structured(technique_class(name).Settings)
    check_yaml(file)
    try:
        content = OmegaConf.create(file.read_text(encoding="utf-8"))
    except (OmegaConfBaseException, ValueError, RecursionError, yaml.YAMLError) as error:
        raise UserError(f"{file} is not readable YAML, mend it: {_of_yaml(error)}") from error
    if not isinstance(content, DictConfig) or list(content) != [name] or not isinstance(content[name], DictConfig):
        raise UserError(f"{file} must hold the settings of its technique and no more: write '{name}:' and them below")
    return content[name]


def run_with_hydra(task: Callable[[Root, list[str], str], Any], arguments: Sequence[str]) -> None:
    """Lets Hydra's command line compose configs from ``arguments`` and calls ``task`` for each job.

    ``task`` gets the checked config, the overrides that the user typed, and the job's directory. Raises
    `UserError` for whatever is wrong with the config; of a sweep's jobs, the first one's.
    """
    _register()
    fault: Exception | None = None

    def job(composed: DictConfig) -> Any:
        nonlocal fault
        settings = HydraConfig.get()
        try:
            # As they were typed: Hydra's list would resolve what interpolations they hold.
            found = [str(word) for word in OmegaConf.to_container(settings.overrides.task, resolve=False) or ()]
            typed = [as_typed.get(word, word) for word in found]
            # A run's own config, named by --config-name, is whole already.
            is_new = settings.job.config_name == _PRIMARY
            return task(check(composed, typed, is_new=is_new), typed, settings.runtime.output_dir)
        except Exception as error:
            if is_foreign_job():
                raise
            # Passed around Hydra, which would print words of its own.
            fault = fault or error
            return None
        finally:
            _remove_empty(Path(settings.runtime.output_dir))

    job.__module__ = "tfx"  # Hydra takes the job's name from here
    overrides, flags = split_flags(_in_place(arguments))
    sweep = any(flag in ("-m", "--multirun") for flag in flags)
    if not sweep:
        check_words(overrides)
    as_typed = {literal(word, sweep=sweep): word for word in overrides}
    before = sys.argv
    sys.argv = [before[0], *as_typed, *flags]
    places: list[Path] = []
    try:
        flagged = _parse_flags(sys.argv[1:])
        added = flagged.config_dir
        places = _own_places(added, flagged.config_path, overrides)
        _check_endings(places)
        for file in sorted(Path(added).glob("**/*.yaml")) if added else ():
            check_yaml(file)
        with _full_errors(), _hydra_on_stderr():
            hydra.main(version_base="1.3", config_path=_CONF, config_name=_PRIMARY)(job)()
    except Exception as error:
        for frame, _ in traceback.walk_tb(error.__traceback__):
            # Hydra fails between making the folder and the job, and its own config is gone by now.
            if frame.f_code.co_name == "run_job" and "output_dir" in frame.f_locals:
                _remove_empty(Path(str(frame.f_locals["output_dir"])).absolute())
        if _is_ours(error):
            raise
        if isinstance(error, OverrideParseException):
            raise not_grammar(str(error.override), error) from error
        raise _misnamed(error, places) or explain(error) from error
    finally:
        sys.argv = before
    if fault is not None:
        raise fault


def _parse_flags(words: Sequence[str]) -> argparse.Namespace:
    """What Hydra's command line makes of the words; what it does not know is a `UserError`, and no page of usage."""

    def fail(message: str) -> NoReturn:
        unknown_flags = message.removeprefix("unrecognized arguments: ")
        hint = "; a setting has no dashes" if unknown_flags != message and "=" in unknown_flags else ""
        raise UserError(f"{message}{hint}: `tfx train --hydra-help` lists the flags")

    parser = get_args_parser()
    parser.error = fail  # type: ignore[method-assign]
    return parser.parse_args(words)


def _own_places(config_dir: str | None, config_path: str | None, overrides: Sequence[str]) -> list[Path]:
    """The user's own folders of configs: those of Hydra's flags, and of ``hydra.searchpath``."""
    found = [config_dir, config_path]
    for word in overrides:
        if word.lstrip("+").startswith("hydra.searchpath="):
            with suppress(UserError):
                entries = parse(word)[1]
                found += map(str, entries if isinstance(entries, list) else [entries])
    return [Path(place.removeprefix("file://")) for place in found if place and not place.startswith("pkg://")]


def _check_endings(places: Sequence[Path]) -> None:
    """Raises `UserError` for a file ``.yml`` by the name of a choice that there is: the other would be taken unsaid."""
    ours = resources.files("tfx.conf")
    for place in places:
        for file in sorted(place.glob("*/*.yml")):
            name = f"{file.parent.name}/{file.stem}.yaml"
            if ours.joinpath(name).is_file() or (place / name).is_file():
                raise _other_ending(file)


def _misnamed(error: Exception, places: Sequence[Path]) -> UserError | None:
    """The error for a choice whose file in the user's own folders ends in ``.yml``: Hydra knows ``.yaml`` alone."""
    if not isinstance(error, MissingConfigException) or not error.missing_cfg_file:
        return None
    name = str(error.missing_cfg_file).removesuffix(".yml")
    return next((_other_ending(file) for place in places if (file := place / f"{name}.yml").is_file()), None)


def _other_ending(file: Path) -> UserError:
    return UserError(f"{file} is not looked for: rename it to {file.stem}.yaml")


def is_foreign_job() -> bool:
    """Whether a launcher other than ours called the task, maybe in another process: then raising is all it hears of.

    Such launchers finish their jobs and raise the first exception among them; ours starts processes, and no task.
    """
    return HydraConfig.get().mode == RunMode.MULTIRUN


def _is_ours(error: Exception) -> bool:
    """Whether an error comes from tfx, as against Hydra at work on the user's input, which raises any kind."""
    names = [frame.f_globals.get("__name__", "") for frame, _ in traceback.walk_tb(error.__traceback__)]
    of_hydra = isinstance(error, HydraException | OmegaConfBaseException)
    return type(error).__module__.startswith("tfx.") or (
        not of_hydra and any(n.startswith("tfx.") and n != __name__ for n in names)
    )


def _remove_empty(folder: Path) -> None:
    """Removes the folder that Hydra made for a job that wrote nothing, and below here its empty parents."""
    here = Path.cwd()
    if folder in (here, *here.parents):
        return
    for path in (folder, *(parent for parent in folder.parents if here in parent.parents)):
        try:
            path.rmdir()
        except FileNotFoundError:  # the run has removed what it had written
            continue
        except OSError:
            return


def compose(overrides: Sequence[str]) -> Root:
    """The checked config of ``overrides`` on top of the defaults, without running anything."""
    return check(_compose(overrides), overrides, is_new=True)


def load(path: Path) -> Root:
    """The config that a run saved."""
    check_yaml(path)
    try:
        return check(OmegaConf.load(path), ())  # type: ignore[arg-type]
    except UserError as error:
        raise UserError(f"{path}: {error}") from error
    except (OSError, OmegaConfBaseException, ValueError, RecursionError, yaml.YAMLError) as error:
        raise UserError(f"{path} is not a readable config: {_of_yaml(error)}") from error


def check_yaml(path: Path) -> None:
    """Raises `UserError` for a file that is not UTF-8, or whose aliases unfold to more than any config holds.

    What else is wrong in it is for its reader to say.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise UserError(f"{path} is not UTF-8 (byte {error.start:,}): convert the file to UTF-8") from None
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}") from error
    if "&" not in text or "*" not in text:
        return
    sizes: dict[int, int] = {}

    def size(node: yaml.Node) -> int:
        if id(node) not in sizes:
            sizes[id(node)] = _MOST_YAML_NODES  # what a node that holds itself counts for, inside itself
            inner = node.value if isinstance(node, yaml.CollectionNode) else ()
            parts = (part for item in inner for part in (item if isinstance(item, tuple) else (item,)))
            sizes[id(node)] = 1 + sum(map(size, parts))
        return sizes[id(node)]

    try:
        root = yaml.compose(text, Loader=yaml.SafeLoader)
        if root is not None and size(root) > _MOST_YAML_NODES:
            raise UserError(f"{path}: its aliases (*name) unfold to more than {_MOST_YAML_NODES:,} values: write fewer")
    except (yaml.YAMLError, RecursionError):
        return


def change(config: Root, overrides: Sequence[str]) -> Root:
    """A saved config with ``overrides`` on top: values (a.b=1), or whole groups (dataset=multi30k) chosen anew."""
    _register()
    saved: Any = OmegaConf.merge(OmegaConf.structured(Root), escaped(asdict(config)))
    groups = {f.name for f in fields(Root) if is_dataclass(f.default_factory)} | {"technique"}
    chosen = [o for o in overrides if o.lstrip("+").split("=", 1)[0] in groups]
    check_words(overrides)
    if chosen:
        composed = _compose(chosen)
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
        except Exception as error:  # as Hydra, it lets errors of any kind through
            raise explain(error) from error
    return check(saved, values)


def from_scratch(config: Root) -> Root:
    """A config for another model that begins untrained, in the tokens of the run that ``init_from`` names.

    Where that is a model file, its run's tokenizer is taken; `UserError` is raised for one that lies alone.
    """
    if config.init_from is None:
        return config
    origin = Path(config.init_from)
    path = (origin if origin.is_dir() else origin.parent) / "tokenizer.json"
    if not path.is_file():
        raise UserError(
            f"init_from={origin}: another model is to be trained in its tokens, and there is no {path.name} beside it: "
            "name the run's directory"
        )
    tokenizer = replace(config.dataset.tokenizer, path=str(path))
    return replace(config, init_from=None, dataset=replace(config.dataset, tokenizer=tokenizer))


def to_yaml(config: Root) -> str:
    """The resolved config as YAML; it reruns with no other file."""
    return _SAVED_HEAD + OmegaConf.to_yaml(OmegaConf.create(escaped(asdict(config))))


def _in_place(overrides: Sequence[str]) -> list[str]:
    """``+technique=…`` as ``technique=…``: Hydra would put what is added behind the experiment, which may set it."""
    return [override.removeprefix("+") if override.startswith("+technique=") else override for override in overrides]


def split_flags(arguments: Sequence[str]) -> tuple[list[str], list[str]]:
    """The overrides, and the flags with their values: Hydra's parser refuses overrides on both sides of a flag."""
    overrides: list[str] = []
    flags: list[str] = []
    for before, word in zip(["", *arguments], arguments, strict=False):
        is_value = before in _FLAGS_WITH_VALUE and (before not in ("-i", "--info") or "=" not in word)
        (flags if word.startswith("-") or is_value else overrides).append(word)
    return overrides, flags


@contextmanager
def _hydra() -> Iterator[None]:
    """Inside, Hydra is there to compose: the command line's, which allows no second and knows the user's own folder."""
    if GlobalHydra.instance().is_initialized():
        yield
    else:
        with hydra.initialize_config_module("tfx.conf", version_base="1.3"):
            yield


def _compose(overrides: Sequence[str]) -> DictConfig:
    _register()
    check_words(overrides)
    try:
        with _hydra():
            return hydra.compose(_PRIMARY, [literal(word) for word in _in_place(overrides)])
    except Exception as error:  # Hydra raises any kind where the input is wrong
        raise explain(error) from error


@contextmanager
def _full_errors() -> Iterator[None]:
    """Hydra prints errors and exits by itself unless this variable is set; here they become one line."""
    before = os.environ.get("HYDRA_FULL_ERROR")
    os.environ["HYDRA_FULL_ERROR"] = "1"
    try:
        yield
    finally:
        if before is None:
            del os.environ["HYDRA_FULL_ERROR"]
        else:
            os.environ["HYDRA_FULL_ERROR"] = before


@contextmanager
def _hydra_on_stderr() -> Iterator[None]:
    """What Hydra says goes to stderr: stdout is for what was asked for.

    Its own way to configure logging would close the handlers of every library first, and with them files of theirs.
    """
    logger, handler = logging.getLogger("hydra"), logging.StreamHandler(sys.stderr)
    handler.setFormatter(logging.Formatter("[%(asctime)s][HYDRA] %(message)s"))
    before = logger.level, logger.propagate
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    logger.propagate = False
    try:
        yield
    finally:
        logger.removeHandler(handler)
        logger.setLevel(before[0])
        logger.propagate = before[1]


# --- checks -----------------------------------------------------------------------------------------


def check(composed: DictConfig, typed: Sequence[str], *, is_new: bool = False) -> Root:
    """Merges what was composed into the schema and checks names, types, ranges and combinations.

    ``typed`` are the user's own overrides, which decide which budget counts. A new config, as against one that
    a run has saved, inherits what ``init_from`` brings.
    """
    try:
        content = OmegaConf.to_container(composed, resolve=True)
    except (OmegaConfBaseException, RecursionError) as error:
        raise explain(error) from error
    if not isinstance(content, dict):
        raise UserError("the config is a list, not groups of settings")
    values = {str(key): value for key, value in content.items() if key not in ("experiment", "hydra", "defaults")}
    _check_keys(values, Root, "")
    _check_given(values, "")
    _make_absolute(values, Root, "")
    if is_new and values.get("init_from") is not None:
        _inherit(values, typed)
    _choose_budget(values.setdefault("trainer", {}).setdefault("budget", {}), typed)
    try:
        config: Root = OmegaConf.to_object(OmegaConf.merge(OmegaConf.structured(Root), escaped(values)))  # type: ignore[assignment]
    except OmegaConfBaseException as error:
        raise explain(error) from error
    check_values(config, "")
    config.technique = {name: _check_technique(name, config.technique[name]) for name in sorted(config.technique)}
    _check_combinations(config)
    return config


def _inherit(values: dict[str, Any], typed: Sequence[str]) -> None:
    """Takes the model, and the dataset where none is named, from the run that ``init_from`` names.

    Raises `UserError` where the user names a model or tokenizer besides. A model file has no config to inherit.
    """
    origin = Path(str(values["init_from"]))
    keys = [override.lstrip("+").split("=", 1)[0] for override in typed]
    keys += [key for key in _said_by_experiments(typed) if key not in keys]
    tokenizer = next((key for key in keys if key.startswith("dataset.tokenizer")), None)
    if tokenizer is not None:
        raise UserError(f"init_from={origin} brings its tokenizer, and {tokenizer} names another: leave it out")
    if not (origin / "config.yaml").is_file():
        return
    saved = asdict(load(origin / "config.yaml"))
    for key in keys:
        names = [key.partition(".")[2]] if key.startswith("model.") else list(saved["model"]) if key == "model" else []
        for name in names:
            if name in RATES or name == "name":
                saved["model"][name] = values["model"][name]
            elif values["model"][name] != saved["model"].get(name):
                raise UserError(
                    f"init_from={origin} brings its model (model.{name}={saved['model'].get(name)}), and {key} names "
                    f"another (model.{name}={values['model'][name]}): leave it out"
                )
    values["model"] = saved["model"]
    if "dataset" not in keys:
        dataset = OmegaConf.create(saved["dataset"])
        for key in keys:
            if key.startswith("dataset."):
                _, _, name = key.partition(".")
                OmegaConf.update(dataset, name, OmegaConf.select(OmegaConf.create(values["dataset"]), name))
        values["dataset"] = OmegaConf.to_container(dataset)


def _said_by_experiments(typed: Sequence[str]) -> list[str]:
    """Keys and groups (``model.dropout``, ``dataset``) that the chosen experiments' files name, default or not."""
    keys: list[str] = []
    with _hydra():
        for override in OverridesParser.create().parse_overrides([o for o in typed if "experiment=" in o]):
            if override.key_or_group == "experiment":
                chosen = override.value()
                for name in chosen if isinstance(chosen, list) else [chosen]:
                    keys += _said_by(f"experiment/{name}")
    return keys


def _said_by(path: str) -> list[str]:
    """The same for one file, and for those of its folder that its defaults list takes in."""
    found = GlobalHydra.instance().config_loader().repository.load_config(path)  # type: ignore[attr-defined]
    if found.header["package"] != "_global_":
        return []  # its keys are its own
    keys: list[str] = []
    for default in found.defaults_list:
        if isinstance(default, GroupDefault):
            keys.append(str(default.group).removeprefix("/"))
        elif default.path != "_self_":
            keys += _said_by(f"{path.rpartition('/')[0]}/{default.path}")
    return [*keys, *_leaves(OmegaConf.to_container(found.config, resolve=False), "")]


def _leaves(values: Any, prefix: str) -> Iterator[str]:
    """The dotted keys of nested mappings."""
    for name, value in values.items():
        if isinstance(value, dict):
            yield from _leaves(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}"


def _make_absolute(values: dict[str, Any], schema: Any, prefix: str) -> None:
    """Paths as absolute ones, so that the run that saves them does not depend on the folder it was started in."""
    for f in fields(schema):
        value = values.get(f.name)
        if is_dataclass(f.default_factory) and isinstance(value, dict):
            _make_absolute(value, f.default_factory, f"{prefix}{f.name}.")
        elif f.metadata.get("path") and isinstance(value, str):
            try:
                values[f.name] = str(_absolute(Path(value).expanduser()))
            except RuntimeError:
                raise UserError(
                    f"{prefix}{f.name}={value}: no home folder is known for it (is HOME set?): write the path in full"
                ) from None


def _absolute(path: Path) -> Path:
    """The path from the root without ``..``, which after a symbolic link leaves the folder that the link leads to."""
    whole = path.absolute()
    found = Path(whole.anchor)
    for part in whole.parts[1:]:
        if part != "..":
            found /= part
        else:
            found = (Path(os.path.realpath(found)) if _is_link(found) else found).parent
    return found


def _is_link(path: Path) -> bool:
    with suppress(OSError):  # a name that is too long
        return path.is_symlink()
    return False


def _check_technique(name: str, values: Any) -> dict[str, Any]:
    """All settings of a technique as plain values, checked like any others.

    Raises `UserError` also where another package's technique cannot be loaded, or its YAML cannot be read.
    """
    if isinstance(values, dict) and _UNREADABLE in values:
        raise UserError(values[_UNREADABLE])
    schema = technique_class(name).Settings
    prefix = f"technique.{name}."
    if not isinstance(values, dict):
        raise UserError(f"technique.{name}={values} is not a group of settings: set {prefix}<name>=…")
    _check_keys(values, schema, prefix)
    _make_absolute(values, schema, prefix)
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


def _check_keys(values: dict[str, Any], schema: Any, prefix: str) -> None:
    known = {f.name: f for f in fields(schema)}
    for key, value in values.items():
        if key not in known:
            raise unknown("key", f"{prefix}{key}", [f"{prefix}{name}" for name in known])
        factory = known[key].default_factory
        if is_dataclass(factory):
            if not isinstance(value, dict):
                raise UserError(f"{prefix}{key}={value} is not a group of settings: set {prefix}{key}.<name>=…")
            _check_keys(value, factory, f"{prefix}{key}.")


def _check_given(values: dict[str, Any], prefix: str) -> None:
    """Raises `UserError` for the text ``???``, which OmegaConf takes for a value that is yet to come."""
    for key, value in values.items():
        if isinstance(value, dict):
            _check_given(value, f"{prefix}{key}.")
        elif "???" in (value if isinstance(value, list) else [value]):
            raise UserError(f"{prefix}{key}=??? has no value: ??? stands for one that is to be given, so give another")


def _choose_budget(budget: dict[str, Any], typed: Sequence[str]) -> None:
    """Leaves one budget: the one that the user typed, else the config's, else the default."""
    assigned = []
    for override in typed:
        match = re.fullmatch(r"\+*trainer\.budget\.(\w+)=(.*)", override)
        if match and match[2] not in ("null", "None", ""):
            assigned.append(match[1])
    named = [name for name in BUDGET_UNITS if name in assigned]
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


def check_values(node: Any, prefix: str) -> None:
    """Raises `UserError` for a value of a settings dataclass that is out of its range or choices."""
    for f in fields(node):
        name, value, meta = f"{prefix}{f.name}", getattr(node, f.name), f.metadata
        if is_dataclass(value):
            check_values(value, f"{name}.")
            continue
        choices = meta.get("choices")
        if choices and value is not None and value not in choices:
            raise unknown(name, str(value), choices)
        for number in value if isinstance(value, list) else [value]:
            if isinstance(value, list) and isinstance(number, dict | list):  # merging lets them through
                raise UserError(f"{name}={value} must be a list of single values")
            if isinstance(number, bool) or not isinstance(number, (int, float)):
                continue
            _check_range(name, number, meta)


def _check_range(name: str, number: float, meta: Any) -> None:
    bounds = [
        ("minimum", "at least", lambda bound: number >= bound),
        ("maximum", "at most", lambda bound: number <= bound),
        ("above", "above", lambda bound: number > bound),
        ("below", "below", lambda bound: number < bound),
    ]
    wanted = [f"{words} {meta[key]:g}" for key, words, _ in bounds if meta.get(key) is not None]
    if isinstance(number, int) and abs(number) > _LARGEST_INTEGER:
        raise UserError(f"{name}={number} is out of range: it is no 64-bit integer")
    if not math.isfinite(number):
        raise UserError(f"{name}={number:g} is out of range: it must be finite")
    if any(meta.get(key) is not None and not holds(meta[key]) for key, _, holds in bounds):
        raise UserError(f"{name}={number:g} is out of range: it must be {' and '.join(wanted)}")


def _check_combinations(config: Root) -> None:
    model, dataset, schedule = config.model, config.dataset, config.schedule
    if model.family != dataset.task and config.init_from is None:
        kind = {"seq2seq": "text to text", "lm": "a language model"}
        example = {"seq2seq": "seq2seq_tiny", "lm": "gpt_nano"}
        raise UserError(
            f"model '{model.name}' is for {kind[model.family]} and dataset '{dataset.name}' for {kind[dataset.task]}: "
            f"choose a model for it, such as model={example[dataset.task]}"
        )
    if config.trainer.keep_zeros and config.init_from is None:
        raise UserError(
            "trainer.keep_zeros keeps the zeros of a model that training starts from: name it with init_from=…"
        )
    if len(config.optimizer.betas) != 2:
        raise UserError(f"optimizer.betas={config.optimizer.betas} must be two numbers")
    if schedule.name == "wsd" and schedule.warmup + schedule.decay > 1:
        raise UserError(
            f"schedule.warmup={schedule.warmup:g} and schedule.decay={schedule.decay:g} are more than the whole budget"
        )
    metric = config.trainer.early_stopping.metric
    watchable = ["loss", "perplexity"] + (["bits_per_byte"] if dataset.task == "lm" else [])
    if metric is not None and metric not in watchable:
        raise unknown("trainer.early_stopping.metric", metric, watchable)
    if config.evaluation.method == "beam" and dataset.task == "lm":
        raise UserError("evaluation.method=beam is for text to text: a language model decodes by greedy or sample")
    if dataset.metrics and dataset.task == "lm":
        raise UserError(
            f"dataset.metrics={dataset.metrics} are of generated text: a language model is scored by its loss"
        )


# --- errors -----------------------------------------------------------------------------------------


def explain(error: Exception) -> UserError:
    """One line, with a suggestion, for an error of Hydra or OmegaConf, or one that they let through."""
    if isinstance(error, OSError) and not isinstance(error, HydraException):
        where = Path(str(error.filename)).absolute()
        hint = "" if os.path.lexists(where) else "; another folder for what is written is named with hydra.run.dir=…"
        return UserError(f"{where} cannot be made or read: {error.strerror}{hint}")
    if isinstance(error, yaml.YAMLError):
        return UserError(f"a file of the config is not YAML: {_of_yaml(error)}")
    if isinstance(error, MissingConfigException) and error.missing_cfg_file and error.options is not None:
        group, _, choice = str(error.missing_cfg_file).rpartition("/")
        return unknown(group or "config", choice, error.options)
    cause: BaseException = error
    while isinstance(cause.__cause__, (OmegaConfBaseException, HydraException)):
        cause = cause.__cause__
    text = str(cause)
    key = getattr(cause, "full_key", None)
    if isinstance(cause, InterpolationResolutionError | GrammarParseError):
        first = text.strip().splitlines()[0]
        return UserError(f"{key}: {first}; to mean a text with ${{ in it, write \\${{ there, in single quotes: '\\${{'")
    if "is not in struct" in text or "not in '" in text:
        name = key or re.findall(r"'([^']*)'", text)[0]
        return unknown("key", name, _all_keys())
    match = re.search(r"Could not override '([^']+)'", str(error))
    if match:
        parent = match[1].split("=")[0].lstrip("+~")
        if parent not in _all_keys():
            return unknown("key", parent, _all_keys())
    first = text.strip().splitlines()[0] if text.strip() else type(cause).__name__
    if match := re.search(r"Value '(-?\d+)\.0' of type 'float' could not be converted to Integer", first):
        return UserError(f"{key} is a whole number: write {match[1]}")
    if "is not Optional" in first:
        return UserError(f"{key} cannot be null: leave it out for its default")
    if "is not a ListConfig" in first:
        return UserError(f"{key} is a list, of one value too: type \"{key}=['value']\"")
    if "Could not delete" in first or "does not support deletion" in first:
        return UserError(f"{first}: settings cannot be taken out, give them another value")
    return UserError(f"{key}: {first}" if key else f"the config cannot be composed: {first}")


def _of_yaml(error: Exception) -> str:
    """What is wrong in a YAML file, and where."""
    if isinstance(error, yaml.MarkedYAMLError) and error.problem_mark is not None:
        mark = error.problem_mark
        where = "" if mark.name.startswith("<") else f" ({mark.name}, line {mark.line + 1})"
        return f"{error.problem}{where}"
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


def _all_keys() -> list[str]:
    found: list[str] = []

    def visit(schema: Any, prefix: str) -> None:
        for f in fields(schema):
            found.append(f"{prefix}{f.name}")
            if is_dataclass(f.default_factory):
                visit(f.default_factory, f"{prefix}{f.name}.")

    visit(Root, "")
    return found
