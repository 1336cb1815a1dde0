"""Runs as a report reads them: found below paths, checked, the broken ones named and left out.

Nothing here is trusted: a value of the wrong type, a missing file or a config that unfolds without end makes
the directory a broken one. YAML is read by the safe loader, so nothing in it is ever executed.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from tfx.errors import UserError
from tfx.record.directory import RunDirectory
from tfx.record.metric_vocabulary import scorer
from tfx.record.summary import Reference, Summary
from tfx.report.runs_file import SUFFIX, KeptRun, kept_files, kept_run, read_kept

_MAX_LEAVES = 5000
# What tells no two configs apart: the seed, and settings that record or keep more of the same run.
_NOT_THE_RESULT = (
    "seed",
    "name",
    "tags",
    "evaluation.attention_maps",
    "trainer.profile",
    *(f"trainer.save.{name}" for name in ("every_steps", "every_minutes", "keep")),
    "tracking.to",
    "tracking.project",
    "tracking.artifacts",
)
# Settings that name another run, or several: then their paths stand in a flat config with a line end between them.
OTHER_RUNS = ("init_from", "reference", "technique.distill.teacher")
_BETWEEN = "\n"
# Settings without effect on a run of no steps, and those among them that its test depends on all the same.
_OF_TRAINING = (
    "optimizer.", "schedule.", "trainer.",
    *(f"model.{part}dropout" for part in ("", "attention_", "ffn_", "token_", "layer_")),
)  # fmt: skip
_OF_MACHINE = tuple(f"trainer.{name}" for name in ("device", "precision", "compile", "deterministic", "threads"))
# What content that is no run's may raise.
_UNREADABLE = (OSError, KeyError, TypeError, ValueError, AttributeError, RecursionError, yaml.YAMLError)
_Loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


class BrokenRunError(Exception):
    """A directory that is no completed run; the message says why."""


@dataclass(frozen=True)
class LeftOut:
    """A directory that looked like a run, and why it is not compared."""

    path: Path
    reason: str


@dataclass
class Run:
    """One completed run. ``config`` is flat (``trainer.budget.steps``), without its seed and what changes no result.

    ``others`` has, for settings that name another run, what that run was, its seed aside. ``identity`` is the config
    with these in place of paths and without `idle`: what tells two configs apart. ``origin`` is what the model that it
    started from cost, ``uncounted`` what its teacher cost beyond what ``train`` says of it, ``shared`` what is in both.
    """

    path: Path
    seed: int
    config: dict[str, Any]
    task: str
    dataset: str
    model: str
    metric: str
    techniques: tuple[str, ...]
    test: dict[str, float]
    test_split: str
    signatures: dict[str, str]
    bytes: dict[str, float]
    train: dict[str, float]
    latency_ms: float | None
    stages: list[dict[str, Any]]
    reference: Reference | None
    environment: dict[str, Any]
    name: str = ""
    tags: tuple[str, ...] = ()
    others: dict[str, str] = field(default_factory=dict)
    origin: dict[str, float] = field(default_factory=dict)
    uncounted: Mapping[str, float] = field(default_factory=dict)
    shared: Mapping[str, float] = field(default_factory=dict)
    curve: list[dict[str, float]] = field(default_factory=list)
    statistics_NK: np.ndarray | None = None
    sentences: str = ""

    @property
    def sample(self) -> tuple[Any, ...]:
        """What makes it a sample of its own among the runs of its config: its seed, and what it starts from."""
        return (self.seed, *(str(self.config.get(name)) for name in OTHER_RUNS))

    @cached_property
    def identity(self) -> dict[str, Any]:
        return {name: value for name, value in self.config.items() if not self.is_idle(name)} | self.others

    def idle(self) -> dict[str, Any]:
        """The settings that had no effect on it, with their values."""
        return {name: value for name, value in self.config.items() if self.is_idle(name)}

    def is_idle(self, name: str) -> bool:
        """Whether a setting had no effect on it."""
        if name == "technique.distill.beam":
            return self.config.get("technique.distill.sequence_level") is False
        return self.train.get("steps") == 0 and name.startswith(_OF_TRAINING) and name not in _OF_MACHINE

    @property
    def seconds(self) -> float:
        """Training time with that of its teacher, and of the model it started from."""
        return self._cost("seconds")

    @property
    def flops(self) -> float:
        """Training FLOPs with those of its teacher, and of the model it started from."""
        return self._cost("flops")

    def _cost(self, name: str) -> float:
        parts = (self.train, self.origin, self.uncounted)
        counted = sum(part.get(name, 0.0) for part in parts) + self.train.get(f"teacher_{name}", 0.0)
        return counted - self.shared.get(name, 0.0)


def find_runs(paths: Sequence[Path]) -> tuple[list[Run], list[LeftOut]]:
    """All completed runs at and below the paths, kept ones too, each once, in the order of their names.

    Raises `UserError` where a path does not exist or no completed run is found.
    """
    runs, left_out = [], []
    for folder, kept in _found(paths):
        try:
            if isinstance(kept, str):
                raise BrokenRunError(kept)
            runs.append(read_run(folder) if kept is None else read_kept_run(folder, kept))
        except (BrokenRunError, UserError) as error:
            left_out.append(LeftOut(folder, str(error)))
        except _UNREADABLE as error:
            left_out.append(LeftOut(folder, " ".join(f"unreadable: {type(error).__name__}: {error}".split())[:300]))
    _without_own_seeds(runs)
    if not runs:
        why = f": {left_out[0].path}: {left_out[0].reason}" if left_out else ""
        raise UserError(f"no completed run lies below {', '.join(map(str, paths))}{why}")
    return runs, left_out


def _found(paths: Sequence[Path]) -> Iterator[tuple[Path, KeptRun | str | None]]:
    """Run directories, with None, and kept runs by the paths that they stand for, or why they cannot be read."""
    seen = set()
    for place in (place for path in paths for place in _places(path)):
        for folder, kept in [(place, None)] if place.is_dir() else read_kept(place):
            if (real := os.path.realpath(folder)) not in seen:
                seen.add(real)
                yield folder, kept


def _places(path: Path) -> Iterator[Path]:
    """Run directories and files of kept runs at and below a path; links to folders are followed, each folder once."""
    if path.name.endswith(SUFFIX) and path.is_file():
        yield path
        return
    if not path.is_dir():
        raise UserError(f"{path} is not a folder: name run directories, sweeps, folders that hold them, or *{SUFFIX}")
    seen = set()
    for name, below, files in os.walk(path, followlinks=True):
        # A folder goes by its own name, where a link to it lies beside it.
        below[:] = sorted((folder for folder in below if not folder.startswith(".")), key=_links_last(name))
        if (real := os.path.realpath(name)) in seen:  # a link to where the walk has been, or is
            below.clear()
            continue
        seen.add(real)
        if RunDirectory(Path(name)).summary.name in files or RunDirectory(Path(name)).config.name in files:
            below.clear()
            yield Path(name)
        else:
            yield from kept_files(Path(name), files)


def _links_last(folder: str) -> Callable[[str], tuple[bool, str]]:
    return lambda name: (Path(folder, name).is_symlink(), name)


def read_run(folder: Path) -> Run:
    """Reads one run; raises `BrokenRunError` where it did not complete, and what its content raises."""
    result, run = _read_result(folder), RunDirectory(folder)
    result.curve = list(_curve(run.metrics))
    _read_statistics(result, run.predictions)
    return result


def find_run(folder: Path) -> Run | None:
    """The run of a directory, or the kept run in its place, without its curve; None where neither can be read."""
    try:
        if RunDirectory(folder).summary.is_file():
            return _read_result(folder)
        kept = kept_run(folder)
        return None if kept is None else _read_kept_result(folder, *kept)
    except (BrokenRunError, UserError, *_UNREADABLE):
        return None


def _read_result(folder: Path) -> Run:
    """A run without its curve and its sentences."""
    run = RunDirectory(folder)
    if not run.summary.is_file():
        raise BrokenRunError(f"has no {run.summary.name}: not finished")
    summary = run.read_summary()
    _check_completed(summary)
    if not run.config.is_file():
        raise BrokenRunError(f"has no {run.config.name}")
    environment = {}
    if run.environment.is_file():
        environment = _object(json.loads(run.environment.read_text(encoding="utf-8")), run.environment.name)
    return _run(folder, summary, _read_config(run.config), environment)


def read_kept_run(path: Path, kept: KeptRun) -> Run:
    """A kept run, as `read_run` gives one whose directory holds neither environment nor predictions."""
    result = _read_kept_result(path, path.parents[len(Path(kept.name).parts)], kept)
    result.curve = [_numbers(row) for row in kept.metrics if row.get("split") == "valid" and not row.get("final")]
    return result


def _read_kept_result(path: Path, folder: Path, kept: KeptRun) -> Run:
    """A kept run of a file in ``folder``, without its curve."""
    summary = Summary.from_dict(_object(kept.summary, "summary"))
    _check_completed(summary)
    return _run(path, summary, _kept_config(folder, kept.settings), {})


def _check_completed(summary: Summary) -> None:
    if summary.result is None:
        error = " ".join((summary.error or "").split())
        raise BrokenRunError(f"status is {summary.status!r}{': ' + error if error else ''}"[:300])


def _run(path: Path, summary: Summary, config: dict[str, Any], environment: dict[str, Any]) -> Run:
    """A run without its curve and its sentences; ``config`` is flat."""
    facts, found = summary.facts, summary.result
    assert found is not None
    test = _numbers(found.test)
    if facts.primary_metric not in test:
        raise BrokenRunError(f"its test has no {facts.primary_metric}, which it names as primary_metric")
    for part in ("fingerprints", "hardware", "packages"):
        _object(environment.setdefault(part, {}), part)
    latency = found.inference["file"].latency_ms.get("p50") if "file" in found.inference else None
    reference = found.reference
    started = reference is not None and reference.name == "init_from"
    return Run(
        path=path,
        seed=int(facts.seed),
        config=config,
        task=str(facts.task),
        dataset=str(facts.dataset),
        model=str(facts.model),
        metric=str(facts.primary_metric),
        techniques=tuple(map(str, facts.techniques)),
        test=test,
        test_split=found.test_split,
        signatures={str(k): str(v) for k, v in found.signatures.items()},
        bytes=_numbers(asdict(found.bytes)),
        train=_numbers(asdict(found.train)),
        latency_ms=float(latency) if latency is not None else None,
        stages=[_stage(asdict(stage)) for stage in found.stages],
        reference=reference,
        environment=environment,
        name=str(facts.name or ""),
        tags=tuple(map(str, facts.tags or ())),
        others=_other_runs(config, {}),
        origin=_numbers(reference.train or {}) if reference is not None and started else {},
    )


def _read_config(file: Path) -> dict[str, Any]:
    """A saved config, flat, without what tells no two configs apart."""
    return _flat_config(yaml.load(file.read_text(encoding="utf-8"), Loader=_Loader), file.name)


def _kept_config(folder: Path, content: Any) -> dict[str, Any]:
    """A kept run's config, flat; other kept runs that it names by their path from ``folder`` get their whole path."""
    config = _flat_config(content, "config")
    for name in OTHER_RUNS:
        whole = [path if kept_run(folder / path) is None else str(folder / path) for path in named_runs(config, name)]
        if whole:
            config[name] = _BETWEEN.join(whole)
    return config


