"""The command line of `tfx train` and `tfx ablate`: Hydra reads it, and calls a task for each job with its config."""

from __future__ import annotations

import argparse
import logging
import os
import shutil
import sys
import traceback
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, NoReturn

import hydra
from hydra._internal.utils import get_args_parser
from hydra.core.hydra_config import HydraConfig
from hydra.errors import HydraException, MissingConfigException, OverrideParseException
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf, open_dict
from omegaconf.errors import OmegaConfBaseException

from tfx.config.checks import check_names
from tfx.config.compose import check, compose_values
from tfx.config.explain import check_yaml, explain
from tfx.config.grammar import check_words, literal, not_grammar, of_job, parse, quoted, where_chosen
from tfx.config.hydra_driver import PRIMARY, in_place, register
from tfx.config.schema import Root
from tfx.errors import UserError

_CONF = "pkg://tfx.conf"
# Hydra's flags that are followed by a value.
_FLAGS_WITH_VALUE = (
    *("-c", "--cfg", "-p", "--package", "-i", "--info", "--experimental-rerun"),
    *("-cp", "--config-path", "-cn", "--config-name", "-cd", "--config-dir"),
)


def run_with_hydra(task: Callable[[Root, list[str], str], Any], arguments: Sequence[str]) -> None:
    """Lets Hydra's command line compose configs from ``arguments`` and calls ``task`` for each job.

    ``task`` gets the checked config, the overrides that the user typed, and the job's directory. Raises
    `UserError` for any error in the config; in a sweep, for the first one.
    """
    register()
    fault: Exception | None = None

    def job(composed: DictConfig) -> Any:
        nonlocal fault
        settings = HydraConfig.get()
        try:
            # As typed: Hydra's list would resolve interpolations in them.
            found = [str(word) for word in OmegaConf.to_container(settings.overrides.task, resolve=False) or ()]
            typed = [as_typed.get(word, word) for word in found]
            if is_foreign_job():
                typed, idle = of_job(typed)
                with open_dict(composed):
                    for name in idle:
                        del composed.technique[name]
            # A run's own config, named by --config-name, is complete already.
            is_new = settings.job.config_name == PRIMARY
            config = check(composed, typed, is_new=is_new)
            if left_out := sorted(composed.technique.keys() - config.technique.keys()):
                which = next(word for word in typed if word.startswith("technique="))
                print(f"note: {which} leaves out {', '.join(left_out)} of the experiment", file=sys.stderr)
            return task(config, typed, settings.runtime.output_dir)
        except Exception as error:
            if is_foreign_job():
                raise
            # Passed around Hydra, which would print its own message.
            fault = fault or error
            return None
        finally:
            _remove_empty(Path(settings.runtime.output_dir), there)

    job.__module__ = "tfx"  # Hydra takes the job's name from here
    overrides, flags = split_flags(in_place(arguments))
    sweep = any(flag in ("-m", "--multirun") for flag in flags)
    if sweep:
        check_names(overrides)  # before any job starts
        if any(word.lstrip("+").startswith("hydra.run.dir=") for word in overrides):
            raise UserError("hydra.run.dir is for a single run: name the folder of a sweep with hydra.sweep.dir")
        overrides = where_chosen(overrides)
    else:
        check_words(overrides)
    there = _there_already(overrides)
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
            hydra.main(version_base="1.3", config_path=_CONF, config_name=PRIMARY)(job)()
    except Exception as error:
        for frame, _ in traceback.walk_tb(error.__traceback__):
            # Hydra may fail after making the folder and before the job, and its config is gone by now.
            if frame.f_code.co_name == "run_job" and "output_dir" in frame.f_locals:
                _remove_empty(Path(str(frame.f_locals["output_dir"])).absolute(), there)
            if frame.f_code.co_name == "sweep" and "sweep_dir" in frame.f_locals:
                place = Path(str(frame.f_locals["sweep_dir"])).absolute()
                _remove_unused(place, there, logs=isinstance(error, UserError))
        if _is_ours(error):
            raise
        if isinstance(error, OverrideParseException):
            raise not_grammar(str(error.override), error) from error
        raise _misnamed(error, places) or explain(error) from error
    finally:
        sys.argv = before
    if fault is not None:
        raise fault


def composed_for_help(arguments: Sequence[str]) -> tuple[list[str], dict[str, Any], dict[str, Any]]:
    """The overrides among ``arguments``, the values that they compose, and what they set of ``hydra.launcher``.

    A sweep has no one value for a key: with ``-m`` no override is taken. Raises `UserError`.
    """
    overrides, flags = split_flags(in_place(arguments))
    flagged = _parse_flags(flags)
    if flagged.multirun:
        overrides = []
    place = searchpath(flags)
    typed = dict(map(parse, (word for word in overrides if word.lstrip("+").startswith("hydra.launcher."))))
    return overrides, compose_values([*overrides, *place]), typed


def searchpath(flags: Sequence[str]) -> list[str]:
    """The override that lets `compose` find what the folder of the flag ``--config-dir`` holds; none without it."""
    folder = _parse_flags(flags).config_dir
    return [] if folder is None else [f"hydra.searchpath=[{quoted(f'file://{Path(folder).absolute()}')}]"]


