"""`tfx search [goal] [overrides]`: the best model within limits of bytes, latency or quality, and the front of all."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import replace

from tfx.config.search import SearchConfig
from tfx.errors import UserError
from tfx.experiments.request import compose_request, own_settings, read_settings, split_own
from tfx.experiments.search.axes import named_axes
from tfx.experiments.search.space import named_techniques
from tfx.system.signals import StoppedBySignal, leaving_on_signals
from tfx.terminal.console import plain_console


def main(arguments: Sequence[str]) -> int:
    """Searches, shows what was found, and returns the exit status: 1 if nothing has a result."""
    if any(word in ("-h", "--help") for word in arguments):
        print_help()
        return 0
    if any(word in ("-m", "--multirun") for word in arguments):
        raise UserError("tfx search tries many configs already: leave out -m, and name the budget with budget.hours=…")
    if any(word in ("-cn", "--config-name", "-cp", "--config-path") for word in arguments):
        raise UserError("tfx search starts from the defaults: name settings as overrides, and groups with --config-dir")
    own, rest = split_own(arguments, SearchConfig)
    settings = read_settings(SearchConfig, own)
    words, axes = named_axes(rest)
    # Settings of a technique are known where it is in the stack.
    stack = [f"technique=[{','.join(named_techniques(words))}]"] if named_techniques(words) else []
    request = compose_request([*words, *stack], "search")
    if request is None:
        return 0
    request = replace(request, typed=[word for word in request.typed if word not in stack])

    from tfx.experiments.search.final import finish
    from tfx.experiments.search.page import write_search_page
    from tfx.experiments.search.search import Search
    from tfx.experiments.search.shown import show_found, show_plan

    search = Search(request, settings, axes)
    if request.config.dry_run:
        show_plan(search)
        return 0
    try:
        with leaving_on_signals():
            search.run()
            finish(search)
    except StoppedBySignal as stopped:
        search.keep()
        show_found(search)
        print(f"page: {write_search_page(search)}")
        print(f"stopped: the same command with hydra.sweep.dir={search.folder} goes on", file=sys.stderr)
        return stopped.status
    show_found(search)
    if left := search.left:
        why = "no other config was found that keeps the limits: widen an axis"
        print(f"{left} of budget.trials={search.most_trials} left: {why}")
    if search.book.trials:
        print(f"page: {write_search_page(search)}")
    found = search.book.outcome
    if found["best"] is not None and not found["best_is_met"]:
        nearest = next(row for row in found["tried"] if row["run"] == found["best"])
        raise UserError(
            f"nothing that was tried is {found['goal']}: the nearest has {found['metric']} {nearest['quality']:.4g}, "
            f"{nearest['bytes']:,} bytes and {nearest['latency_ms']:.3g} ms ({found['best']}); ask for less, or go on "
            f"with a larger budget and hydra.sweep.dir={search.folder}"
        )
    return 0 if found["best"] is not None else 1


def print_help() -> None:
    """Prints what it does and its own settings; the rest are those of `tfx train`."""
    console = plain_console()
    usage = (
        "usage: tfx search [max_bytes=N] [max_latency_ms=T] [min_quality=Q] [objective=…] budget.hours=H [overrides]\n"
    )
    console.print(usage, markup=False, soft_wrap=True)
    console.print(
        "Finds the best model within the limits: vocabulary, architecture, sparsity and bits together. A setting"
    )
    console.print("of `tfx train` with one value is fixed, with several it is an axis: model.width=64,96,128,")
    console.print(
        "model.dropout=interval(0,0.2), model.decoder_layers=range(1,5). Trials are runs below hydra.sweep.dir;"
    )
    console.print("search.json there names the best one. The same command goes on with a search that was stopped.")
    console.print("`dry_run=true` shows the axes, what fits, and the cost.\n")
    console.print(own_settings(SearchConfig))