def _flat_config(content: Any, what: str) -> dict[str, Any]:
    config = dict(_flat(_object(content, what)))
    for name in _NOT_THE_RESULT:
        config.pop(name, None)
    return config


def named_runs(config: dict[str, Any], setting: str) -> list[str]:
    """The paths that a setting of a flat config names; none where it is not set."""
    value = config.get(setting)
    return value.split(_BETWEEN) if isinstance(value, str) else []


def _config_of(folder: Path) -> dict[str, Any] | None:
    """The config of a run directory, or of the kept run that stands in its place; None where there is neither."""
    file = RunDirectory(folder).config
    if file.is_file():
        return _read_config(file)
    kept = kept_run(folder)
    return None if kept is None else _kept_config(kept[0], kept[1].settings)


def _other_runs(config: dict[str, Any], known: dict[str, str | None]) -> dict[str, str]:
    """For each setting that names another run, a digest of that run's config and of those that it names.

    Runs of several seeds often start from models of as many seeds: their paths differ, and their configs do not. Where
    such a model is not there any more, its path stands for it.
    ``known`` has the digests so far, None for a run that is being followed, or cannot be.
    """
    others = {}
    for name in OTHER_RUNS:
        found = [_other_run(path, known) for path in named_runs(config, name)]
        if found and None not in found:
            others[name] = " ".join(map(str, found))
    return others


