"""One optimizer step: the gradients of its batches, the guard's check, and the step or its refusal."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from tfx.config.schema import Root
from tfx.errors import UserError
from tfx.model.batch import Batch
from tfx.model.device import choose_precision, is_asynchronous
from tfx.model.label_loss import task_loss
from tfx.model.loss import projected_losses
from tfx.model.modes import scoring
from tfx.model.rewiring import ParameterMap
from tfx.model.transformer import States, Transformer, run_batch, run_batch_with_states
from tfx.processes.group import ALONE
from tfx.record.seeds import derive_seed
from tfx.techniques.contract import HeldMeans, Instant, Objective
from tfx.techniques.stack import Stack
from tfx.training.accounts import batch_flops
from tfx.training.optimizers import build_optimizers
from tfx.training.parallel import Sharing
from tfx.training.profile import exchange, part
from tfx.training.stability import build_guard

Result = TypeVar("Result")


@dataclass(frozen=True)
class StepResult:
    """What a step did: its ``batches``, and the FLOPs of everything that ran, in all processes.

    ``nll`` is the summed negative log-likelihood and ``norm`` that of the gradient; both None if the step was refused.
    Where that is decided on the device, both are there, and ``refused`` is 1 if it was.
    """

    batches: Sequence[Batch]
    flops: float
    nll: Tensor | None = None
    norm: Tensor | None = None
    refused: Tensor | None = None


class Stepper:
    """Takes the optimizer steps of one training: optimizers, guard, and how batches fit the device's memory."""

    def __init__(
        self,
        config: Root,
        model: Transformer,
        extra: nn.Module,
        device: torch.device,
        stack: Stack,
        label_smoothing: float,
        note: Callable[[str], Any],
        sharing: Sharing | None = None,
    ) -> None:
        """``extra`` are modules that techniques train: optimised with the model, but not part of it.

        ``sharing`` is how several processes share a step; None: there is one.
        """
        self.sharing = sharing or Sharing(ALONE)
        self.config, self.model, self.device, self.stack, self.note = config, model, device, stack, note
        self.label_smoothing = label_smoothing
        self.precision = choose_precision(config.trainer.precision, device)
        self._trained = nn.ModuleList([model, extra]) if any(True for _ in extra.parameters()) else model
        if self.sharing.group.size > 1 and stack.order["rewrite_batch"]:
            names = " and ".join(f"'{technique.name}'" for technique in stack.order["rewrite_batch"])
            raise UserError(
                f"technique {names} trains on what the student writes (on_policy), which one process does: set "
                "trainer.devices=1"
            )
        self.parameters: list[Tensor] = [weight for weight in self._trained.parameters() if weight.requires_grad]
        self.optimizers = build_optimizers(config.optimizer, self._trained, device)
        if is_asynchronous(device):
            # Before the first activations, so that these are cut into pieces for the memory that is left.
            self.optimizers.allocate()
        # A divided weight cannot be refused on its device: the host waits for the verdict.
        judged_on = torch.device("cpu") if self.sharing.divides_weights else device
        self.guard = build_guard(config.trainer.instability, judged_on)
        # The examples of each step since the last look at the guard, by its number.
        self._examples: dict[int, str] = {}
        # Number of pieces that each batch is cut into to fit the device's memory.
        self.pieces = 1
        # FLOPs in the current step beside the first pass of the model: of teachers, further passes, and techniques.
        self._other_flops = 0.0

    def rewire(self, parameter_map: ParameterMap) -> None:
        """Carries the state of parameters over to the smaller ones that replace them."""
        self.optimizers.rewire(parameter_map)
        self.optimizers.regroup(build_optimizers(self.config.optimizer, self._trained, self.device))
        self.sharing.rewire(parameter_map)
        self.parameters = parameter_map.follow(self.parameters)

    def take(self, batches: Sequence[Batch], factor: float, number: int, progress: float) -> StepResult:
        """Takes the ``number``-th step from 0, at ``factor`` times the learning rate, or applies the policy instead.

        Raises `UnstableError` before a step that must not be taken, if the policy is to stop.
        """
        with HeldMeans() as of_batches:
            batches, writing_flops = self._rewritten(batches, number, progress)
            whole = [self._changed(batch, number, index, progress) for index, batch in enumerate(batches)]
        with HeldMeans() as held:
            while (nll := self._gradients(batches, whole, number, progress)) is None:
                held.drop()
                self._cut(number)
        with exchange(self.sharing.group.place):
            nll = self._combine(nll, held, batches)
        targets = sum(batch.targets for batch in batches)
        limit = self.config.optimizer.clip_norm
        own_norm = torch.nn.utils.get_total_norm([p.grad for p in self.parameters if p.grad is not None])
        norm = self.sharing.common_norm(own_norm)
        verdict = self.guard.judge(nll, targets, norm, number)
        if verdict.fault is None:
            if limit is not None:
                torch.nn.utils.clip_grads_with_norm_(self.parameters, limit, own_norm)
            self.stack.view.follow_gradients(self.model, verdict.refused, self.sharing.rows)
            with part("optimizer"):
                self.optimizers.step(factor * self.guard.learning_rate_factor, verdict.refused)
            for means in (of_batches, held):
                means.add(verdict.refused)
            if verdict.refused is not None:
                self._examples[number] = _examples(batches)
        else:
            self._refuse(verdict.fault, batches, number)
        self.optimizers.zero_grad()
        # A backward pass costs two forward ones.
        flops = writing_flops + self._other_flops + 3.0 * sum(batch_flops(self.model, batch) for batch in batches)
        if verdict.fault is not None:
            return StepResult(batches, flops)
        return StepResult(batches, flops, nll, norm, verdict.refused)

    def look(self) -> None:
        """Tells what was refused on the device since the last look. Raises `UnstableError` if the run must stop."""
        refusals, examples = self.guard.look(), self._examples
        self._examples = {}
        if refusals is not None:
            where = f"step {refusals.step + 1}: {refusals.fault}"
            if refusals.count > 1:
                where += f", the last of {refusals.count} such steps since the last look"
            self.note(f"{where}; examples {examples.get(refusals.step, 'unknown')}")
            self.note(f"step {refusals.step + 1}: {self.guard.respond(where)}")

    def _rewritten(self, batches: Sequence[Batch], number: int, progress: float) -> tuple[Sequence[Batch], float]:
        """The batches, or those that the model writes in their place, and the FLOPs of writing them."""
        if not self.stack.order["rewrite_batch"]:
            return batches, 0.0

        def student(work: Callable[[Transformer], Result]) -> Result:
            with torch.no_grad():
                seen = self.stack.view.see(self.model, progress)
            with scoring(self.model):
                return seen.run(lambda: work(self.model))

        found = [
            self.stack.rewrite_batch(batch, student, Instant(self.config.seed, number, index, progress))
            for index, batch in enumerate(batches)
        ]
        return [batch for batch, _ in found], sum(flops for _, flops in found)

    def _changed(self, batch: Batch, number: int, index: int, progress: float) -> Batch:
        """A whole batch as techniques change it, on the device; still on the CPU if none does."""
        if not self.stack.order["transform_batch"]:
            return batch
        return self.stack.transform_batch(batch.to(self.device), Instant(self.config.seed, number, index, progress))

    def _gradients(
        self, batches: Sequence[Batch], whole: Sequence[Batch], number: int, progress: float
    ) -> Tensor | None:
        """Computes the gradients of this process's rows of ``whole``, which are ``batches`` as techniques change them.

        Returns their summed negative log-likelihood. Returns None, and leaves no gradients, if the device of any
        process has too little memory.
        """
        rank, size = self.sharing.group.rank, self.sharing.group.size
        # Dropout draws from the global generators; keyed by the step, a resumed run draws the same.
        torch.manual_seed(derive_seed(self.config.seed, "step", number, *([rank] if rank else [])))
        total = torch.zeros((), device=self.device)
        pieces, counting = self._pieces(batches, whole)
        averaged = pieces if self.sharing.steps_apart else batches
        # FSDP2 takes the mean over processes, and each of them divides by the targets of all.
        divisor = sum(batch.targets for batch in averaged) / (size if self.sharing.divides_weights else 1)
        self._other_flops = 0.0
        fits = True
        try:
            with self.stack.view.see(self.model, progress, self.sharing.rows) as seen:
                for index, piece in enumerate(pieces):
                    moment = Instant(self.config.seed, number, index, progress)
                    # The average is over the targets of the whole step, not over its batches.
                    nll = seen.run(partial(self._pass, piece, moment, divisor if index < counting else None))
                    if index < counting:
                        total += nll
                seen.pass_back()
            # Other processes' passes read the other rows.
            self._other_flops *= sum(len(b.rows) for b in batches) / max(1, sum(len(p.rows) for p in pieces))
        except torch.OutOfMemoryError:
            if all(self.pieces >= len(batch.rows) for batch in batches):
                raise
            fits = False
        with exchange(self.sharing.group.place):
            all_fit = self.sharing.all_fit(fits, self.parameters)
        if all_fit:
            return total
        self.optimizers.zero_grad()
        return None

    def _pass(self, piece: Batch, moment: Instant, divisor: float | None) -> Tensor:
        """Runs a piece forwards and backwards, its loss divided or, with None, not counted; returns what is told of it.

        Both with the weights as they are seen: activation checkpointing runs blocks once more on the way back.
        """
        with part("forward and loss"):
            loss, nll = self._loss(piece, moment)
        with part("backward"), self.precision.backward():
            (0.0 * loss if divisor is None else loss / divisor).backward()
        return nll

    def _pieces(self, batches: Sequence[Batch], whole: Sequence[Batch]) -> tuple[list[Batch], int]:
        """This process's rows on the device, and how many of these pieces count.

        The others hold a row that is of another process: they are there so that all run the same number of passes.
        """
        pieces: list[Batch] = []
        fillers: list[Batch] = []
        for batch, changed in zip(batches, whole, strict=True):
            for rows in self.sharing.own(len(batch.rows), self.pieces):
                is_filler = rows.start == rows.stop
                piece = changed.part(slice(0, 1) if is_filler else rows, batch)
                (fillers if is_filler else pieces).append(piece.to(self.device) if changed is batch else piece)
        return [*pieces, *fillers], len(pieces)

    def _cut(self, number: int) -> None:
        """Halves the size of the pieces in which batches are run, now and from now on."""
        if self.device.type == "cuda":
            torch.cuda.empty_cache()
        self.pieces *= 2
        self.note(
            f"out of memory at step {number + 1}: each batch is cut into {self.pieces} from now on, and "
            "their gradients are added up"
        )

    def _combine(self, nll: Tensor, held: HeldMeans, batches: Sequence[Batch]) -> Tensor:
        """Adds up the gradients, the evidence and the negative log-likelihood of all processes; returns the latter."""
        group = self.sharing.group
        if group.size == 1:
            return nll
        sums = {"nll": nll}
        for place, (_, total, count) in enumerate(held.merged()):
            sums[f"total {place}"] = _on_device(total, self.device)
            sums[f"count {place}"] = _on_device(count, self.device)
        everywhere = all(len(batch.rows) >= group.size for batch in batches)
        found = self.sharing.combine(self.parameters, sums, everywhere)
        held.replace((found[f"total {place}"], found[f"count {place}"]) for place in range(len(held.merged())))
        return found["nll"]

    def _refuse(self, fault: str, batches: Sequence[Batch], number: int) -> None:
        gradients = {
            name: float(parameter.grad.norm())
            for name, parameter in self.model.named_parameters()
            if parameter.grad is not None
        }
        # A norm that is not a number counts as the largest.
        worst = sorted(gradients, key=lambda name: -gradients[name] if math.isfinite(gradients[name]) else -math.inf)
        norms = ", ".join(f"{name} {gradients[name]:.3g}" for name in worst[:5])
        where = f"step {number + 1}: {fault}"
        self.note(f"{where}; examples {_examples(batches)}; largest gradient norms: {norms}")
        self.note(f"step {number + 1}: {self.guard.respond(where)}")

    def _loss(self, batch: Batch, moment: Instant) -> tuple[Tensor, Tensor]:
        """Summed training loss, and what is told of it, without gradients: the plain negative log-likelihood."""
        states = None
        if self.stack.reads_states:
            hidden_BTD, states = self._forward_with_states(self.model, batch)
        else:
            hidden_BTD = self._forward(self.model, batch)
        hidden_ND = hidden_BTD.flatten(0, 1)
        targets = batch.targets_and_weights()
        keep_N = None
        # Picking them would wait for the device: it must say how many there are.
        if not is_asynchronous(self.device) and (batch.mix is not None or batch.targets < hidden_ND.shape[0]):
            keep_N = torch.stack([ids >= 0 for ids, _ in targets]).any(0)
            hidden_ND = hidden_ND[keep_N]
            targets = [(ids[keep_N], None if weight is None else weight[keep_N]) for ids, weight in targets]
        task = task_loss(self.model.architecture, batch, targets, keep_N, self.label_smoothing)
        terms = [("task", task, float(batch.is_labelled))]
        objective = Objective(self.model, batch, self._forward_more, hidden_ND, keep_N, terms)
        objective.states, objective.forward_with_states = states, self._forward_with_states
        self.stack.objective(objective, moment)
        self._other_flops += objective.flops
        loss, reported = projected_losses(
            *self.model.output_factors(objective.hidden_ND),
            [(term, scale) for _, term, scale in objective.logit_losses],
            dtype=self.precision.products,
        )
        for (name, _, _), report_N in zip(objective.logit_losses, reported, strict=True):
            self.stack.report(name, report_N.sum(), batch.targets)
        for _, value, scale in objective.other:
            loss = loss + scale * value
        return loss, _told(batch, self.model, reported).sum()

    def _forward_more(self, model: Transformer, batch: Batch) -> Tensor:
        """Another pass of the model, which costs a backward one too, or one of a teacher."""
        self._other_flops += (3.0 if model is self.model else 1.0) * batch_flops(model, batch)
        return self._forward(model, batch)

    def _forward(self, model: Transformer, batch: Batch) -> Tensor:
        """Hidden states (B, T, D) of the model, or of a teacher, in the precision of the training."""
        with self.precision.forward(self.device):
            return run_batch(model, batch)

    def _forward_with_states(self, model: Transformer, batch: Batch) -> tuple[Tensor, States]:
        """The same with the states between its blocks: the first pass of the model, or one of a teacher."""
        if model is not self.model:
            self._other_flops += batch_flops(model, batch)
        with self.precision.forward(self.device):
            return run_batch_with_states(model, batch)


def _on_device(value: Tensor | float, device: torch.device) -> Tensor:
    """A value as a tensor. A number is filled in on the device: to copy it from the CPU would wait for that."""
    return value.to(device) if isinstance(value, Tensor) else torch.full((), value, device=device)


def _told(batch: Batch, model: Transformer, reported: Sequence[Tensor]) -> Tensor:
    """What the guard and the log hear of a batch (N,): the task's own term.

    Texts without labels have labels that stand for nothing: of those it is what the teacher's term reports.
    """
    if batch.is_labelled or model.architecture.outputs is None:
        return reported[0]
    return reported[1] if len(reported) > 1 else torch.zeros_like(reported[0])


def _examples(batches: Sequence[Batch]) -> str:
    """The first examples of each batch, by number."""
    return ", ".join(str(row) for batch in batches for row in batch.rows[:8]) + ", …"