def _parse_flags(words: Sequence[str]) -> argparse.Namespace:
    """The words as Hydra's parser reads them; an unknown one raises `UserError` instead of printing the usage."""

    def fail(message: str) -> NoReturn:
        unknown_flags = message.removeprefix("unrecognized arguments: ")
        hint = "; a setting has no dashes" if unknown_flags != message and "=" in unknown_flags else ""
        raise UserError(f"{message}{hint}: `tfx train --hydra-help` lists the flags")

    parser = get_args_parser()
    parser.error = fail  # type: ignore[method-assign]
    return parser.parse_args(words)


def _own_places(config_dir: str | None, config_path: str | None, overrides: Sequence[str]) -> list[Path]:
    """The user's own config folders, from Hydra's flags and from ``hydra.searchpath``."""
    found = [config_dir, config_path]
    for word in overrides:
        if word.lstrip("+").startswith("hydra.searchpath="):
            with suppress(UserError):
                entries = parse(word)[1]
                found += map(str, entries if isinstance(entries, list) else [entries])
    return [Path(place.removeprefix("file://")) for place in found if place and not place.startswith("pkg://")]


def _check_endings(places: Sequence[Path]) -> None:
    """Raises `UserError` for a ``.yml`` file named like an existing choice, which Hydra would silently use instead."""
    from tfx.config.choices import GROUPS, choices

    for group in GROUPS:
        for file in (file for place in places for file in sorted((place / group).glob("*.yml"))):
            if file.stem in choices(group) or file.with_suffix(".yaml").exists():
                raise _other_ending(file)


def _misnamed(error: Exception, places: Sequence[Path]) -> UserError | None:
    """The error for a choice whose file in the user's own folders ends in ``.yml``: Hydra reads only ``.yaml``."""
    if not isinstance(error, MissingConfigException) or not error.missing_cfg_file:
        return None
    name = str(error.missing_cfg_file).removesuffix(".yml")
    return next((_other_ending(file) for place in places if (file := place / f"{name}.yml").is_file()), None)


def _other_ending(file: Path) -> UserError:
    return UserError(f"{file} is not read because of its ending: rename it to {file.stem}.yaml")


def is_foreign_job() -> bool:
    """Whether a launcher other than ours called the task, perhaps in another process: it learns of a failure only by an
    exception.

    Such launchers finish their jobs and raise the first exception among them; ours starts processes instead.
    """
    return HydraConfig.get().mode == RunMode.MULTIRUN


def _is_ours(error: Exception) -> bool:
    """Whether an error comes from tfx, and not from Hydra reading the user's input, which can raise anything."""
    names = [frame.f_globals.get("__name__", "") for frame, _ in traceback.walk_tb(error.__traceback__)]
    of_hydra = isinstance(error, HydraException | OmegaConfBaseException)
    return type(error).__module__.startswith("tfx.") or (
        not of_hydra and any(n.startswith("tfx.") and not n.startswith("tfx.config.") for n in names)
    )


def _there_already(overrides: Sequence[str]) -> set[Path]:
    """The folder that the user names for a run or a sweep, and those above it, where they exist."""
    found: set[Path] = set()
    for word in overrides:
        key, _, value = word.lstrip("+").partition("=")
        if key not in ("hydra.run.dir", "hydra.sweep.dir"):
            continue
        if not value:
            raise UserError(f"{key}= is empty: name a folder, or leave it out")
        path = Path(value.strip("'\"")).absolute()
        found |= {place for place in (path, *path.parents) if os.path.isdir(place)}  # noqa: PTH112 - also of a name too long
    return found


def _remove_empty(folder: Path, kept: Collection[Path]) -> None:
    """Removes the folder that Hydra made for a job that wrote nothing, and its empty parents below this folder.

    Those that are to be ``kept`` were there before.
    """
    here = Path.cwd()
    if folder in (here, *here.parents, *kept):
        return
    for path in (folder, *(parent for parent in folder.parents if here in parent.parents)):
        if path in kept:
            return
        try:
            path.rmdir()
        except FileNotFoundError:  # the run removed its folder already
            continue
        except OSError:
            return


def _remove_unused(sweep: Path, kept: Collection[Path], *, logs: bool) -> None:
    """Removes the folder of a sweep in which no job left anything.

    With ``logs`` also where there are the launcher's own logs, which nobody needs where the user's input is at fault.
    """
    written = {"multirun.yaml", *([".submitit"] if logs else [])}
    if sweep.is_dir() and {path.name for path in sweep.iterdir()} <= written:
        (sweep / "multirun.yaml").unlink(missing_ok=True)
        shutil.rmtree(sweep / ".submitit", ignore_errors=True)
        _remove_empty(sweep, kept)


def split_flags(arguments: Sequence[str]) -> tuple[list[str], list[str]]:
    """The overrides, and the flags with their values: Hydra's parser rejects overrides on both sides of a flag."""
    overrides: list[str] = []
    flags: list[str] = []
    for before, word in zip(["", *arguments], arguments, strict=False):
        is_value = before in _FLAGS_WITH_VALUE and (before not in ("-i", "--info") or "=" not in word)
        (flags if word.startswith("-") or is_value else overrides).append(word)
    return overrides, flags


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
    """Sends Hydra's messages to stderr: stdout is for results.

    Hydra's own logging setup would first close the handlers of all libraries, and their files.
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