def _other_run(path: str, known: dict[str, str | None]) -> str | None:
    """The digest of a run that another names; its path where it is gone, and None where it cannot be followed."""
    folder = Path(path)
    place = os.path.realpath(folder)
    if place not in known:
        known[place] = None
        try:
            other = _config_of(folder)
            if other is not None:
                other |= _other_runs(other, known)
                digest = hashlib.blake2b(repr(sorted(other.items())).encode(), digest_size=16)
                known[place] = digest.hexdigest()
        except (OSError, TypeError, ValueError, RecursionError, yaml.YAMLError, BrokenRunError):
            return None
    if known[place] is None and not RunDirectory(folder).config.is_file():
        return path
    return known[place]


def _without_own_seeds(runs: Sequence[Run]) -> None:
    """Leaves a run's own seed out of the names of models that are not there any more, so that seeds make one arm.

    A name that runs of several seeds share has none of theirs in it.
    """
    seeds: dict[str, set[int]] = {}
    for run in runs:
        for place in run.others.values():
            seeds.setdefault(place, set()).add(run.seed)
    for run in runs:
        own = rf"(^|[^0-9A-Za-z]|seed){run.seed}(?![0-9A-Za-z])"
        for name, place in run.others.items():
            if len(seeds[place]) == 1 and place == run.config.get(name):
                path = Path(place)
                run.others[name] = str(path.with_name(re.sub(own, r"\1{seed}", path.name)))


