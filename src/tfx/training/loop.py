"""The training loop: batches in, weights out, within a budget."""

from __future__ import annotations

import math
import resource
import sys
import time
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from tfx.config.schema import Root, SaveConfig
from tfx.data.batching import Batch, training_batches
from tfx.data.prepare import PreparedData
from tfx.evaluation.memory import in_memory
from tfx.evaluation.scoring import run_batch, score_loss
from tfx.model.architecture import Architecture
from tfx.model.device import Precision, choose_precision, compile_for
from tfx.model.flops import forward_flops
from tfx.model.linear import set_product_dtype
from tfx.model.loss import CrossEntropy, projected_losses
from tfx.model.rewiring import reshape
from tfx.model.transformer import Transformer
from tfx.record.seeds import derive_seed
from tfx.record.signals import StoppedBySignal, deferring_signals, raise_if_signalled
from tfx.record.vocabulary import LOSS_METRICS
from tfx.techniques.contract import Moment, Objective
from tfx.techniques.stack import Stack
from tfx.training.averaging import Averager
from tfx.training.budget import Clock
from tfx.training.optimizers import build_optimizers
from tfx.training.schedules import schedule_factor
from tfx.training.stability import Guard

# A loss term's name, its sum, and over how many targets.
_Report = tuple[str, Tensor, int]

# What a trainer counts besides its parts, by the names of its attributes.
_COUNTERS = (
    "best",
    "without_improvement",
    "next_validation",
    "ended",
    "stopped",
    "compressing",
    "positions",
    "flops",
    "pieces",
)


class Observer:
    """What is told about a training as it goes; this one listens to nothing."""

    def stepped(self, row: dict[str, float], *, step: int, tokens: int, seconds: float, progress: float) -> None:
        """A logging interval is over; ``row`` has its mean loss, learning rate and speed."""

    def validated(self, row: dict[str, float], *, step: int, tokens: int, seconds: float, progress: float) -> None:
        """The validation split was scored."""

    def compressing(self, seconds: float) -> None:
        """The first technique is about to change weights for the sake of the file; the model holds those to keep."""

    def noted(self, message: str) -> None:
        """Something happened that the user should know of."""

    def keep(self, name: str) -> None:
        """The model holds the weights to keep as ``"best"`` or ``"last"``."""

    def save(self, step: int, state: dict[str, Any]) -> None:
        """The state after a step, from which a `Trainer` can go on; its tensors change with the next one."""


