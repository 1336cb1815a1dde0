"""`tfx reproduce RUN`: runs the saved config again, and compares config, environment, files and every metric."""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Iterator, Sequence
from contextlib import redirect_stdout
from dataclasses import asdict
from pathlib import Path
from typing import Any

from tfx.config import compose
from tfx.errors import UserError
from tfx.record.directory import RunDirectory
from tfx.record.environment import BEFORE, environment_differences, flat
from tfx.record.files import read_json, sha256, write_json
from tfx.record.summary import COMPLETED
from tfx.run.life import status_of, train
from tfx.terminal.arguments import Arguments
from tfx.terminal.console import number, plain_console
from tfx.terminal.tables import Column, Sheet

# Settings that are paths, and the fingerprints of which one tells that their content is the same.
_PATHS = {
    "dataset.path": ("fingerprints.content", "fingerprints.corpus"),
    "dataset.tokenizer.path": ("fingerprints.tokenizer",),
}
# Times are never the same twice.
_TIMES = ("seconds", "tokens_per_second", "latency_ms")
_TOLERANCE = 0.02


def main(arguments: Sequence[str]) -> int:
    """Returns 0 if the runs agree: to the bit in the same environment, else within the tolerance."""
    parser = Arguments(
        "reproduce",
        "Runs the config that RUN saved in another directory, and compares them. In the same environment "
        "(versions, hardware, threads, data) they must agree to the bit, else every metric within the tolerance.",
    )
    parser.add_argument("run", type=Path, metavar="RUN", help="the run's directory")
    parser.add_argument(
        "overrides", nargs="*", metavar="key=value", help="changes to its config, which the comparison lists"
    )
    parser.add_argument("--folder", type=Path, help="the new run's directory; default: RUN-reproduced")
    parser.add_argument(
        "--tolerance",
        type=float,
        default=_TOLERANCE,
        help=f"in another environment: largest relative difference of a metric (default {_TOLERANCE:g})",
    )
    parser.add_argument("--json", action="store_true", help="the comparison as JSON on stdout")
    options = parser.read(arguments)
    if not 0 <= options.tolerance < math.inf:
        raise UserError(f"--tolerance={options.tolerance:g} is not a relative difference: name 0 or more")

    old = RunDirectory.open(options.run)
    old_status = old.read_summary().status
    if old_status != COMPLETED:
        raise UserError(f"{old.path} did not complete (status {old_status}), so there is nothing to compare with")
    saved = compose.load(old.config)
    config = compose.change(saved, options.overrides) if options.overrides else saved
    new = RunDirectory(options.folder or _free(old.path))
    if (verdict := new.path / "reproduction.json").exists():
        raise UserError(f"{verdict} exists already: name another folder with --folder")
    # Read before the training that they are for: a broken one would be found after it.
    _metrics_of(old), read_json(old.environment)
    recorded: list[float] = []
    if config.trainer.budget.unit == "seconds" and config.trainer.budget == saved.trainer.budget:
        # Seconds differ each time: repeat the steps and ramps of the old run.
        recorded = read_json(old.progress) if old.progress.is_file() else []
    # The output of the run is not the result of this command.
    with redirect_stdout(sys.stderr):
        status, _ = status_of(lambda: train(config, [*old.read_overrides(), *options.overrides], new.path, recorded))
    if status:
        return status
    found = compare(old, new, options.tolerance)
    write_json(verdict, found)
    if options.json:
        print(json.dumps(found, indent=2))
    else:
        _print(found)
    return 0 if found["verdict"] != "different" else 1


def compare(old: RunDirectory, new: RunDirectory, tolerance: float) -> dict[str, Any]:
    """What differs between two completed runs: config, environment, files, and every metric side by side.

    The place of data or tokenizer makes no difference if their fingerprints agree.
    ``verdict`` is ``identical`` (every file and metric), ``within tolerance`` (in another environment), or
    ``different``.
    """
    configs = [flat(asdict(compose.load(run.config))) for run in (old, new)]
    environments = [read_json(run.environment) for run in (old, new)]
    environment = environment_differences(*environments)
    for name, before in environments[0].get(BEFORE, {}).items():
        environment[f"{name} (of the first steps, before it was resumed)"] = before, flat(environments[1]).get(name)
    recorded = [flat(each) for each in environments]
    differing = [key for key in _different(*configs) if not _is_moved(key, *recorded)]
    metrics = [_metrics_of(run) for run in (old, new)]
    names = [*metrics[0], *(name for name in metrics[1] if name not in metrics[0])]
    pairs = {name: [side.get(name) for side in metrics] for name in names}
    files = {
        file.name: sha256(file) == sha256(other) if file.is_file() and other.is_file() else False
        for file, other in zip(_files(old), _files(new), strict=True)
        if file.is_file() or other.is_file()
    }
    gaps = [_relative(*pair) for pair in pairs.values()]
    # Another version may record more, or less.
    worst = max((gap for gap in gaps if gap is not None), default=0.0)
    if all(files.values()) and worst == 0.0 and None not in gaps and not differing:
        verdict = "identical"
    elif environment and not differing and worst <= tolerance:
        verdict = "within tolerance"
    else:
        verdict = "different"
    return {
        "verdict": verdict,
        "tolerance": tolerance if environment else 0.0,
        "largest_relative_difference": worst,
        "runs": [str(old.path), str(new.path)],
        "went_on_after": _went_on(old, environments[0]),
        "config": {key: [each.get(key) for each in configs] for key in differing},
        "environment": {name: list(pair) for name, pair in environment.items()},
        "identical_files": files,
        "metrics": pairs,
    }


