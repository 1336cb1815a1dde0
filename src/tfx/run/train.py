"""The training of a run: rows go to its log and the console, weights and states to its files."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tfx.compression import checkpoint
from tfx.record.directory import RunDirectory
from tfx.record.files import write_json, write_text
from tfx.record.metrics_log import MetricsLog
from tfx.run.measure import Measurer
from tfx.run.resuming import kept_settings
from tfx.run.tracking.contract import Trackers
from tfx.system.signals import hold_signals
from tfx.terminal.console import RunConsole
from tfx.training.loop import Observer, Trainer
from tfx.training.state import StateSaver

if TYPE_CHECKING:
    from tfx.record.summary import TrainingCost
    from tfx.run.setup import Parts


class Recorder(Observer):
    """Records a training. ``resumed`` are the steps after which the run was resumed."""

    def __init__(
        self,
        parts: Parts,
        run: RunDirectory,
        console: RunConsole,
        measurer: Measurer,
        resumed: Sequence[int],
        place: dict[str, Any] | None,
        trackers: Trackers,
    ) -> None:
        """``place`` is the position of the metrics log of a resumed run (`MetricsLog.place`)."""
        self.parts, self.run, self.console, self.measurer, self.resumed = parts, run, console, measurer, list(resumed)
        self.metrics, self.trackers = MetricsLog(run.metrics, place), trackers
        if self.metrics.is_altered:
            console.note(f"{run.metrics} is not what it was when the state was saved: rows that are missing stay so")
        self.saver = StateSaver(run.state, parts.config.trainer.save.keep)

    def close(self) -> None:
        """Closes the log, and waits until the last state is written."""
        self.metrics.close()
        self.saver.close()

    def stepped(self, row: dict[str, Any], **place: Any) -> None:
        self.metrics.write("train", **place, **row)
        self.trackers.log("train", row, place["step"])
        self.console.stepped(row, **place)

    def validated(self, row: dict[str, Any], **place: Any) -> None:
        self.metrics.write("valid", **place, **row)
        self.trackers.log("valid", row, place["step"])
        self.console.validated(row, **place)

    def compressing(self, seconds: float) -> None:
        self.console.training_ended()
        with self.measurer.helped():
            self.measurer.measure_model("trained", self.parts.model, seconds)
        self.console.training_started()

    def noted(self, message: str) -> None:
        self.console.note(message)

    def profiled(self, table: str, write_trace: Callable[[Path], Any]) -> None:
        write_text(self.run.profile, table)
        # The profiler compresses what it writes to a name with this end.
        temporary = self.run.path / ".new.tmp.json.gz"
        try:
            write_trace(temporary)
            temporary.replace(self.run.trace)
        finally:
            temporary.unlink(missing_ok=True)
        self.console.note(f"where the time of a step goes: {self.run.profile}")

    def keep(self, name: str) -> None:
        self.run.state.mkdir(exist_ok=True)
        file = self.run.state / f"{name}.safetensors"
        checkpoint.save(file, self.parts.model, self.parts.data.tokenizer, self.parts.config.evaluation)

    def save(self, step: int, state: dict[str, Any]) -> None:
        measured = self.measurer.state_dict()
        rest = {"measurer": measured, "metrics": self.metrics.place(), "resumed": self.resumed}
        rest["settings"] = kept_settings(self.parts.config)
        self.saver.save(step, {"training": state, **rest})


def build_trainer(parts: Parts, observer: Observer, state: dict[str, Any] | None, recorded: Sequence[float]) -> Trainer:
    """The trainer of a run: from its start, or from the ``state`` that a `Recorder` saved.

    ``recorded`` is the progress after each step of a run that is being repeated (`Clock`). Raises `UserError` for
    settings that do not fit the model.
    """
    training = None if state is None else state["training"]
    return Trainer(
        parts.config, parts.model, parts.data, parts.device, observer, parts.stack, training, recorded, parts.group
    )


def train(trainer: Trainer, recorder: Recorder) -> TrainingCost:
    """Trains until the budget is spent; the model then holds the final weights."""
    try:
        recorder.console.training_started()
        result = trainer.train()
    except Exception:
        if trainer.group.size > 1:
            hold_signals()  # of a launcher or a cluster, which would replace the reason while the files are closed
        raise
    finally:
        recorder.console.training_ended()
        recorder.close()
    if trainer.clock.history:
        write_json(recorder.run.progress, trainer.clock.history)
    return result