@dataclass
class TrainingResult:
    """What a training did, for `summary.json`. Tokens are real ones of both sides, without padding."""

    steps: int
    tokens: int
    seconds: float
    tokens_per_second: float
    padding: float
    flops: float
    mfu: float | None
    peak_memory_bytes: int
    stopped_early: bool
    best_step: int
    final_weights: str
    skipped_steps: int

    def to_dict(self) -> dict[str, Any]:
        """As plain JSON values."""
        return asdict(self)


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
    ) -> None:
        """``state`` is one that the observer of an earlier trainer of this config was given to save: it goes on there.

        ``recorded`` is the `Clock.history` of a run that is repeated.
        """
        self.config, self.model, self.data, self.device, self.observer = config, model, data, device, observer
        self.stack = stack
        extra = stack.prepare_model(model)
        self.precision: Precision = choose_precision(config.trainer.precision, device)
        set_product_dtype(model, self.precision.products if self.precision.autocast is None else torch.float32)
        model.set_checkpointing(config.trainer.activation_checkpointing)
        if state is not None:
            # Parts may have left the model since it was built.
            reshape(model, Architecture.from_dict(state["architecture"]), state["model"])
            extra.load_state_dict(state["extra"])
        compile_for(model, config.trainer, device)
        # What a technique trains along (a projection) is optimised with the model, and not part of it.
        self._extra = extra
        trained = nn.ModuleList([model, extra]) if len(extra) else model
        self._parameters: list[Tensor] = [parameter for parameter in trained.parameters() if parameter.requires_grad]
        self.optimizers = build_optimizers(config.optimizer, trained, device)
        smoothing = config.trainer.label_smoothing
        self.label_smoothing = (0.1 if data.task == "seq2seq" else 0.0) if smoothing is None else smoothing
        self.averager = Averager(config.trainer.averaging, model)
        self.guard = Guard(config.trainer.instability)
        self.clock = Clock(config.trainer.budget, recorded)
        self._interval = _Interval(self.clock)
        # Of the best weights so far: score, step, and where they are to be kept the states of model and extra.
        self._best: tuple[float, int, list[dict[str, Tensor]]] | None = None
        self._without_improvement = 0
        self._next_validation = 1
        self._ended = self._stopped = self._compressing = False
        self._positions = 0
        self._flops = 0.0
        # Into how many pieces each batch is cut, so that it fits the device's memory.
        self._pieces = 1
        if state is not None:
            self._restore(state)

    def train(self) -> TrainingResult:
        """Spends what is left of the budget; the model then holds the final weights.

        Raises `UnstableError` before a step whose loss or gradients are not finite, where the policy is to stop.
        Signals wait for the end of a step or for the next batch of a validation: then the state is saved, and
        `StoppedBySignal` raised.
        """
        if not self._ended:
            with deferring_signals():
                try:
                    self._loop()
                except StoppedBySignal:
                    self._save()
                    raise
        seconds = self.clock.seconds
        self._prepare(1.0)
        with self.clock.paused():
            self.averager.apply()
            self.observer.keep("last")
            final = "last"
            if self.config.trainer.keep == "best" and self._best is not None:
                for module, weights in zip((self.model, self._extra), self._best[2], strict=True):
                    module.load_state_dict(weights)
                final = "best"
            elif self._best is None and self.clock.steps and self._chooses:
                self.observer.noted(
                    "every validation came before the whole stack had its final form: there was nothing to stop early "
                    "by, or to keep as the best (an earlier end of a ramp, or a smaller trainer.validate_every, helps)"
                )
        return self._result(seconds, final)

    @property
    def _chooses(self) -> bool:
        """Whether validations decide which weights are kept, or when to stop."""
        return self.config.trainer.keep == "best" or self.config.trainer.early_stopping.metric is not None

    def _loop(self) -> None:
        config = self.config.trainer
        batches = training_batches(
            self.data.splits["train"],
            self.data.tokenizer,
            batch_tokens=self.config.dataset.batch_tokens,
            context=self.model.architecture.context,
            seed=self.config.seed,
            start=self.clock.steps * config.accumulation,
            reorder=self.stack.reorder if self.stack.order["order_batches"] else None,
        )
        self.model.train()
        saving = _Saving(config.save, self.clock.steps)
        while True:
            progress = self.clock.progress
            if self.clock.steps and (progress >= self._next_validation * config.validate_every - 1e-9 or progress >= 1):
                self._check_finite()
                with self.clock.paused():
                    self._stopped = self._validate()
                while self._next_validation * config.validate_every <= progress + 1e-9:
                    self._next_validation += 1
            if progress >= 1.0 or self._stopped:
                break
            self._prepare(progress)
            factor = schedule_factor(self.config.schedule, self.clock.middle_of_step())
            step_batches = [next(batches) for _ in range(config.accumulation)]
            self._step(step_batches, factor, progress)
            self.averager.update(self.clock.progress)
            if self.clock.steps % config.log_every == 0:
                self._check_finite()
                self.observer.stepped(self._interval.row(self.config.optimizer.lr * factor), **self._place())
                self._interval = _Interval(self.clock)
            if saving.is_due(self.clock.steps):
                with self.clock.paused():
                    self._save()
            raise_if_signalled()
        self._ended = True
        if self.clock.steps:
            self._save()

    # --- one step -----------------------------------------------------------------------------------

    def _prepare(self, progress: float) -> None:
        """What techniques do to the model itself, before a step at this progress and once at the end."""
        if not self._compressing and self.stack.compresses_now(progress):
            with self.clock.paused(), self.averager.applied():
                self.observer.compressing(self.clock.seconds)
            self._compressing = True
        for rewiring in self.stack.rewire(self.model, progress):
            became = rewiring.apply(self.model)
            self.optimizers.rewire(became)
            self.averager.rewire(became)
            self._parameters = became.follow(self._parameters)
            # Kept weights of the larger model are no candidates any more.
            self._best = None
        if progress < 1.0:
            self.stack.view.update(self.model, progress)

    def _step(self, batches: list[Batch], factor: float, progress: float) -> None:
        """One optimizer step, or the policy's measure where it must not be taken."""
        targets = sum(batch.targets for batch in batches)
        batches = [piece for batch in batches for piece in batch.split(self._pieces)] if self._pieces > 1 else batches
        while (gradients := self._gradients(batches, targets, progress)) is None:
            batches = self._smaller(batches)
        nll, reports = gradients
        limit = self.config.optimizer.clip_norm
        norm = torch.nn.utils.clip_grad_norm_(self._parameters, math.inf if limit is None else limit)
        fault = None
        if self.device.type == "cpu" or self.guard.config.policy != "stop":
            fault = self.guard.fault(float(nll) / targets, float(norm))
        if fault is None:
            self.stack.view.follow_gradients(self.model)
            self.optimizers.step(factor * self.guard.learning_rate_factor)
            self._interval.add(nll, norm, batches)
            for name, total, count in reports:
                self.stack.report(name, total, count)
        else:
            self._refuse_step(fault, batches)
        self.optimizers.zero_grad()
        self.clock.advance(sum(batch.tokens for batch in batches))
        for batch in batches:
            self._positions += batch.positions
            self._flops += 3.0 * _forward_flops(self.model, batch)

    def _gradients(self, batches: list[Batch], targets: int, progress: float) -> tuple[Tensor, list[_Report]] | None:
        """Fills the gradients; returns the summed negative log-likelihood and what techniques are to know of it.

        None where the device has too little memory; no gradients are left then.
        """
        # Dropout draws from the global generators; keyed by the step, a resumed run draws the same.
        torch.manual_seed(derive_seed(self.config.seed, "step", self.clock.steps))
        total = torch.zeros((), device=self.device)
        reports: list[_Report] = []
        try:
            seen = self.stack.view.see(self.model, progress)
            for index, batch in enumerate(batches):
                moment = Moment(self.config.seed, self.clock.steps, index, progress)
                changed = self.stack.transform_batch(batch.to(self.device), moment)
                loss, nll = seen.run(partial(self._loss, changed, moment, reports))
                # Averaged over the targets of the whole step, however they are spread over its batches.
                (loss / targets).backward()
                total += nll
            seen.pass_back()
        except torch.OutOfMemoryError:
            if all(len(batch.rows) == 1 for batch in batches):
                raise
            self.optimizers.zero_grad()
            return None
        return total, reports

    def _smaller(self, batches: list[Batch]) -> list[Batch]:
        """The same step in batches of half the size, now and from here on."""
        if self.device.type == "cuda":
            torch.cuda.empty_cache()
        self._pieces *= 2
        self.observer.noted(
            f"out of memory at step {self.clock.steps + 1}: each batch is cut into {self._pieces} from here on, and "
            "their gradients are added up"
        )
        return [piece for batch in batches for piece in batch.split(2)]

    def _refuse_step(self, fault: str, batches: list[Batch]) -> None:
        gradients = {
            name: float(parameter.grad.norm())
            for name, parameter in self.model.named_parameters()
            if parameter.grad is not None
        }
        # A norm that is not a number counts as the largest.
        worst = sorted(gradients, key=lambda name: -gradients[name] if math.isfinite(gradients[name]) else -math.inf)
        norms = ", ".join(f"{name} {gradients[name]:.3g}" for name in worst[:5])
        rows = ", ".join(str(row) for batch in batches for row in batch.rows[:8])
        where = f"step {self.clock.steps + 1}: {fault}"
        self.observer.noted(f"{where}; examples {rows}, …; largest gradient norms: {norms}")
        self.observer.noted(f"step {self.clock.steps + 1}: {self.guard.respond(where)}")

    def _loss(self, batch: Batch, moment: Moment, reports: list[_Report]) -> tuple[Tensor, Tensor]:
        """Summed training loss, and the summed plain negative log-likelihood without gradients."""
        hidden_ND = self._forward(self.model, batch).flatten(0, 1)
        targets = batch.targets_and_weights()
        keep_N = None
        if self.device.type == "cpu" and (batch.mix is not None or batch.targets < hidden_ND.shape[0]):
            keep_N = torch.stack([ids >= 0 for ids, _ in targets]).any(0)
            hidden_ND = hidden_ND[keep_N]
            targets = [(ids[keep_N], None if weight is None else weight[keep_N]) for ids, weight in targets]
        task = CrossEntropy(targets, self.label_smoothing)
        objective = Objective(batch, self._forward, hidden_ND, keep_N, [("task", task, 1.0)])
        self.stack.objective(objective, moment)
        loss, reported = projected_losses(
            hidden_ND,
            self.model.output.weight,
            [(term, scale) for _, term, scale in objective.logit_losses],
            dtype=self.precision.products,
        )
        for (name, _, _), report_N in zip(objective.logit_losses, reported, strict=True):
            reports.append((name, report_N.sum(), batch.targets))
        for _, value, scale in objective.other:
            loss = loss + scale * value
        return loss, reported[0].sum()

    def _forward(self, model: Transformer, batch: Batch) -> Tensor:
        """Hidden states (B, T, D) of the model, or of a teacher, in the precision of the training."""
        if model is not self.model:
            self._flops += _forward_flops(model, batch)
        autocast = self.precision.autocast
        with torch.autocast(self.device.type, autocast) if autocast is not None else nullcontext():
            return run_batch(model, batch)

    def _check_finite(self) -> None:
        """Where looking at every step would stall the device, the interval is looked at as a whole."""
        if not math.isfinite(self._interval.loss):
            self.guard.respond(f"step {self.clock.steps} or shortly before: the loss is {self._interval.loss}")

    # --- validation ---------------------------------------------------------------------------------

    def _validate(self) -> bool:
        """Scores the validation split with the averaged weights; returns whether to stop early."""
        stopping = self.config.trainer.early_stopping
        with self.averager.applied():
            with torch.no_grad():
                seen = self.stack.view.see(self.model, self.clock.progress)
            score = in_memory(
                self.config.evaluation.batch_tokens,
                lambda tokens: seen.run(
                    lambda: score_loss(
                        self.model,
                        self.data.splits["valid"],
                        self.data.tokenizer,
                        batch_tokens=tokens,
                        device=self.device,
                        between=raise_if_signalled,
                    )
                ),
            )
            metrics = score.metrics
            self.observer.validated(metrics, **self._place())
            if not self.stack.settled():
                # A model that is yet to lose weights or precision scores better than any that has lost them.
                return False
            watched = metrics[stopping.metric or LOSS_METRICS[0]]
            if self._best is None or watched < self._best[0]:
                kept = [self.model, self._extra] if self.config.trainer.keep == "best" else []
                # Their own values and not the view: that is made of them at the end, as it is of the last ones.
                states = [{name: t.detach().clone() for name, t in module.state_dict().items()} for module in kept]
                self._best = (watched, self.clock.steps, states)
                self._without_improvement = 0
                self.observer.keep("best")
            else:
                self._without_improvement += 1
        return stopping.metric is not None and self._without_improvement >= stopping.patience

    # --- the state ----------------------------------------------------------------------------------

    def _save(self) -> None:
        self._check_finite()
        self.observer.save(self.clock.steps, self._state())

    def _state(self) -> dict[str, Any]:
        """All that exact going on needs, as of the end of the last step."""
        return {
            "architecture": self.model.architecture.to_dict(),
            "model": self.model.state_dict(),
            "extra": self._extra.state_dict(),
            "optimizers": self.optimizers.state_dict(),
            "averager": self.averager.state_dict(),
            "stack": self.stack.state_dict(),
            "clock": self.clock.state_dict(),
            "guard": self.guard.state_dict(),
            "interval": self._interval.state_dict(),
            **{name: getattr(self, f"_{name}") for name in _COUNTERS},
        }

    def _restore(self, state: dict[str, Any]) -> None:
        """The rest of a state: the weights are in the model already, and the optimizers were built for them."""
        self.optimizers.load_state_dict(state["optimizers"])
        self.averager.load_state_dict(state["averager"])
        self.stack.load_state_dict(state["stack"])
        self.clock.load_state_dict(state["clock"])
        self.guard.load_state_dict(state["guard"])
        self._interval = _Interval(self.clock)
        self._interval.load_state_dict(state["interval"])
        for name in _COUNTERS:
            setattr(self, f"_{name}", state[name])
        # With a longer budget less of it is spent: validations and snapshots are due anew, and the end was none.
        progress = self.clock.progress
        due = int(progress / self.config.trainer.validate_every + 1e-9) + 1
        self._next_validation = min(self._next_validation, due)
        self.averager.go_back(progress)
        self._ended = self._ended and (self._stopped or self.clock.progress >= 1.0)

    # --- the account --------------------------------------------------------------------------------

    def _place(self) -> dict[str, Any]:
        clock = self.clock
        return {"step": clock.steps, "tokens": clock.tokens, "seconds": clock.seconds, "progress": clock.progress}

    def _result(self, seconds: float, final: str) -> TrainingResult:
        peak = peak_flops(self.device)
        seconds = max(seconds, 1e-9)
        return TrainingResult(
            steps=self.clock.steps,
            tokens=self.clock.tokens,
            seconds=seconds,
            tokens_per_second=self.clock.tokens / seconds,
            padding=1.0 - self.clock.tokens / self._positions if self._positions else 0.0,
            flops=self._flops,
            mfu=self._flops / seconds / peak if peak else None,
            peak_memory_bytes=peak_memory(self.device),
            stopped_early=self._stopped,
            best_step=self._best[1] if self._best else 0,
            final_weights=final,
            skipped_steps=self.guard.skipped,
        )


