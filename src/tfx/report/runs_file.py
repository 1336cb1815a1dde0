"""Kept runs: what tables stand on, of many runs in one small file.

``STUDY.runs.jsonl`` stands for the folder ``STUDY`` beside it, with a line for each run directory in it: its name
below that folder, its config and summary whole, the rows of its metrics, and a note on what the config cannot say.
Where a kept run starts from another, learns from it or is compared with it, its config names that run by its path
from the folder that holds the file (``dense/6m/seed1`` is the line ``6m/seed1`` of ``dense.runs.jsonl``).
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any

import yaml

from tfx.errors import UserError
from tfx.record.directory import RunDirectory
from tfx.record.files import read_json, write_text

SUFFIX = ".runs.jsonl"
_TRAIN_ROWS = 20
# How Hydra starts a saved config again: not what the run was.
_HYDRA = ("defaults", "hydra")


@dataclass(frozen=True)
class KeptRun:
    """One line of the file."""

    name: str
    config: dict[str, Any]
    summary: dict[str, Any]
    metrics: list[dict[str, Any]] = field(default_factory=list)
    note: str = ""

    @property
    def settings(self) -> dict[str, Any]:
        """The config with the note: runs that only their notes tell apart are no runs of one config."""
        return {**self.config, **({"note": self.note} if self.note else {})}


def keep(folder: Path, name: str, note: str = "", names: Mapping[str, str] | None = None) -> KeptRun:
    """What is kept of a run directory: of its training rows about twenty, all others.

    ``names`` has the kept runs' names for paths in its config and summary. Raises `UserError` where it is no run
    directory or has no summary.
    """
    run = RunDirectory.open(folder)
    config = yaml.safe_load(run.config.read_text(encoding="utf-8"))
    rows = []
    if run.metrics.is_file():
        rows = [json.loads(line) for line in run.metrics.read_text(encoding="utf-8").splitlines()]
    training = sum(row.get("split") == "train" for row in rows)
    every, seen, metrics = max(1, -(-training // _TRAIN_ROWS)), 0, []
    for row in rows:
        seen += row.get("split") == "train"
        if row.get("split") != "train" or seen % every == 0:
            metrics.append(row)
    config = {key: value for key, value in config.items() if key not in _HYDRA}
    return KeptRun(name, _renamed(config, names or {}), _renamed(read_json(run.summary), names or {}), metrics, note)


def _renamed(value: Any, names: Mapping[str, str]) -> Any:
    if isinstance(value, dict):
        return {key: _renamed(item, names) for key, item in value.items()}
    if isinstance(value, list):
        return [_renamed(item, names) for item in value]
    return names.get(value, value) if isinstance(value, str) else value


def write_kept(file: Path, runs: Sequence[KeptRun]) -> None:
    """Writes the runs in the order of their names; raises `UserError` where two have one name, or one has a bad one."""
    runs = sorted(runs, key=lambda run: run.name)
    for run, after in zip(runs, [*runs[1:], None], strict=True):
        if not _good_name(run.name):
            raise UserError(f"{run.name!r} cannot name a kept run: name it by a path such as quantize-4bit/seed1")
        if after is not None and run.name == after.name:
            raise UserError(f"{file} would hold {run.name!r} twice: give each run a name of its own")
    lines = [json.dumps(asdict(run), ensure_ascii=False, separators=(",", ":"), allow_nan=False) for run in runs]
    write_text(file, "".join(f"{line}\n" for line in lines))


def kept_files(folder: Path, names: Sequence[str]) -> list[Path]:
    """Those of a folder's files that hold kept runs, in the order of their names."""
    return [folder / name for name in sorted(names) if name.endswith(SUFFIX)]


def read_kept(file: Path) -> Iterator[tuple[Path, KeptRun | str]]:
    """Each line's path, as if the runs lay in a folder, with its run, or with why it cannot be read."""
    folder = file.with_name(file.name.removesuffix(SUFFIX))
    try:
        lines = file.read_bytes().splitlines()
    except OSError as error:
        yield file, f"unreadable: {error.strerror}"
        return
    for number, line in enumerate(lines, 1):
        try:
            run = KeptRun(**json.loads(line))
            if not _good_name(run.name):
                raise ValueError(f"{run.name!r} is no name of a kept run")
            if not (isinstance(run.config, dict) and isinstance(run.summary, dict) and isinstance(run.metrics, list)):
                raise TypeError("config and summary are objects, metrics is a list")
        except (TypeError, ValueError, RecursionError) as error:
            yield Path(f"{file}:{number}"), " ".join(f"unreadable: {error}".split())[:300]
        else:
            yield folder / run.name, run


def kept_run(path: Path) -> tuple[Path, KeptRun] | None:
    """The kept run that ``path`` names, behind the folder of its file; None where it names none."""
    place = path.resolve()
    for folder in list(place.parents)[:-1]:
        file = folder.with_name(f"{folder.name}{SUFFIX}")
        if file.is_file():
            state = file.stat()
            run = _runs(file, state.st_mtime_ns, state.st_size).get(place)
            return None if run is None else (file.parent, run)
    return None


@lru_cache(maxsize=64)
def _runs(file: Path, changed: int, size: int) -> dict[Path, KeptRun]:
    return {path: run for path, run in read_kept(file) if isinstance(run, KeptRun)}


def _good_name(name: Any) -> bool:
    parts = name.split("/") if isinstance(name, str) and name.isprintable() else [""]
    return not {"", ".", ".."} & set(parts)