def _different(before: dict[str, Any], now: dict[str, Any]) -> list[str]:
    names = [*before, *(name for name in now if name not in before)]
    return [name for name in names if before.get(name) != now.get(name)]


def _is_moved(key: str, *recorded: dict[str, Any]) -> bool:
    """Whether a setting is a path to content with the same fingerprint in both environments."""
    pairs = ([each.get(name) for each in recorded] for name in _PATHS.get(key, ()))
    return any(before is not None and before == now for before, now in pairs)


def _went_on(run: RunDirectory, environment: dict[str, Any]) -> list[int]:
    """The steps after which a run went on, where it did so with a longer budget: its first steps knew of another."""
    command = environment.get("command", [])
    typed, last = (
        [word for word in map(str, words) if word.startswith("trainer.budget.") and not word.endswith("=null")]
        for words in (run.read_overrides(), command if command[:1] == ["resume"] else [])
    )
    is_longer = len(set(typed)) > 1 or (last != [] and typed == last)  # the first may be the default, typed by nobody
    resumed = read_json(run.summary).get("resumed") or []
    return resumed if is_longer else []


def _files(run: RunDirectory) -> list[Path]:
    return [run.model, run.compressed, run.tokenizer, run.predictions]


def _metrics_of(run: RunDirectory) -> dict[str, float]:
    """`_metrics`; raises `UserError` for a file that is damaged."""
    try:
        return dict(_metrics(run))
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(
            f"{run.path} cannot be compared with: {run.summary.name} or {run.metrics.name} is damaged ({error}); "
            "restore it, or run the config by itself with tfx train --config-dir"
        ) from error


def _metrics(run: RunDirectory) -> Iterator[tuple[str, float]]:
    """All numbers of a run that are not times: from its summary and its training rows."""
    summary = read_json(run.summary)
    for part in ("valid", "test", "bytes", "parameters"):
        yield from _numbers(part, summary.get(part))
    for part in ("steps", "tokens", "flops"):
        yield from _numbers(f"train.{part}", (summary.get("train") or {}).get(part))
    for row in summary.get("stages") or []:
        for part in ("valid", "bytes", "parameters", "nonzero_parameters"):
            yield from _numbers(f"stage {row['name']}.{part}", row.get(part))
    for technique, evidence in (summary.get("evidence") or {}).items():
        yield from _numbers(f"evidence.{technique}", evidence)
    for line in run.metrics.read_text(encoding="utf-8").splitlines():
        row = json.loads(line)
        place = f"{row.pop('split')} at step {row.pop('step')}{' (final)' if row.pop('final', False) else ''}"
        for name, value in row.items():
            yield from _numbers(f"{place}.{name}", value)


def _numbers(name: str, value: Any) -> Iterator[tuple[str, float]]:
    for key, number_ in flat(value, f"{name}.").items() if isinstance(value, dict) else [(name, value)]:
        if isinstance(number_, int | float) and key.rpartition(".")[2] not in _TIMES:
            yield key, float(number_)


def _relative(before: float | None, now: float | None) -> float | None:
    """The difference relative to the larger of two values; None where only one run has one."""
    if before is None or now is None:
        return None
    if before == now or (math.isnan(before) and math.isnan(now)):
        return 0.0
    if not math.isfinite(before) or not math.isfinite(now):
        return math.inf
    return abs(before - now) / max(abs(before), abs(now))


def _free(path: Path) -> Path:
    """A folder beside the run that does not exist yet."""
    path = path.resolve() if path.name in ("", "..") else path
    first = path.with_name(f"{path.name}-reproduced")
    count = 2
    while first.exists():
        first = path.with_name(f"{path.name}-reproduced-{count}")
        count += 1
    return first


def _print(found: dict[str, Any]) -> None:
    console = plain_console()
    old, new = found["runs"]
    table = Sheet(
        Column("metric"),
        Column("before", number=True),
        Column("now", number=True),
        Column("relative difference", number=True, spare=1),
        title=f"{old} and {new}",
    )
    # The curves are compared as a whole: one row per point would be a thousand.
    curves = {name: pair for name, pair in found["metrics"].items() if " at step " in name and "(final)" not in name}
    for name, (before, now) in found["metrics"].items():
        if name not in curves:
            gap = _relative(before, now)
            shown = "in one of them" if gap is None else "same" if gap == 0 else f"{gap:.2%}"
            table.add_row(name, number(before), number(now), shown)
    differing = sum(_relative(*pair) != 0 for pair in curves.values())
    table.add_row("curves of training and validation", f"{len(curves):,} values", "", f"{differing:,} differ")
    console.print(table)
    for part in ("config", "environment"):
        for name, (before, now) in found[part].items():
            console.print(f"{part} {name}: {before} before, {now} now", soft_wrap=True)
    if found["went_on_after"]:
        steps = ", ".join(f"{step:,}" for step in found["went_on_after"])
        console.print(
            f"{old} went on after step {steps} with a longer budget: its schedule was different until then, and this "
            "run has that of the whole budget from its first step on",
            soft_wrap=True,
        )
    for name, same in found["identical_files"].items():
        console.print(f"{name}: {'identical' if same else 'not identical'}")
    if found["environment"]:
        promise = f"in another environment: every metric within {found['tolerance']:g} of the larger one"
    else:
        promise = "in the same environment: to the bit"
    console.print(f"{found['verdict']} (expected {promise})", style="bold")
