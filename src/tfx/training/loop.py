"""The training loop: batches in, weights out, within a budget."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import torch

from tfx.config.schema import Root, TrainerConfig
from tfx.evaluation.out_of_memory import in_memory
from tfx.evaluation.scoring import score_loss
from tfx.model.architecture import Architecture
from tfx.model.compilation import CompilationAccount, compile_for
from tfx.model.device import cudnn_attention, scoring_in, scoring_numbers
from tfx.model.rewiring import reshape
from tfx.model.transformer import Transformer
from tfx.processes.group import ALONE, Group, mapped
from tfx.record.summary import TrainingCost
from tfx.system.signals import StoppedBySignal, deferred_signal, deferring_signals, raise_if_signalled, stop_as_others
from tfx.tasks import task_named
from tfx.tasks.batches import training_batches
from tfx.tasks.prepare import PreparedData
from tfx.techniques.calibration import Calibration
from tfx.techniques.contract import Instant
from tfx.techniques.stack import Stack
from tfx.training.accounts import Interval, peak_flops, peak_memory, reset_peak_memory
from tfx.training.ahead import made_ahead
from tfx.training.averaging import Averager
from tfx.training.budget import Clock
from tfx.training.parallel import LocalSteps, Sharing
from tfx.training.profile import StepProfile, exchange, part
from tfx.training.schedules import schedule_factor
from tfx.training.stability import UnstableError
from tfx.training.state import SaveSchedule
from tfx.training.step import Stepper, StepResult
from tfx.training.validation import Selection

# Names of the counters that a trainer has besides its parts.
_COUNTERS = ("ended", "stopped", "compressing", "positions", "flops")


class Observer:
    """Receives the events of a training; this base class ignores them."""

    def stepped(self, row: dict[str, float], *, step: int, tokens: int, seconds: float, progress: float) -> None:
        """A logging interval ended; ``row`` has its mean loss, learning rate and speed."""

    def validated(self, row: dict[str, float], *, step: int, tokens: int, seconds: float, progress: float) -> None:
        """The validation split was scored."""

    def compressing(self, seconds: float) -> None:
        """The first technique is about to compress; the model holds the trained weights."""

    def noted(self, message: str) -> None:
        """Something happened that the user should know."""

    def profiled(self, table: str, write_trace: Callable[[Path], Any]) -> None:
        """Some steps were measured (``trainer.profile``); ``write_trace`` writes a file that ends in ``.json.gz``."""

    def keep(self, name: str) -> None:
        """The model holds the weights to keep as ``"best"`` or ``"last"``."""

    def save(self, step: int, state: dict[str, Any]) -> None:
        """The state after a step, from which a `Trainer` can resume; the next step changes its tensors."""


class Trainer:
    """Trains one model on one data set."""

    def __init__(
        self,
        config: Root,
        model: Transformer,
        data: PreparedData,
        device: torch.device,
        observer: Observer,
        stack: Stack,
        state: dict[str, Any] | None = None,
        recorded: Sequence[float] = (),
        group: Group = ALONE,
    ) -> None:
        """``state`` was saved by the observer of an earlier trainer of this config; training resumes from it. It is on
        the CPU.

        ``recorded`` is the `Clock.history` of a run that is being repeated. Each process of a ``group`` has a trainer
        of its own, and calls the same methods in the same order.
        """
        self.group, self._sharing = group, _sharing(config.trainer, group)
        self.config, self.model, self.data, self.device, self.observer = config, model, data, device, observer
        self.stack = stack
        self._extra = stack.prepare_model(model)
        model.set_checkpointing(config.trainer.activation_checkpointing)
        if state is not None:
            state = self._own_state(state)
            # Parts may have been removed from the model since it was built.
            reshape(model, Architecture.from_dict(state["architecture"]), state["model"])
            self._extra.load_state_dict(state["extra"])
        smoothing = config.trainer.label_smoothing
        if smoothing is None:
            smoothing = task_named(data.task).label_smoothing
        # The one that trains, and the one that others know: the same, but where weights are divided.
        self.model, self._whole = self._sharing.divide(model, self._extra), model
        model = self.model
        self.stepper = Stepper(config, model, self._extra, device, stack, smoothing, observer.noted, self._sharing)
        is_resized = stack.order["resize_batch"] or stack.order["rewrite_batch"]
        self._has_one_shape = data.splits["train"].has_one_shape and not is_resized
        if not self._sharing.divides_weights:
            # Compiling runs a model once more, and where weights are divided all processes must run it as often.
            compile_for(model, config.trainer, device, trains_on_one_shape=self._has_one_shape)
        self._compilation = CompilationAccount()
        self.averager = Averager(config.trainer.averaging, model)
        self.selection = Selection(config, [model, self._extra])
        self.clock = Clock(config.trainer.budget, recorded, group)
        self._sharing.begin(self.stepper.parameters, self.stepper.optimizers)
        self._interval = Interval(self.clock)
        self._ended = self._stopped = self._compressing = False
        self._positions = 0
        self._flops = 0.0
        if state is not None:
            self._restore(state)
        batches = training_batches(
            data.splits["train"],
            data.tokenizer,
            batch_tokens=config.dataset.batch_size,
            context=model.architecture.context,
            seed=config.seed,
            start=self.clock.steps * config.trainer.accumulation,
            reorder=stack.reorder if stack.order["order_batches"] else None,
            state=None if state is None else state.get("batches"),
        )
        self._batches = made_ahead(batches, config.trainer, device)

    def train(self) -> TrainingCost:
        """Trains for the rest of the budget; the model then holds the final weights.

        Raises `UnstableError` before a step whose loss or gradients are not finite, if the policy is to stop. A signal
        waits for the end of a step or for the next batch of a validation: then the state is saved, and
        `StoppedBySignal` raised.
        """
        reset_peak_memory(self.device)
        if not self._ended:
            with deferring_signals(), cudnn_attention(self._has_one_shape):
                try:
                    self._loop()
                except StoppedBySignal:
                    self._save()
                    raise
                finally:
                    self._batches.close()
        seconds = self.clock.seconds
        # What comes once training is over has the whole model.
        self.stack.view.join_rows(self.model, self._sharing.rows)
        self.model = self._sharing.joined(self.model, self._whole)
        self.prepare(1.0)
        with self.clock.paused():
            self.averager.apply()
            self.observer.keep("last")
            self.data.shares = self._batches.shares()
            self.data.notes += (said := self._batches.notes())
            for note in said:
                self.observer.noted(note)
            is_best = self.selection.restore_best()
            if self.selection.best is None and self.clock.steps and self.selection.decides:
                self.observer.noted(
                    "every validation came before the stack had its final form, so there was nothing to stop early "
                    "by, or to keep as the best: end the ramp earlier, or set a smaller trainer.validate_every"
                )
        return self._result(seconds, "best" if is_best else "last")

    def _loop(self) -> None:
        config = self.config.trainer
        self.model.train()
        profile = StepProfile(self.device, self.observer.profiled, self.group.place) if config.profile else None
        saving = SaveSchedule(config.save, self.clock.steps)
        while True:
            progress = self.clock.progress
            if self.clock.steps and self.selection.is_due(progress):
                self._look()
                self._sharing.meet(self.averager.average or [])
                with self.clock.paused(), profile.paused() if profile is not None else nullcontext():
                    self._stopped = self._validate()
                self.selection.passed(progress)
            if progress >= 1.0 or self._stopped:
                break
            if self._sharing.are_equal:
                self.prepare(progress)
            factor = schedule_factor(self.config.schedule, self.clock.middle_of_step())
            with part("batches"):
                step_batches = [
                    self.stack.resize_batch(
                        next(self._batches), Instant(self.config.seed, self.clock.steps, index, progress)
                    )
                    for index in range(config.accumulation)
                ]
            self._count(self.stepper.take(step_batches, factor, self.clock.steps, progress))
            with part("averaging"):
                self.averager.update(self.clock.progress)
            with exchange(self.group.place):
                self._sharing.stepped(self.averager.average or [])
            if profile is not None:
                with self.clock.paused():
                    profile.stepped()
            if self.clock.steps % config.log_every == 0:
                self._look()
                rate = self.config.optimizer.lr * factor * float(self.stepper.guard.learning_rate_factor)
                row = self._interval.row(rate)
                shares = {f"share/{each['dataset']}": each["share"] for each in self._batches.shares()}
                self.observer.stepped(row | shares, **self._place())
                self._interval = Interval(self.clock)
            # A signal to any process stops all of them at the end of the same step; the first one's clock says when a
            # state is due.
            is_due = saving.is_due(self.clock.steps) and self.group.is_first
            with exchange(self.group.place):
                signal, due = map(int, self.group.greatest(deferred_signal(), is_due))
            if due:
                with profile.paused() if profile is not None else nullcontext():
                    self._save()
            if signal:
                stop_as_others(signal)
        if profile is not None:
            profile.close()
        self._check_weights()
        self._ended = True
        if self.clock.steps:
            self._save()

    def prepare(self, progress: float) -> None:
        """Lets techniques change the model itself, before a step at this progress and once at the end."""
        if not self._compressing and self.stack.compresses_now(progress):
            with self.clock.paused(), self.averager.applied(), self._gathered():
                self.observer.compressing(self.clock.seconds)
            self._compressing = True
        calibration = Calibration.on(self.model, self.data, self.config, self.device)
        for rewiring in self.stack.rewire(self.model, progress, calibration):
            parameter_map = rewiring.apply(self.model)
            self.stepper.rewire(parameter_map)
            self.averager.rewire(parameter_map)
            self.selection.forget()
        if progress < 1.0:
            is_due = self.stack.view.is_due(progress)
            with self._gathered(changes=True) if is_due else nullcontext(self.model) as model:
                self.stack.view.update(model, progress)

    @contextmanager
    def _gathered(self, *, changes: bool = False) -> Iterator[Transformer]:
        """Inside, the model has whole weights, and techniques have what they add up by rows."""
        if self.model is self._whole:
            yield self.model
            return
        self.stack.view.join_rows(self.model, self._sharing.rows)
        with self._sharing.gathered(self.model, self._whole, changes=changes) as model:
            yield model

    def _count(self, step: StepResult) -> None:
        if step.nll is not None and step.norm is not None:
            self._interval.add(step.nll, step.norm, step.batches, step.refused)
        self.clock.advance(sum(batch.tokens for batch in step.batches))
        self._positions += sum(batch.positions for batch in step.batches)
        self._flops += step.flops

    def _look(self) -> None:
        """Tells what happened without waiting for it. Raises `UnstableError` if the run must stop."""
        self.stepper.look()
        for reason in self._compilation.given_up():
            self.observer.noted(f"torch does not compile a part of the forward pass, which is slower now: {reason}")

    @torch.no_grad()
    def _check_weights(self) -> None:
        """Raises `UnstableError` if a weight is not finite: the update of the last step is judged by no other."""
        with self.averager.applied():
            named = [*self.model.named_parameters(), *self._extra.named_parameters()]
            weights = [(name, self._sharing.rows(weight).part(weight)) for name, weight in named]
            # One number for the device to tell.
            if not torch.stack([weight.isfinite().all() for _, weight in weights]).all():
                wrong = next(name for name, weight in weights if not weight.isfinite().all())
                raise UnstableError(
                    f"after step {self.clock.steps} weights of {wrong} are not finite: try a smaller optimizer.lr"
                )

    def _validate(self) -> bool:
        """Scores the validation split with the averaged weights; returns whether to stop early."""
        with self.averager.applied(), self._gathered() as model:
            with torch.no_grad():
                seen = self.stack.view.see(model, self.clock.progress)
            config = self.config.evaluation
            with scoring_in(scoring_numbers(config.precision, self.device, is_result=False), self.device):
                score = in_memory(
                    config.batch_tokens,
                    lambda tokens: seen.run(
                        lambda: score_loss(
                            model,
                            self.data.splits["valid"],
                            self.data.tokenizer,
                            batch_tokens=tokens,
                            device=self.device,
                            between=raise_if_signalled if self.group.size == 1 else None,
                            group=self.group,
                        )
                    ),
                    self.group,
                ).completed(self.group)
            self._stop_if_signalled()
            metrics = score.metrics
            self.observer.validated(metrics, **self._place())
            if not self.stack.settled():
                # A model that has not lost weights or precision yet scores better than one that has.
                return False
            if self.selection.judge(metrics, self.clock.steps):
                self.observer.keep("best")
        return self.selection.stops

    def _stop_if_signalled(self) -> None:
        """Raises `StoppedBySignal` in all processes if a signal came to any of them."""
        if signal := int(self.group.greatest(deferred_signal())[0]):
            stop_as_others(signal)

    # --- the state ----------------------------------------------------------------------------------

    def _save(self) -> None:
        self._look()  # which waits for the steps that are still queued: they are training
        with self.clock.paused():
            self.observer.save(self.clock.steps, self.state())

    def state(self) -> dict[str, Any]:
        """All that exact resuming needs, at the end of the last step; the next step changes its tensors.

        Complete in the first process: others may have None in place of a tensor.
        """
        self.stack.view.join_rows(self.model, self._sharing.rows)
        return {
            "architecture": self.model.architecture.to_dict(),
            **self._differing_state(),
            "sharing": self._sharing.state_dict(),
            "clock": self.clock.state_dict(),
            "guard": self.stepper.guard.state_dict(),
            "interval": self._interval.state_dict(),
            "pieces": self.stepper.pieces,
            "batches": self._batches.state_dict(),
            **self.selection.state_dict(),
            **{name: getattr(self, f"_{name}") for name in _COUNTERS},
        }

    def _differing_state(self) -> dict[str, Any]:
        """The part of the state that is not the same in processes that step apart: then that of each, by rank."""
        own = {
            "model": self._sharing.saved_state(self.model.state_dict()),
            "extra": self._extra.state_dict(),
            "optimizers": self._sharing.saved_state(self.stepper.optimizers.state_dict()),
            "averager": self.averager.state_dict(),
            "stack": self.stack.state_dict(),
        }
        return {"ranks": self.group.gather_to_first(own)} if self._sharing.steps_apart else own

    def _own_state(self, state: dict[str, Any]) -> dict[str, Any]:
        """The state with this process's part of it. More processes than there were take the parts in turn.

        Weights and moments stay on the CPU: they are copied from there, where they are divided each process its own.
        """
        ranks = state.get("ranks", [{}])
        own = {name: value for name, value in state.items() if name != "ranks"} | ranks[self.group.rank % len(ranks)]
        return {
            name: value if name in ("model", "optimizers") else mapped(value, lambda tensor: tensor.to(self.device))
            for name, value in own.items()
        }

    def _restore(self, state: dict[str, Any]) -> None:
        """Loads the rest of a state: the weights are in the model already, and the optimizers were built for them."""
        optimizers = self.stepper.optimizers
        optimizers.load_state_dict(self._sharing.divide_moments(optimizers, state["optimizers"]))
        self.averager.load_state_dict(state["averager"])
        self._sharing.load_state_dict(state.get("sharing", {}))
        self.stack.load_state_dict(state["stack"])
        self.clock.load_state_dict(state["clock"])
        self.stepper.guard.load_state_dict(state["guard"])
        self.stepper.pieces = state["pieces"]
        self._interval = Interval(self.clock)
        self._interval.load_state_dict(state["interval"])
        for name in _COUNTERS:
            setattr(self, f"_{name}", state[name])
        # With a longer budget less of it is spent: validations and snapshots are due again, and this is not the end.
        progress = self.clock.progress
        self.selection.load_state_dict(state, progress)
        self.averager.go_back(progress)
        self._ended = self._ended and (self._stopped or progress >= 1.0)

    # --- the account --------------------------------------------------------------------------------

    def _place(self) -> dict[str, Any]:
        clock = self.clock
        return {"step": clock.steps, "tokens": clock.tokens, "seconds": clock.seconds, "progress": clock.progress}

    def _result(self, seconds: float, final: str) -> TrainingCost:
        peak = peak_flops(self.device)
        seconds = max(seconds, 1e-9)
        return TrainingCost(
            steps=self.clock.steps,
            batch_tokens=self.config.dataset.batch_size,
            tokens=self.clock.tokens,
            seconds=seconds,
            tokens_per_second=self.clock.tokens / seconds,
            padding=1.0 - self.clock.tokens / self._positions if self._positions else 0.0,
            flops=self._flops,
            mfu=self._flops / seconds / (peak * self.group.size) if peak else None,
            peak_memory_bytes=int(self.group.greatest(peak_memory(self.device))[0]),
            processes=self.group.size,
            stopped_early=self._stopped,
            best_step=self.selection.best[1] if self.selection.best else 0,
            best_by=self.selection.metric,
            final_weights=final,
            skipped_steps=self.stepper.guard.skipped,
            compiled_graphs=self._compilation.graphs,
        )


def _sharing(config: TrainerConfig, group: Group) -> Sharing:
    """What ``trainer.parallel`` names. A process alone can take local steps too: the outer ones then follow its own.

    A process alone has nobody to divide its weights with.
    """
    if config.parallel == "local":
        return LocalSteps(group, config.local)
    if config.parallel == "fsdp" and group.size > 1:
        from tfx.training.sharded import Sharded

        return Sharded(group)
    return Sharing(group)
