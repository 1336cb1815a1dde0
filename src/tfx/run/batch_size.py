"""``dataset.batch_tokens=auto``: the largest batch whose step fits into the memory at hand, found before training.

A training step is taken on the batches of an epoch that need the most, with a model, a stack and an optimizer of their
own, which are then thrown away. On a GPU batches grow until one does not fit. A CPU has no such sign before the system
ends the process: there two small steps are measured, and the rest follows, for memory grows with the positions.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from tfx.config.schema import AUTO, Root
from tfx.errors import UserError
from tfx.model.device import drop_unused_memory

if TYPE_CHECKING:
    from tfx.model.batch import Batch
    from tfx.run.setup import Parts, Setup
    from tfx.techniques.contract import Teachers

# The first batch that is tried, in positions.
_FIRST = 1024
# How close to the largest that fits the number found is: within a sixteenth.
_CLOSE = 16
# Parts of the free memory that a training may take: a GPU's allocator loses some, and a CPU has other work.
_SHARE = {"cuda": 0.9}
_SHARE_ELSEWHERE = 0.5
# A copy of the weights is fp32.
_COPY_BYTES = 4


def with_batch_tokens(setup: Setup, teachers: Teachers, note: Callable[[str], Any]) -> Root:
    """The config of a setup with a number for ``dataset.batch_tokens``, the same in all processes.

    Raises `UserError` if not even one example fits.
    """
    config, group = setup.config, setup.group
    if config.dataset.batch_tokens != AUTO:
        return config
    most = config.dataset.batch_tokens_limit
    limit = _memory_limit(setup)
    each = _found(setup, teachers, limit, max(1, most // group.size))
    drop_unused_memory(setup.device)
    # The smallest that any process has found.
    each = -int(group.greatest(-each)[0])
    if not each:
        raise UserError(
            f"dataset.batch_tokens=auto: a step on one example does not fit into {limit / 1e9:.2f} GB: use a smaller "
            "model or model.context, trainer.activation_checkpointing=true, or more memory (trainer.memory_gb)"
        )
    tokens = each * group.size
    why = f"the most that fits into {limit / 1e9:.2f} GB"
    if each >= most // group.size:
        tokens, why = most, "the most that is tried (dataset.batch_tokens_limit)"
    note(f"dataset.batch_tokens=auto: {tokens:,}, {why}")
    return replace(config, dataset=replace(config.dataset, batch_tokens=tokens))


def _memory_limit(setup: Setup) -> int:
    """Bytes that a process may take, the same number in all; on a GPU with what it has taken already."""
    import torch

    from tfx.system.memory import free_memory, installed_memory

    config, device = setup.config, setup.device
    if config.trainer.memory_gb is not None:
        return int(config.trainer.memory_gb * 1e9)
    if device.type == "cuda":
        free: float | None = torch.cuda.mem_get_info(device)[0] + torch.cuda.memory_reserved(device)
    else:
        # Processes of one machine share it.
        free = free_memory() or installed_memory()
        free = None if free is None else free / setup.group.place.local_size
    if free is None:
        raise UserError(
            "dataset.batch_tokens=auto: this system does not say how much memory is free: set trainer.memory_gb"
        )
    return int(-setup.group.greatest(-free * _SHARE.get(device.type, _SHARE_ELSEWHERE))[0])


def _found(setup: Setup, teachers: Teachers, limit: int, most: int) -> int:
    """The largest number of tokens up to ``most`` of which this process's steps fit; 0: not even one example does."""
    from tfx.run.setup import Setup as Another

    config = replace(setup.config, dataset=replace(setup.config.dataset, batch_tokens=min(_FIRST, most)), dry_run=False)
    other = Another(config, setup.group)
    for technique, _ in other.stack.teacher_needs():
        technique.receive_teachers(teachers[technique.name], None, other.device)
    steps = _Steps(other.prepare(teachers))
    # What a training holds beside its steps: an average of the weights, and the best ones so far.
    copies = (config.trainer.averaging.kind != "none") + (config.trainer.keep == "best")
    limit -= copies * _COPY_BYTES * sum(weight.numel() for weight in steps.parts.model.parameters())
    if setup.device.type == "cuda":
        return largest(lambda tokens: steps.fits(tokens, limit), steps.one_row, most)
    needed = steps.prediction()
    return largest(lambda tokens: needed(tokens) <= limit, steps.one_row, most)


