"""The run directory: the path of each file of a run. No run is ever overwritten."""

from __future__ import annotations

import errno
import os
import shutil
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import yaml

from tfx.errors import UserError
from tfx.record.summary import Summary

# The ending of a state that was found damaged and set aside.
DAMAGED = ".damaged"


@dataclass(frozen=True)
class RunDirectory:
    """Paths inside one run's folder."""

    path: Path

    @classmethod
    def create(cls, path: Path) -> RunDirectory:
        """Makes the folder; raises `UserError` if it holds a run already, other files of such names, or cannot be made.

        So all files of these names are the run's own from then on: `remove` takes no others.
        """
        run = cls(path)
        if run.config.exists():
            raise UserError(
                f"{path} holds a run already and is not overwritten: continue it with `tfx resume {path}`, "
                "or name another folder with hydra.run.dir=…"
            )
        # A run that was killed as soon as it began left its lock, and may have left these two.
        first = () if run.lock.exists() else (run.overrides, run.log)
        states = [run.state] if any(path.suffix != DAMAGED for path in run.state.glob("*")) else []
        if found := [file.name for file in (*states, *first, *run._written) if file.exists()]:
            raise UserError(
                f"{path} holds {found[0]}, which a run would overwrite: name another folder with hydra.run.dir=…"
            )
        try:
            path.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UserError(f"the run directory {path} cannot be made: {error.strerror}") from error
        return run

    @classmethod
    def open(cls, path: Path) -> RunDirectory:
        """The folder of an existing run; raises `UserError` where there is none."""
        run = cls(path)
        if not path.exists():
            raise UserError(f"{path} does not exist: name a run directory")
        if not run.config.is_file():
            raise UserError(f"{path} is not a run directory: it has no {run.config.name}")
        return run

    def clear(self) -> None:
        """Removes what a run wrote besides its config and log, so that it can start over; other files stay.

        So do states that were set aside as damaged: somebody may still read them.
        """
        for path in self.state.glob("*"):
            if path.is_dir():
                shutil.rmtree(path, ignore_errors=True)
            elif path.suffix != DAMAGED:
                path.unlink(missing_ok=True)
        with suppress(OSError):  # it holds such states, or is not there
            self.state.rmdir()
        for path in self._written:
            path.unlink(missing_ok=True)
        self.tidy()

    @property
    def _written(self) -> tuple[Path, ...]:
        """What a run writes besides its config, its log and its states."""
        written = (self.environment, self.metrics, self.tokenizer, self.model, self.compressed, self.predictions)
        recorded = (self.tokenizer_roles, self.profile, self.trace, self.tracking)
        return (*written, *recorded, self.tensors, self.attention, self.report, self.summary)

    def tidy(self) -> None:
        """Removes what a killed process was writing."""
        for path in [self.stage, *self.path.glob(".*.tmp"), *self.state.glob(".*.tmp")]:
            path.unlink(missing_ok=True)

    def remove(self) -> None:
        """Removes all that a run wrote. Its folder stays: it may have been there before."""
        self.clear()
        for path in (self.config, self.overrides, self.log, self.lock):
            path.unlink(missing_ok=True)

    @property
    def config(self) -> Path:
        """The resolved config."""
        return self.path / "config.yaml"

    @property
    def overrides(self) -> Path:
        """What the user typed."""
        return self.path / "overrides.yaml"

    @property
    def environment(self) -> Path:
        """Versions, hardware and fingerprints."""
        return self.path / "environment.json"

    @property
    def metrics(self) -> Path:
        """Rows of training, validation and test."""
        return self.path / "metrics.jsonl"

    @property
    def log(self) -> Path:
        """What the console showed, and tracebacks."""
        return self.path / "train.log"

    @property
    def profile(self) -> Path:
        """Where the time of a step goes, as a table."""
        return self.path / "profile.txt"

    @property
    def trace(self) -> Path:
        """The same steps for a trace viewer."""
        return self.path / "trace.json.gz"

    @property
    def tokenizer(self) -> Path:
        """The tokenizer, in the `tokenizers` library's format."""
        return self.path / "tokenizer.json"

    @property
    def tokenizer_roles(self) -> Path:
        """What the special tokens are for, if the tokenizer came with a model of another library."""
        return self.path / "tokenizer.roles.json"

    @property
    def state(self) -> Path:
        """The folder of the states that resuming needs, and of the weights kept while training."""
        return self.path / "state"

    @property
    def progress(self) -> Path:
        """Progress after each step, if the budget is in seconds: needed to repeat the run exactly."""
        return self.state / "progress.json"

    @property
    def stage(self) -> Path:
        """A model file that exists only while it is measured."""
        return self.path / ".stage.safetensors"

    @property
    def lock(self) -> Path:
        """The file that a process locks while it works in the folder."""
        return self.path / ".lock"

    @property
    def model(self) -> Path:
        """The final model as plain tensors."""
        return self.path / "model.safetensors"

    @property
    def compressed(self) -> Path:
        """The final model as the codecs of its stack store it."""
        return self.path / "compressed.safetensors"

    @property
    def predictions(self) -> Path:
        """Source, reference and hypothesis of the test split."""
        return self.path / "predictions.jsonl"

    @property
    def tensors(self) -> Path:
        """Shape, codec, bits and sparsity of each tensor of the final file."""
        return self.path / "tensors.json"

    @property
    def tracking(self) -> Path:
        """How each tracker finds this run again."""
        return self.path / "tracking.json"

    @property
    def attention(self) -> Path:
        """Attention weights of a few test inputs, if `evaluation.attention_maps` asks for them."""
        return self.path / "attention.json"

    @property
    def report(self) -> Path:
        """One page about this run."""
        return self.path / "report.html"

    @property
    def summary(self) -> Path:
        """The result."""
        return self.path / "summary.json"

    def read_overrides(self) -> list[str]:
        """What the user typed for the run; empty where the file is missing or no list."""
        try:
            return [str(line) for line in yaml.safe_load(self.overrides.read_text(encoding="utf-8")) or []]
        except (OSError, ValueError, TypeError, yaml.YAMLError):
            return []

    def read_summary(self) -> Summary:
        """The content of `summary.json`; raises `UserError` if it is missing, broken, or from a newer tfx."""
        if self.config.is_file() and not self.summary.exists():
            raise UserError(
                f"{self.path} has no {self.summary.name}: the run did not complete, and `tfx resume {self.path}` goes "
                "on"
            )
        return Summary.read(self.summary)

    def training_cost(self) -> dict[str, float]:
        """Steps, tokens, seconds and FLOPs that the run's weights cost; empty if the run did not complete.

        Includes the cost of the model that it started from, and the seconds and FLOPs of its teachers.
        """
        result = self.read_summary().result if self.summary.is_file() else None
        if result is None:
            return {}
        own, reference = result.train, result.reference
        before = (reference.train or {}) if reference is not None and reference.name == "init_from" else {}
        cost = {key: getattr(own, key) + (before.get(key) or 0) for key in ("steps", "tokens", "seconds", "flops")}
        for key in ("seconds", "flops"):
            cost[key] += getattr(own, f"teacher_{key}")
        return cost

    @property
    def final(self) -> Path:
        """The file to ship; raises `UserError` if the run has none yet."""
        if self.compressed.is_file():
            return self.compressed
        if not self.model.is_file():
            raise UserError(
                f"{self.path} has no {self.model.name}: the run did not complete, and `tfx resume {self.path}` goes on"
            )
        return self.model


def model_file(path: Path) -> Path:
    """The model file that RUN|FILE names: the file itself, or a run directory's final one."""
    if path.is_file():
        return path
    if path.is_dir():
        return RunDirectory.open(path).final
    raise UserError(f"{path} does not exist: name a run directory or a model file")


def cache_folder() -> Path:
    """``$TFX_CACHE``, else the user's cache folder; holds tokenized data and tokenizers.

    Raises `UserError` if the system has no home folder.
    """
    try:
        if given := os.environ.get("TFX_CACHE"):
            return Path(given).expanduser().absolute()
        base = os.environ.get("XDG_CACHE_HOME", "")
        # The specification of that variable says that a relative path is not valid.
        return (Path(base) if base.startswith("/") else Path.home() / ".cache") / "tfx"
    except RuntimeError:
        raise UserError("there is no home folder for the cache: name a folder with the variable TFX_CACHE") from None


def writable_cache(name: str) -> Path:
    """A folder of the cache, made if it is missing; raises `UserError` if it cannot be written."""
    folder = cache_folder() / name
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if not os.access(folder, os.W_OK):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
    except OSError as error:
        raise UserError(
            f"the cache folder {folder} cannot be written ({error.strerror}): name another one with TFX_CACHE"
        ) from error
    return folder
