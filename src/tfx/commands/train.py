"""`tfx train [overrides]`: one run, or with ``-m`` a sweep of them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tfx.config import describe
from tfx.config.choices import GROUPS, choices
from tfx.config.schema import LauncherConfig, Root
from tfx.processes.ending import end_at_exit
from tfx.run.life import begin, status_of
from tfx.system.signals import StoppedBySignal


class JobFailedError(Exception):
    """A job under another launcher failed and reported why; holds its exit status."""

    def __init__(self, status: int) -> None:
        super().__init__(status)
        self.status = status


def main(arguments: Sequence[str]) -> int:
    """Composes the config, trains, and prints the closing table; with ``-m`` runs a sweep and prints its results."""
    if any(word in ("-h", "--help") for word in arguments):
        print_help(arguments)
        return 0
    from tfx.config.command_line import is_foreign_job, run_with_hydra
    from tfx.experiments import hydra_launcher as launcher
    from tfx.experiments.jobs import ENDED_BADLY
    from tfx.experiments.table import print_results

    status = 0

    def job(config: Root, typed: list[str], directory: str) -> float | None:
        nonlocal status
        launcher.check_is_sweep()
        status = 1
        try:
            status, summary = status_of(lambda: begin(config, typed, Path(directory)))
            if status and is_foreign_job():
                raise JobFailedError(status)
        finally:
            if is_foreign_job():
                end_at_exit(min(status, 1))
        return None if summary is None else summary.objective

    jobs = launcher.register()
    try:
        with launcher.noting_results(jobs):
            run_with_hydra(job, arguments)
    except (StoppedBySignal, JobFailedError) as stopped:
        status = stopped.status
    if jobs:
        print_results(jobs)
        status = status or int(any(job.state in ENDED_BADLY for job in jobs))
    return status


def print_help(arguments: Sequence[str] = ()) -> None:
    """Prints the groups, their choices, and every setting with its value, range, unit and paper.

    The values are those of a run with these arguments. Where a technique is among them, prints what the chosen ones are
    and their settings instead, and loads them, with torch. Raises `UserError` for an argument that cannot be composed.
    """
    from rich.text import Text

    from tfx.config.command_line import composed_for_help
    from tfx.terminal.console import plain_console
    from tfx.terminal.tables import settings_sheet

    console = plain_console()
    overrides, values, launcher = composed_for_help(arguments)
    if any(word.lstrip("+").startswith("technique=") for word in overrides):
        for name in values["technique"]:
            console.print(f"technique={name}", style="bold")
            console.print(choices("technique")[name] + "\n")
            console.print(settings_sheet(_technique_rows(name, values), "value"))
            console.print()
        return
    console.print("usage: tfx train [group=choice …] [key=value …] [-m] [Hydra's flags]\n")
    console.print("Trains, evaluates and writes a run directory. `-m` sweeps over comma-separated values.")
    console.print("`dry_run=true` checks and prints the plan; `--config-dir DIR` adds your own YAMLs;")
    console.print("`--cfg job` prints the composed config; `--hydra-help` lists Hydra's flags.\n")
    for group in GROUPS:
        names = ", ".join(choices(group)) or "(none)"
        console.print(Text.assemble((group, "bold"), f": {names}"), soft_wrap=True)
    console.print()
    what = f"with {' '.join(overrides)}" if overrides else "without overrides"
    console.print(f"The values are those of a run {what}.", markup=False, soft_wrap=True)
    shown = {**values, "technique": list(values["technique"])}
    rows = [
        (key, describe.as_yaml(describe.value_at(shown, key)), describe.explain_field(field))
        for key, field in describe.settings()
    ]
    rows += [row for name in values["technique"] for row in _technique_rows(name, values)]
    for key, field in describe.settings(LauncherConfig, "hydra.launcher."):
        if field.metadata:
            value = launcher.get(key, describe.default_of(field))
            rows.append((key, describe.as_yaml(value), describe.explain_field(field)))
    console.print(settings_sheet(rows, "value"))


def _technique_rows(name: str, values: dict[str, Any]) -> list[tuple[str, str, str]]:
    return [(key, describe.as_yaml(value), doc) for key, value, doc in describe.technique_settings(name, values)]