def largest(fits: Callable[[int], bool], least: int, most: int) -> int:
    """The largest number from ``least`` to ``most`` that fits, or one at most a sixteenth below; 0: none does.

    It doubles until one does not fit, and then halves the gap: what fits less and less is tried as little as possible.
    """
    least = min(least, most)
    low, high = 0, max(least, min(_FIRST, most))
    while fits(high):
        low = high
        if high == most:
            return most
        high = min(2 * high, most)
    if not low:
        if high == least or not fits(least):
            return 0
        low = least
    while high - low > max(1, low // _CLOSE):
        middle = (low + high) // 2
        low, high = (middle, high) if fits(middle) else (low, middle)
    return low


class _Steps:
    """Training steps of a run on batches of any size, at the progress where most of its techniques act."""

    def __init__(self, parts: Parts) -> None:
        from tfx.training.step import Stepper

        self.parts = parts
        model, stack = parts.model.train(), parts.stack
        extra = stack.prepare_model(model)
        model.set_checkpointing(parts.config.trainer.activation_checkpointing)
        self._progress = stack.busiest()
        stack.view.update(model, self._progress)
        self._stepper = Stepper(parts.config, model, extra, parts.device, stack, 0.1, lambda message: None)
        self._number = 0
        # Positions of the longest example.
        self.one_row = max(-(-batch.positions // len(batch.rows)) for batch in self._batches(1))

    def _batches(self, tokens: int) -> Sequence[Batch]:
        from tfx.tasks.batches import demanding_batches

        parts = self.parts
        options = {"context": parts.model.architecture.context, "seed": parts.config.seed}
        return demanding_batches(parts.data.splits["train"], parts.data.tokenizer, batch_tokens=tokens, **options)

    def _take(self, batch: Batch) -> None:
        """A step that leaves the weights as they are."""
        from tfx.techniques.contract import Instant

        moment = Instant(self.parts.config.seed, self._number, 0, self._progress)
        self._stepper.take([self.parts.stack.resize_batch(batch, moment)], 0.0, self._number, self._progress)
        self._number += 1

    def fits(self, tokens: int, limit: int) -> bool:
        """Whether a GPU takes a step on such batches in one piece, and within the limit."""
        import torch

        from tfx.training.allocations import peak_of

        for batch in self._batches(tokens):
            self._stepper.pieces = 1
            try:
                peak = peak_of(lambda batch=batch: self._take(batch), self.parts.device)  # type: ignore[misc]
            except torch.OutOfMemoryError:
                peak = limit + 1
            if peak > limit or self._stepper.pieces > 1:
                torch.cuda.empty_cache()
                return False
        return True

    def prediction(self) -> Callable[[int], float]:
        """Bytes that a step on batches of ``tokens`` takes, from two that are measured: they are linear in it."""
        from tfx.training.allocations import peak_of

        first = max(_FIRST, 2 * self.one_row)
        small, large = self._batches(first), self._batches(2 * first)
        self._take(small[0])  # makes the optimizer's moments
        lines = []
        for pair in zip(small, large, strict=True):
            peaks = [peak_of(lambda batch=batch: self._take(batch), self.parts.device) for batch in pair]  # type: ignore[misc]
            positions = [batch.positions for batch in pair]
            more = positions[1] - positions[0]
            # With so few examples that one batch has them all, a larger one is the same.
            slope = (peaks[1] - peaks[0]) / more if more > 0 else 0.0
            lines.append((peaks[1], positions[1], slope))
        return lambda tokens: max(peak + slope * (tokens - positions) for peak, positions, slope in lines)
