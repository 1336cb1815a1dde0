"""The training loop: batches in, weights out, within a budget."""

from __future__ import annotations

import itertools
import math
import resource
import sys
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import asdict, dataclass
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from tfx.config.schema import Root
from tfx.data.batching import Batch, training_batches
from tfx.data.prepare import PreparedData
from tfx.evaluation.scoring import run_batch, score_loss
from tfx.model.device import Precision, choose_precision
from tfx.model.flops import forward_flops
from tfx.model.linear import set_product_dtype
from tfx.model.loss import CrossEntropy, projected_losses
from tfx.model.transformer import Transformer
from tfx.report.scores import LOSS_METRICS
from tfx.run.seeds import derive_seed
from tfx.techniques.contract import Moment, Objective
from tfx.techniques.stack import Stack
from tfx.training.averaging import Averager
from tfx.training.budget import Clock
from tfx.training.optimizers import build_optimizers
from tfx.training.schedules import schedule_factor


class NonFiniteError(Exception):
    """The loss or a gradient is not a number any more."""


class Observer(Protocol):
    """What is told about a training as it goes."""

    def stepped(self, row: dict[str, float], *, step: int, tokens: int, seconds: float, progress: float) -> None:
        """A logging interval is over; ``row`` has its mean loss, learning rate and speed."""

    def validated(self, row: dict[str, float], *, step: int, tokens: int, seconds: float, progress: float) -> None:
        """The validation split was scored."""

    def compressing(self, seconds: float) -> None:
        """The first technique is about to change weights for the sake of the file; the model holds those to keep."""


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
    ) -> None:
        self.config, self.model, self.data, self.device, self.observer = config, model, data, device, observer
        self.stack = stack
        extra = stack.prepare_model(model)
        self.precision: Precision = choose_precision(config.trainer.precision, device)
        set_product_dtype(model, self.precision.products if self.precision.autocast is None else torch.float32)
        model.set_checkpointing(config.trainer.activation_checkpointing)
        if config.trainer.compile == "on" or (config.trainer.compile == "auto" and device.type == "cuda"):
            model.compile(dynamic=True)
        # What a technique trains along (a projection) is optimised with the model, and not part of it.
        trained = nn.ModuleList([model, extra]) if len(extra) else model
        self._parameters: list[Tensor] = [parameter for parameter in trained.parameters() if parameter.requires_grad]
        self.optimizers = build_optimizers(config.optimizer, trained, device)
        smoothing = config.trainer.label_smoothing
        self.label_smoothing = (0.1 if data.task == "seq2seq" else 0.0) if smoothing is None else smoothing
        self.averager = Averager(config.trainer.averaging, model)
        self.clock = Clock(config.trainer.budget)
        self._best: tuple[float, int, dict[str, Tensor]] | None = None
        self._without_improvement = 0
        self._compressing = False
        self._positions = 0
        self._flops = 0.0

    def train(self, keep: Callable[[str], None]) -> TrainingResult:
        """Spends the budget; the model then holds the final weights.

        ``keep(name)`` is called with ``"best"`` at each new best validation and with ``"last"`` at the end,
        while the model holds the weights to keep. Raises `NonFiniteError` before a step whose loss or gradients
        are not finite.
        """
        config = self.config.trainer
        batches = training_batches(
            self.data.splits["train"],
            self.data.tokenizer,
            batch_tokens=self.config.dataset.batch_tokens,
            context=self.model.architecture.context,
            seed=self.config.seed,
            reorder=self.stack.reorder if self.stack.order["order_batches"] else None,
        )
        self.model.train()
        self.clock = Clock(config.budget)
        validations = itertools.count(1)
        next_validation = next(validations) * config.validate_every
        stopped = False
        log = _Interval(self.clock)
        progress = self.clock.progress
        while progress < 1.0 and not stopped:
            self._prepare(progress)
            factor = schedule_factor(self.config.schedule, self.clock.middle_of_step())
            step_batches = [next(batches) for _ in range(config.accumulation)]
            nll, norm = self._step(step_batches, factor, progress)
            # Read once a step: a clock of seconds goes on, and all that follows must agree on the end.
            progress = self.clock.progress
            self.averager.update(progress)
            log.add(nll, norm, step_batches)
            if self.clock.steps % config.log_every == 0:
                self._check_finite(log)
                self.observer.stepped(log.row(self.config.optimizer.lr * factor), **self._place())
                log = _Interval(self.clock)
            if progress >= next_validation - 1e-9 or progress >= 1.0:
                self._check_finite(log)
                while next_validation <= progress + 1e-9:
                    next_validation = next(validations) * config.validate_every
                with self.clock.paused():
                    stopped = self._validate(keep)
        seconds = self.clock.seconds
        self._prepare(1.0)
        with self.clock.paused():
            self.averager.apply()
            keep("last")
            final = "last"
            if config.keep == "best" and self._best is not None:
                self.model.load_state_dict(self._best[2])
                final = "best"
        return self._result(seconds, stopped, final)

    # --- one step -----------------------------------------------------------------------------------

    def _prepare(self, progress: float) -> None:
        """What techniques do to the model itself, before a step at this progress and once at the end."""
        if not self._compressing and self.stack.compresses_now(progress):
            self._compressing = True
            with self.clock.paused(), self.averager.applied():
                self.observer.compressing(self.clock.seconds)
        for rewiring in self.stack.rewire(self.model, progress):
            became = rewiring.apply(self.model)
            self.optimizers.rewire(became)
            self.averager.rewire(became)
            self._parameters = became.follow(self._parameters)
            # Kept weights of the larger model are no candidates any more.
            self._best = None
        if progress < 1.0:
            self.stack.update(self.model, progress)

    def _step(self, batches: list[Batch], factor: float, progress: float) -> tuple[Tensor, Tensor]:
        """One optimizer step; returns the summed negative log-likelihood and the gradient norm."""
        targets = sum(batch.targets for batch in batches)
        # Dropout draws from the global generators; keyed by the step, a resumed run draws the same.
        torch.manual_seed(derive_seed(self.config.seed, "step", self.clock.steps))
        total = torch.zeros((), device=self.device)
        with self.stack.viewed(self.model, progress):
            for index, batch in enumerate(batches):
                moment = Moment(self.config.seed, self.clock.steps, index, progress)
                loss, nll = self._loss(self.stack.transform_batch(batch.to(self.device), moment), moment)
                # Averaged over the targets of the whole step, however they are spread over its batches.
                (loss / targets).backward()
                total += nll
        self.stack.adapt_gradients(self.model, progress)
        limit = self.config.optimizer.clip_norm
        norm = torch.nn.utils.clip_grad_norm_(self._parameters, math.inf if limit is None else limit)
        if self.device.type == "cpu" and not math.isfinite(float(norm)):
            raise NonFiniteError(self._non_finite(float(total)))
        self.optimizers.step(factor)
        self.optimizers.zero_grad()
        self.clock.advance(sum(batch.tokens for batch in batches))
        for batch in batches:
            self._positions += batch.positions
            rows, length = batch.target_in_BT.shape
            source = batch.source_BS.shape[1] if batch.source_BS is not None else 0
            self._flops += 3.0 * forward_flops(self.model.architecture, rows, source, length)
        return total, norm

    def _loss(self, batch: Batch, moment: Moment) -> tuple[Tensor, Tensor]:
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
            self.stack.report(name, report_N.sum(), batch.targets)
        for _, value, scale in objective.other:
            loss = loss + scale * value
        return loss, reported[0].sum()

    def _forward(self, model: Transformer, batch: Batch) -> Tensor:
        """Hidden states (B, T, D) of the model, or of a teacher, in the precision of the training."""
        autocast = self.precision.autocast
        with torch.autocast(self.device.type, autocast) if autocast is not None else nullcontext():
            return run_batch(model, batch)

    def _check_finite(self, log: _Interval) -> None:
        """Where looking at every step would stall the device, the interval is looked at as a whole."""
        if not math.isfinite(log.loss):
            raise NonFiniteError(self._non_finite(log.loss))

    def _non_finite(self, loss: float) -> str:
        return (
            f"the loss or a gradient is not finite at step {self.clock.steps + 1} (loss {loss}): "
            "try a smaller optimizer.lr, a longer schedule.warmup or trainer.precision=fp32"
        )

    # --- validation ---------------------------------------------------------------------------------

    def _validate(self, keep: Callable[[str], None]) -> bool:
        """Scores the validation split with the averaged weights; returns whether to stop early."""
        stopping = self.config.trainer.early_stopping
        with self.averager.applied(), self.stack.viewed(self.model, self.clock.progress):
            score = score_loss(
                self.model,
                self.data.splits["valid"],
                self.data.tokenizer,
                batch_tokens=self.config.evaluation.batch_tokens,
                device=self.device,
            )
            metrics = score.metrics
            self.observer.validated(metrics, **self._place())
            watched = metrics[stopping.metric or LOSS_METRICS[0]]
            if self._best is None or watched < self._best[0]:
                weights = {name: tensor.detach().clone() for name, tensor in self.model.state_dict().items()}
                self._best = (watched, self.clock.steps, weights)
                self._without_improvement = 0
                keep("best")
            else:
                self._without_improvement += 1
        return stopping.metric is not None and self._without_improvement >= stopping.patience

    # --- the account --------------------------------------------------------------------------------

    def _place(self) -> dict[str, Any]:
        clock = self.clock
        return {"step": clock.steps, "tokens": clock.tokens, "seconds": clock.seconds, "progress": clock.progress}

    def _result(self, seconds: float, stopped: bool, final: str) -> TrainingResult:
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
            stopped_early=stopped,
            best_step=self._best[1] if self._best else 0,
            final_weights=final,
        )


class _Interval:
    """Means over the steps since the last row, without waiting for the device at each of them."""

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