class _Saving:
    """When a state is due."""

    def __init__(self, config: SaveConfig, step: int) -> None:
        self._config = config
        self._step = step
        self._time = time.monotonic()

    def is_due(self, step: int) -> bool:
        """Whether to save now, after this step."""
        every, minutes = self._config.every_steps, self._config.every_minutes
        due = every is not None and step - self._step >= every
        due = due or (minutes is not None and time.monotonic() - self._time >= 60 * minutes)
        if due:
            self._step, self._time = step, time.monotonic()
        return due


class _Interval:
    """Means over the steps since the last row, without waiting for the device at each of them."""

    _SUMS = ("tokens", "seconds", "nll", "norm", "targets", "real", "positions")

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._tokens, self._seconds = clock.tokens, clock.seconds
        self._nll: Tensor | None = None
        self._norm: Tensor | None = None
        self._targets, self._real, self._positions = 0, 0, 0

    def add(self, nll: Tensor, norm: Tensor, batches: list[Batch]) -> None:
        self._nll = nll if self._nll is None else self._nll + nll
        self._norm = norm
        self._targets += sum(batch.targets for batch in batches)
        self._real += sum(batch.tokens for batch in batches)
        self._positions += sum(batch.positions for batch in batches)

    @property
    def loss(self) -> float:
        return 0.0 if self._nll is None else float(self._nll) / max(1, self._targets)

    def row(self, learning_rate: float) -> dict[str, float]:
        seconds = max(self._clock.seconds - self._seconds, 1e-9)
        return {
            "loss": self.loss,
            "learning_rate": learning_rate,
            "gradient_norm": 0.0 if self._norm is None else float(self._norm),
            "tokens_per_second": (self._clock.tokens - self._tokens) / seconds,
            "padding": 1.0 - self._real / max(1, self._positions),
        }

    def state_dict(self) -> dict[str, Any]:
        """The sums so far."""
        return {name: getattr(self, f"_{name}") for name in self._SUMS}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """The inverse of `state_dict`."""
        for name in self._SUMS:
            setattr(self, f"_{name}", state[name])


def _forward_flops(model: Transformer, batch: Batch) -> float:
    rows, length = batch.target_in_BT.shape
    source = 0 if batch.source_BS is None else batch.source_BS.shape[1]
    return forward_flops(model.architecture, rows, source, length)


# Dense bfloat16 peaks from the vendors' data sheets, in FLOP/s.
_PEAKS = {
    "H100": 989e12,
    "H200": 989e12,
    "A100": 312e12,
    "L40S": 362e12,
    "L4": 121e12,
    "RTX 4090": 165e12,
    "V100": 125e12,
}


def peak_flops(device: torch.device) -> float | None:
    """The device's peak where it is known, else None."""
    if device.type != "cuda":
        return None
    name = torch.cuda.get_device_name(device)
    return next((peak for known, peak in _PEAKS.items() if known in name), None)


def peak_memory(device: torch.device) -> int:
    """The most memory used so far: allocated on a GPU, resident of the process on a CPU; bytes."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    usage = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return usage if sys.platform == "darwin" else usage * 1024
