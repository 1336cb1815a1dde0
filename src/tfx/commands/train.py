"""`tfx train [overrides]`: one run, or with ``-m`` a sweep of them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from tfx.config import describe
from tfx.config.schema import LauncherConfig, Root
from tfx.record.signals import StoppedBySignal
from tfx.run.life import status_of, train


class JobFailedError(Exception):
    """A job under a launcher that is not ours has failed and said why; its exit status."""

    def __init__(self, status: int) -> None:
        super().__init__(status)
        self.status = status


def main(arguments: Sequence[str]) -> int:
    """Composes the config, trains, and prints the closing table; with ``-m`` runs a sweep and prints its results."""
    if any(word in ("-h", "--help") for word in arguments):
        print_help(_techniques(arguments))
        return 0
    from tfx.config.command_line import is_foreign_job, run_with_hydra
    from tfx.experiments import launcher
    from tfx.experiments.jobs import ENDED_BADLY
    from tfx.experiments.table import print_results

    status = 0

    def job(config: Root, typed: list[str], directory: str) -> float | None:
        nonlocal status
        status, summary = status_of(lambda: train(config, typed, Path(directory)))
        if status and is_foreign_job():
            raise JobFailedError(status)
        return None if summary is None else float(summary["valid"][summary["primary_metric"]])

    jobs = launcher.register()
    try:
        run_with_hydra(job, arguments)
    except (StoppedBySignal, JobFailedError) as stopped:
        status = stopped.status
    if jobs:
        print_results(jobs)
        status = status or int(any(job.state in ENDED_BADLY for job in jobs))
    return status


def _techniques(arguments: Sequence[str]) -> list[str]:
    """The techniques that are named on the command line, each once."""
    lists = [word.partition("=")[2] for word in arguments if word.lstrip("+").startswith("technique=")]
    return list(dict.fromkeys(name.strip() for names in lists for name in names.strip("[]").split(",") if name))


def print_help(techniques: Sequence[str] = ()) -> None:
    """Prints the groups, their choices, and every setting with its default, range, unit and paper.

    With ``techniques``, prints what those are and their settings instead: only they are loaded, and torch with them.
    Raises `UserError` for one that is unknown or cannot be loaded.
    """
    from rich.text import Text

    from tfx.record.console import plain_console
    from tfx.record.sheet import settings_sheet

    console = plain_console()
    for name in techniques:
        rows = list(describe.technique_settings(name))
        console.print(f"technique={name}", style="bold")
        console.print(describe.choices("technique")[name] + "\n")
        console.print(settings_sheet(rows))
        console.print()
    if techniques:
        return
    console.print("usage: tfx train [group=choice …] [key=value …] [-m] [Hydra's flags]\n")
    console.print("Trains, evaluates and writes a run directory. `-m` sweeps over comma-separated values.")
    console.print("`dry_run=true` checks and prints the plan; `--config-dir DIR` adds your own YAMLs;")
    console.print("`--cfg job` prints the composed config; `--hydra-help` lists Hydra's flags.\n")
    for group in describe.GROUPS:
        names = ", ".join(describe.choices(group)) or "(none)"
        console.print(Text.assemble((group, "bold"), f": {names}"), soft_wrap=True)
    console.print()
    sweep = ((key, field) for key, field in describe.settings(LauncherConfig, "hydra.launcher.") if field.metadata)
    rows = [(key, describe.default_of(field), describe.explain_field(field)) for key, field in describe.settings()]
    rows += [(key, describe.default_of(field), describe.explain_field(field)) for key, field in sweep]
    console.print(settings_sheet(rows))
