"""What a command of many runs is asked for: its own settings, and the config and launcher that its jobs share."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from difflib import get_close_matches
from pathlib import Path
from typing import Any, TypeVar

from tfx.config import describe
from tfx.config.schema import AUTO, LauncherConfig, Root
from tfx.errors import UserError, unknown
from tfx.experiments.machine import Machine
from tfx.experiments.queue import CLUSTERS, Queue
from tfx.terminal.tables import Sheet, settings_sheet

Settings = TypeVar("Settings")


@dataclass(frozen=True)
class Request:
    """What the command line asks for: the config of its jobs before they differ, and where and how they run.

    ``flags`` are the flags of the command line (--config-dir), which jobs that compose their config need too.
    """

    config: Root
    typed: list[str]
    folder: Path
    launcher: LauncherConfig
    flags: list[str]
    queue: Queue | None = None

    @property
    def machine(self) -> Machine:
        """Where its jobs run."""
        trainer = self.config.trainer
        return self.queue or Machine.of(self.launcher, trainer.device, trainer.devices)


def split_own(words: Sequence[str], schema: type) -> tuple[list[str], list[str]]:
    """The words that set one of the command's own settings, and the rest, the config of its jobs.

    Raises `UserError` for a key that neither has and that is nearest to one of the command's own.
    """
    names = [f.name for f in fields(schema)]
    own: list[str] = []
    rest: list[str] = []
    for word in words:
        name = word.lstrip("+").partition("=")[0].split(".")[0]
        nearest = get_close_matches(name, [*names, *(f.name for f in fields(Root))], 1)
        if "=" in word and nearest and nearest[0] != name and nearest[0] in names:
            raise unknown("key", name, names)
        (own if name in names else rest).append(word)
    return own, rest


def own_settings(schema: type) -> Sheet:
    """A command's own settings and those of its jobs' launcher, with their defaults and docs."""
    launcher = ((key, f) for key, f in describe.settings(LauncherConfig, "hydra.launcher.") if f.metadata)
    keys = (*describe.settings(schema), *launcher)
    return settings_sheet(
        [(key, describe.as_yaml(describe.default_of(f)), describe.explain_field(f)) for key, f in keys]
    )


def read_settings(schema: type[Settings], words: Sequence[str]) -> Settings:
    """A command's own settings from its words ``key=value``, checked; raises `UserError`."""
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException

    from tfx.config.checks import check_values
    from tfx.config.explain import explain

    try:
        given = OmegaConf.from_dotlist([word.lstrip("+") for word in words])
        settings: Any = OmegaConf.to_object(OmegaConf.merge(OmegaConf.structured(schema), given))
    except OmegaConfBaseException as error:
        raise explain(error) from error
    check_values(settings, "")
    return settings


def compose_request(words: Sequence[str], command: str) -> Request | None:
    """Composes the request of a command; None if Hydra was asked to print something instead. Raises `UserError`."""
    from hydra.core.hydra_config import HydraConfig

    from tfx.config.checks import check_values
    from tfx.config.command_line import run_with_hydra, split_flags

    found: list[Request] = []

    def keep(config: Root, typed: list[str], directory: str) -> None:
        if config.dataset.batch_tokens == AUTO:
            raise UserError(
                f"tfx {command} compares runs, which need one size of a batch: name a number for dataset.batch_tokens"
            )
        hydra = HydraConfig.get()
        folder = Path(str(hydra.sweep.dir)).absolute()
        chosen = hydra.runtime.choices["hydra/launcher"]
        queue = None
        if chosen in CLUSTERS:
            queue = Queue.named(chosen, {str(key): hydra.launcher[key] for key in hydra.launcher}, folder)
        elif chosen != "tfx":
            raise UserError(
                f"tfx {command} starts its jobs itself, on this machine or in a queue: leave out "
                f"hydra/launcher={chosen}, or take one of {', '.join(CLUSTERS)}"
            )
        known = [f.name for f in fields(LauncherConfig)]
        launcher = LauncherConfig(**{str(key): hydra.launcher[key] for key in hydra.launcher if key in known})
        check_values(launcher, "hydra.launcher.")
        flags = split_flags(words)[1]
        found.append(Request(config, typed, folder, launcher, flags, queue))

    run_with_hydra(keep, words)
    return found[0] if found else None