def read_predictions(folder: Path) -> list[dict[str, Any]]:
    """Rows of `predictions.jsonl`; none where the file is missing or broken."""
    try:
        with open(RunDirectory(folder).predictions, encoding="utf-8") as file:
            return [_object(json.loads(line), "row") for line in file]
    except (OSError, ValueError, BrokenRunError, UserError, RecursionError):
        return []


def read_tensors(folder: Path) -> list[dict[str, Any]]:
    """Rows of `tensors.json`: name, shape, codec, bits_per_weight, sparsity, bytes; none without such a file."""
    try:
        rows = json.loads(RunDirectory(folder).tensors.read_text(encoding="utf-8"))
        return [
            {
                "name": str(row["name"]),
                "shape": [int(n) for n in row["shape"]],
                "codec": str(row["codec"]),
                **{key: _finite(row[key]) for key in ("bits_per_weight", "sparsity", "bytes")},
            }
            for row in rows
        ]
    except (OSError, ValueError, TypeError, KeyError, RecursionError):
        return []


def read_attention(folder: Path) -> list[dict[str, Any]]:
    """Rows of `attention.json` as `tfx.evaluation.attention` writes them; none where there is no such file."""
    try:
        rows = json.loads(RunDirectory(folder).attention.read_text(encoding="utf-8"))
        return [
            {
                "tokens_source": [str(token) for token in row["tokens_source"]],
                "tokens_target": [str(token) for token in row["tokens_target"]],
                "layers": [
                    {"name": str(layer["name"]), "weights_HTS": np.asarray(layer["weights"], dtype=float)}
                    for layer in row["layers"]
                ],
            }
            for row in rows
        ]
    except (OSError, ValueError, TypeError, KeyError, RecursionError):
        return []


def _read_statistics(run: Run, file: Path) -> None:
    """Fills the per-sentence statistics of the primary metric, where the run stored them."""
    if not file.is_file():
        return
    read = scorer(run.metric).sentence
    digest = hashlib.blake2b(digest_size=16)
    rows = []
    try:
        with open(file, encoding="utf-8") as lines:
            for line in lines:
                row = json.loads(line)
                rows.append(read(row))
                # A window of a stream has no source: its number of targets stands for it.
                digest.update(repr((row.get("source", row["targets"]), row.get("reference"))).encode())
        statistics_NK = np.asarray(rows, dtype=np.float32)
    except (KeyError, TypeError, ValueError, AttributeError):
        return
    if statistics_NK.ndim == 2 and len(statistics_NK) and np.isfinite(statistics_NK).all():
        run.statistics_NK, run.sentences = statistics_NK, digest.hexdigest()


def _curve(file: Path) -> Iterator[dict[str, float]]:
    """The validation rows of training; the closing evaluation's rows are left out. A torn last line is skipped."""
    if not file.is_file():
        return
    with open(file, encoding="utf-8") as lines:
        for line in lines:
            if '"valid"' not in line:
                continue
            try:
                row = json.loads(line)
                if row.get("split") == "valid" and not row.get("final"):
                    yield _numbers(row)
            except (ValueError, AttributeError):
                continue


def _flat(values: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    leaves = 0
    pending: list[tuple[str, Any]] = [(prefix, values)]
    while pending:
        name, value = pending.pop()
        leaves += 1
        if leaves > _MAX_LEAVES:
            raise BrokenRunError(f"its config unfolds to more than {_MAX_LEAVES} values")
        if isinstance(value, dict) and value:
            pending += [(f"{name}.{key}" if name else str(key), value[key]) for key in value]
        else:
            is_list = name in OTHER_RUNS and isinstance(value, list)
            yield name, _BETWEEN.join(map(str, value)) if is_list else _plain(value)


def _plain(value: Any) -> Any:
    """Lists as text, so that configs compare and hash."""
    return value if isinstance(value, (str, int, float, type(None))) else str(value)[:1000]


def _object(value: Any, what: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise BrokenRunError(f"{what} is no object")
    return value


def _numbers(values: Any) -> dict[str, float]:
    """The finite numbers of an object."""
    pairs: Iterable[tuple[Any, Any]] = _object(values, "a table of numbers").items()
    return {str(key): float(v) for key, v in pairs if isinstance(v, (int, float)) and math.isfinite(v)}


def _finite(value: Any) -> float:
    number = float(value)
    if not math.isfinite(number):
        raise ValueError(f"{value} is not finite")
    return number


def _stage(row: Any) -> dict[str, Any]:
    values = _object(row, "a stage")
    return {"name": str(values["name"]), "valid": _numbers(values.get("valid") or {}), **_numbers(values)}
