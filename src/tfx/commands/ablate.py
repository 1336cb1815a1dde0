"""`tfx ablate [overrides]`: what each technique of a stack adds, at one budget, over seeds; plan, sweep and report."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

from tfx.commands.report import print_comparison
from tfx.config import describe
from tfx.config.schema import AblateConfig, LauncherConfig, Root
from tfx.errors import UserError
from tfx.experiments.ablation import Ablation, Request
from tfx.experiments.table import print_results
from tfx.record.console import plain_console
from tfx.record.directory import RunDirectory
from tfx.record.sheet import settings_sheet
from tfx.record.signals import StoppedBySignal, leaving_on_signals

_OWN = tuple(f.name for f in fields(AblateConfig))


def main(arguments: Sequence[str]) -> int:
    """Plans, shows the plan, runs it as a sweep, and reports; status 1 where a run has no result."""
    if any(word in ("-h", "--help") for word in arguments):
        print_help()
        return 0
    if any(word in ("-m", "--multirun") for word in arguments):
        raise UserError("tfx ablate is a sweep already: leave out -m, and name the number of seeds with seeds=…")
    own = [word for word in arguments if word.lstrip("+").partition("=")[0] in _OWN]
    settings = _settings(own)
    request = _compose([word for word in arguments if word not in own])
    if request is None:
        return 0
    ablation = Ablation(request, settings)
    try:
        with leaving_on_signals():
            status = ablation.run()
            if ablation.jobs:
                print_results(ablation.jobs)
            if any(job.objective is not None for job in ablation.jobs):
                _report(request.folder)
            return status
    except StoppedBySignal as stopped:
        print_results(ablation.jobs)
        return stopped.status


def _report(folder: Path) -> None:
    from tfx.report.comparison import compare_runs
    from tfx.report.page import write_page

    page = RunDirectory(folder).report
    comparison = compare_runs([folder])
    write_page(comparison, page)
    print_comparison(comparison)
    print(f"page: {page}")


def _settings(words: Sequence[str]) -> AblateConfig:
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException

    from tfx.config.checks import check_values
    from tfx.config.explain import explain

    try:
        given = OmegaConf.from_dotlist([word.lstrip("+") for word in words])
        settings: Any = OmegaConf.to_object(OmegaConf.merge(OmegaConf.structured(AblateConfig), given))
    except OmegaConfBaseException as error:
        raise explain(error) from error
    check_values(settings, "")
    return settings


def _compose(words: Sequence[str]) -> Request | None:
    """None where Hydra was asked to show something instead."""
    from hydra.core.hydra_config import HydraConfig

    from tfx.config.checks import check_values
    from tfx.config.command_line import run_with_hydra

    found: list[Request] = []

    def keep(config: Root, typed: list[str], directory: str) -> None:
        hydra = HydraConfig.get()
        if hydra.runtime.choices["hydra/launcher"] != "tfx":
            raise UserError("tfx ablate runs its jobs on this machine: leave out hydra/launcher")
        known = [f.name for f in fields(LauncherConfig)]
        launcher = LauncherConfig(**{str(key): hydra.launcher[key] for key in hydra.launcher if key in known})
        check_values(launcher, "hydra.launcher.")
        if not config.technique:
            raise UserError("no technique is named: tfx ablate '+technique=[prune,quantize]' compares what each adds")
        found.append(Request(config, typed, Path(str(hydra.sweep.dir)).absolute(), launcher))

    run_with_hydra(keep, words)
    return found[0] if found else None


def print_help() -> None:
    """Prints what it does and its own settings; the rest are those of `tfx train`."""
    console = plain_console()
    usage = "usage: tfx ablate '+technique=[a,b,…]' [seeds=N] [design=…] [match=…] [overrides of tfx train]\n"
    console.print(usage, markup=False, soft_wrap=True)
    console.print(
        "Trains the same config without techniques, with each alone, with all but each, and with all of them,"
    )
    console.print("at one budget, and reports what each adds alone and given the others. Where one compresses, also a")
    console.print("narrower dense model in 8 bits of the same bytes. `dry_run=true` tries each arm and shows the plan;")
    console.print("the same command with the `hydra.sweep.dir` of an earlier one runs what is left of it.\n")
    launcher = ((key, f) for key, f in describe.settings(LauncherConfig, "hydra.launcher.") if f.metadata)
    keys = (*describe.settings(AblateConfig), *launcher)
    rows = [(key, describe.as_yaml(describe.default_of(f)), describe.explain_field(f)) for key, f in keys]
    console.print(settings_sheet(rows))
