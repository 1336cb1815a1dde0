"""The command line of `tfx train` and `tfx ablate`: Hydra reads it, and calls a task for each job with its config."""

from __future__ import annotations

import argparse
import logging
import os
import sys
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, NoReturn

import hydra
from hydra._internal.utils import get_args_parser
from hydra.core.hydra_config import HydraConfig
from hydra.errors import HydraException, MissingConfigException, OverrideParseException
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from tfx.config.compose import check, compose_values
from tfx.config.driver import PRIMARY, in_place, register
from tfx.config.explain import check_yaml, explain
from tfx.config.grammar import check_words, literal, not_grammar, parse, quoted
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
    `UserError` for whatever is wrong with the config; of a sweep's jobs, the first one's.
    """
    register()
    fault: Exception | None = None

    def job(composed: DictConfig) -> Any:
        nonlocal fault
        settings = HydraConfig.get()
        try:
            # As they were typed: Hydra's list would resolve what interpolations they hold.
            found = [str(word) for word in OmegaConf.to_container(settings.overrides.task, resolve=False) or ()]
            typed = [as_typed.get(word, word) for word in found]
            # A run's own config, named by --config-name, is whole already.
            is_new = settings.job.config_name == PRIMARY
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
    overrides, flags = split_flags(in_place(arguments))
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
            hydra.main(version_base="1.3", config_path=_CONF, config_name=PRIMARY)(job)()
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


def composed_for_help(arguments: Sequence[str]) -> tuple[list[str], dict[str, Any], dict[str, Any]]:
    """The overrides among ``arguments``, the values that they compose, and what they set of ``hydra.launcher``.

    A sweep has no one value for a key: with ``-m`` no override is taken. Raises `UserError`.
    """
    overrides, flags = split_flags(in_place(arguments))
    flagged = _parse_flags(flags)
    if flagged.multirun:
        overrides = []
    folder = flagged.config_dir
    place = [] if folder is None else [f"hydra.searchpath=[{quoted(f'file://{Path(folder).absolute()}')}]"]
    typed = dict(map(parse, (word for word in overrides if word.lstrip("+").startswith("hydra.launcher."))))
    return overrides, compose_values([*overrides, *place]), typed


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
    from tfx.config.describe import GROUPS, choices

    for group in GROUPS:
        for file in (file for place in places for file in sorted((place / group).glob("*.yml"))):
            if file.stem in choices(group) or file.with_suffix(".yaml").exists():
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
        not of_hydra and any(n.startswith("tfx.") and not n.startswith("tfx.config.") for n in names)
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


def split_flags(arguments: Sequence[str]) -> tuple[list[str], list[str]]:
    """The overrides, and the flags with their values: Hydra's parser refuses overrides on both sides of a flag."""
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
