"""Turns errors of Hydra, OmegaConf and YAML into one line with a remedy."""

from __future__ import annotations

import os
import re
from pathlib import Path

import yaml
from hydra.errors import HydraException, MissingConfigException
from omegaconf.errors import GrammarParseError, InterpolationResolutionError, OmegaConfBaseException

from tfx.config.keys import all_keys, unknown_key
from tfx.config.registry import entry_points, technique_class
from tfx.errors import UserError, unknown

# Far more than any config has; nested aliases can expand a short text to any size.
_MAX_YAML_NODES = 100_000


def check_yaml(path: Path) -> None:
    """Raises `UserError` for a file that is not UTF-8, or whose aliases expand to more than any config holds.

    Other errors are left to its reader.
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
            sizes[id(node)] = _MAX_YAML_NODES  # the size of a node inside itself
            inner = node.value if isinstance(node, yaml.CollectionNode) else ()
            parts = (part for item in inner for part in (item if isinstance(item, tuple) else (item,)))
            sizes[id(node)] = 1 + sum(map(size, parts))
        return sizes[id(node)]

    try:
        root = yaml.compose(text, Loader=yaml.SafeLoader)
        if root is not None and size(root) > _MAX_YAML_NODES:
            raise UserError(f"{path}: its aliases (*name) expand to more than {_MAX_YAML_NODES:,} values: write fewer")
    except (yaml.YAMLError, RecursionError):
        return


def explain(error: Exception) -> UserError:
    """One line, with a suggestion, for an error of Hydra or OmegaConf, or one that they let through."""
    if isinstance(error, OSError) and not isinstance(error, HydraException):
        where = Path(str(error.filename)).absolute()
        is_folder = os.path.lexists(where) and not where.is_file()
        hint = "" if is_folder else "; name another folder with hydra.run.dir=…, for a sweep with hydra.sweep.dir=…"
        return UserError(f"{where} cannot be made or read: {error.strerror}{hint}")
    if isinstance(error, yaml.YAMLError):
        return UserError(f"a file of the config is not YAML: {of_yaml(error)}")
    if isinstance(error, MissingConfigException) and error.missing_cfg_file and error.options is not None:
        group, _, choice = str(error.missing_cfg_file).rpartition("/")
        return unknown(group or "config", choice, error.options)
    if match := re.search(r"Could not load 'technique/([^']*)'", str(error)):
        return unknown("technique", match[1], entry_points())
    if 'Could not detect "srun"' in str(error):
        return UserError(
            "hydra/launcher=submitit_slurm: there is no srun here: run it on a login node of the cluster, or use "
            "hydra/launcher=submitit_local"
        )
    cause: BaseException = error
    while isinstance(cause.__cause__, (OmegaConfBaseException, HydraException)):
        cause = cause.__cause__
    text = str(cause)
    key = getattr(cause, "full_key", None)
    if isinstance(cause, InterpolationResolutionError | GrammarParseError):
        first = text.strip().splitlines()[0]
        return UserError(f"{key}: {first}; for a text with ${{ in it, write \\${{ in single quotes: '\\${{'")
    if "is not in struct" in text or "not in '" in text:
        # In a file of the config, the error names the file first.
        told = re.search(r"full_key: (\S+)", text)
        name = key or (told[1] if told else re.findall(r"'([^']*)'", text)[0])
        group, _, technique = name.partition(".")
        if group == "technique" and technique and "." not in technique:  # it is a group only where it is chosen
            return _not_chosen(technique)
        return _unknown(name)
    if isinstance(cause, IndexError):
        entry = re.sub(r"\[(\d+)\]", r".\1", str(key))  # as it is typed
        return UserError(f"{entry} is not there: entries count from 0, and a list that you type stands before them")
    match = re.search(r"Could not override '([^']+)'", str(error))
    if match:
        parent = match[1].split("=")[0].lstrip("+~")
        if parent not in all_keys():
            return _unknown(parent)
        if "No match in the defaults list" in text:
            return UserError(
                f"'{parent}' cannot be chosen anew beside a config that a run has saved: set single values, or start "
                "from its model with init_from=RUN"
            )
    first = text.strip().splitlines()[0] if text.strip() else type(cause).__name__
    if match := re.search(r"Value '(-?\d+)\.0' of type 'float' could not be converted to Integer", first):
        return UserError(f"{key} is a whole number: write {match[1]}")
    if match := re.search(r"Value '(.*)' of type '\w+' could not be converted to (Integer|Float)", first):
        kind = "whole number" if match[2] == "Integer" else "number"
        if key == "trainer.devices":
            return UserError(
                f"{key}={match[1]} is not a {kind}: leave it out for one process, or write how many GPUs there are, "
                "for a process on each"
            )
        return UserError(f"{key}={match[1]} is not a {kind}: write one, or leave it out for its default")
    if match := re.search(r"Cannot merge DictConfig with ListConfig", first):
        return UserError(f"{key or 'the value'} is a list, even with one entry: write [{{…}}] instead of {{…}}")
    if "is not Optional" in first:
        return UserError(f"{key} cannot be null: leave it out for its default")
    if "is not a ListConfig" in first:
        typed = re.search(rf"{re.escape(str(key))}='?([\w.-]+)'?$", str(error).strip().splitlines()[0])
        return UserError(f'{key} is a list, even with one value: type "{key}=[{typed[1] if typed else "value"}]"')
    if "Could not delete" in first or "does not support deletion" in first:
        return UserError(f"{first}: settings cannot be removed, set another value")
    return UserError(f"{key}: {first}" if key else f"the config cannot be composed: {first}")


def _unknown(name: str) -> UserError:
    """The error for a key that no group has: neither the schema's nor a technique's."""
    group, _, rest = name.partition(".")
    technique = rest.partition(".")[0]
    if group == "technique" and technique in entry_points():
        known = all_keys(technique_class(technique).Settings, f"technique.{technique}.")
        # An experiment may have some of its settings: the others come with the choice.
        return _not_chosen(technique) if name in known else unknown_key(name, known)
    return unknown_key(name, all_keys())


def _not_chosen(technique: str) -> UserError:
    """The error for a setting of a technique that the run does not have."""
    if technique not in entry_points():
        return unknown("technique", technique, entry_points())
    return UserError(
        f"technique '{technique}' has settings here but is not chosen: add +technique={technique}, or with others "
        f"'+technique=[{technique},…]'"
    )


def of_yaml(error: Exception) -> str:
    """What is wrong in a YAML file, and where."""
    if isinstance(error, yaml.MarkedYAMLError) and error.problem_mark is not None:
        mark = error.problem_mark
        where = "" if mark.name.startswith("<") else f" ({mark.name}, line {mark.line + 1})"
        return f"{error.problem}{where}"
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
