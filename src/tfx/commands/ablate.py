"""`tfx ablate [overrides]`: what each technique of a stack adds, at one budget, over seeds; plan, sweep and report."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from tfx.commands.report import print_comparison
from tfx.config.schema import AblateConfig
from tfx.errors import UserError
from tfx.experiments.ablation import Ablation
from tfx.experiments.request import compose_request, own_settings, read_settings, split_own
from tfx.experiments.table import print_results
from tfx.record.directory import RunDirectory
from tfx.system.signals import StoppedBySignal, leaving_on_signals
from tfx.terminal.console import plain_console


def main(arguments: Sequence[str]) -> int:
    """Plans, shows the plan, runs it as a sweep, and reports; status 1 if a run has no result."""
    if any(word in ("-h", "--help") for word in arguments):
        print_help()
        return 0
    if any(word in ("-m", "--multirun") for word in arguments):
        raise UserError("tfx ablate is a sweep already: leave out -m, and name the number of seeds with seeds=…")
    own, rest = split_own(arguments, AblateConfig)
    settings = read_settings(AblateConfig, own)
    request = compose_request(rest, "ablate")
    if request is None:
        return 0
    if not request.config.technique:
        raise UserError("no technique is named: tfx ablate '+technique=[prune,quantize]' compares what each adds")
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


def print_help() -> None:
    """Prints what it does and its own settings; the rest are those of `tfx train`."""
    console = plain_console()
    usage = "usage: tfx ablate '+technique=[a,b,…]' [seeds=N] [design=…] [match=…] [overrides of tfx train]\n"
    console.print(usage, markup=False, soft_wrap=True)
    console.print(
        "Trains the same config without techniques, with each alone, with all but each, and with all of them,"
    )
    console.print(
        "at one budget, and reports what each adds alone and given the others. If one compresses, it also trains a"
    )
    console.print("narrower dense model in 8 bits of the same size. `dry_run=true` tries each arm and shows the plan;")
    console.print("the same command with the `hydra.sweep.dir` of an earlier one runs the jobs that are left.\n")
    console.print(own_settings(AblateConfig))
