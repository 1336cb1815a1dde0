"""Parts that watch training steps: whether they wait for the device, what torch compiles, and what a bad step does."""

from __future__ import annotations

import copy
import time
from collections.abc import Iterator
from pathlib import Path

import torch

from gpu.parts import Bench, Row, Told, counted_waits, part, trainer_of
from tfx.config.compose import compose
from tfx.config.schema import Budget, InstabilityConfig
from tfx.run.batch_size import with_batch_tokens
from tfx.run.setup import Parts, Setup
from tfx.tasks.batches import training_batches
from tfx.techniques.contract import Teacher
from tfx.training.loop import Trainer
from tfx.training.stability import UnstableError
from tfx.training.step import Stepper

_STEPS = 5
_PROGRESS = 0.3
_STACKS = {
    "dense": [],
    "shuffle, mixup": ["+technique=[shuffle,mixup]", "technique.shuffle.share=1"],
    "prune, quantize": ["+technique=[prune,quantize]", "technique.quantize.start=0", "technique.quantize.rate=4"],
    "distill": ["+technique=distill", "technique.distill.hidden=0.5"],
}
PAIRS = ("model=seq2seq_small", "dataset=normalize")


def _stepper(parts: Parts) -> Stepper:
    """A stepper of a run, with a copy of its first weights as the teacher of each technique that needs one."""
    config, data, stack = parts.config, parts.data, parts.stack
    for technique, _ in stack.teacher_needs():
        teacher, tokens = copy.deepcopy(parts.model), data.tokenizer
        made = Teacher(teacher, tokens.fingerprint, tokens, config.evaluation, Path(), sha256="")
        technique.receive_teachers([made], data, parts.device)
    parts.model.train()
    return Stepper(config, parts.model, stack.prepare_model(parts.model), parts.device, stack, 0.1, print)


@part
def waits(bench: Bench) -> Iterator[Row]:
    """How often a training step waits for the device, technique by technique; never is the aim."""
    for name, stack in _STACKS.items():
        with bench.asynchronous():
            most = _waits_a_step(bench, bench.prepare(*PAIRS, "trainer.compile=off", *stack))
        yield Row(f"waits a step: {name}", str(most), most == 0, most)


def _waits_a_step(bench: Bench, parts: Parts) -> int:
    """The most waits of a step; the first two, which make moments, do not count."""
    stepper = _stepper(parts)
    options = {"batch_tokens": parts.config.dataset.batch_tokens, "context": parts.config.model.context}
    batches = training_batches(parts.data.splits["train"], parts.data.tokenizer, **options, seed=1, start=0)
    # Ramps advance now and then, and may read what they measure.
    parts.stack.view.update(parts.model, _PROGRESS)
    counts = []
    for number in range(_STEPS):
        step = [next(batches)]
        with counted_waits(bench) as count:
            stepper.take(step, 1.0, number, _PROGRESS)
        counts += count
    return max(counts[2:])


@part
def guard(bench: Bench) -> Iterator[Row]:
    """A step whose gradient is not finite leaves every weight as it was, under each policy."""
    for policy in ("stop", "skip", "back_off"):
        parts = bench.prepare(*PAIRS, "trainer.compile=off")
        told = Told()
        trainer = trainer_of(
            parts,
            told,
            budget=Budget(steps=1),
            instability=InstabilityConfig(policy=policy),
        )
        spoilt = parts.model.output.weight.register_hook(lambda gradient: gradient * float("nan"))
        before = [weight.detach().clone() for weight in parts.model.parameters()]
        stopped = _ends_unstable(trainer)
        spoilt.remove()
        same = all(torch.equal(a, b) for a, b in zip(before, parts.model.parameters(), strict=True))
        value = f"{'stopped' if stopped else 'went on'}, weights {'as before' if same else 'CHANGED'}"
        yield Row(f"a bad step: {policy}", value, same and stopped == (policy == "stop"))


def _ends_unstable(trainer: Trainer) -> bool:
    try:
        trainer.train()
    except UnstableError:
        return True
    return False


@part
def graphs(bench: Bench) -> Iterator[Row]:
    """What torch compiles of a training with many variants of its forward pass, and what it gives up on."""
    words = ["+technique=[mixup,shuffle]", "model.layer_dropout=0.2", "trainer.compile=on"]
    parts = bench.prepare(*PAIRS, *words)
    told = Told()
    budget = Budget(steps=4 if bench.small else 60)
    start = time.perf_counter()
    cost = trainer_of(parts, told, budget=budget, validate_every=0.5).train()
    given_up = [note for note in told.notes if "does not compile" in note]
    yield Row("graphs compiled", str(cost.compiled_graphs), cost.compiled_graphs > 0, cost.compiled_graphs)
    yield Row("breaks and limits", "; ".join(given_up) or "none", not given_up, len(given_up))
    yield Row("seconds with compilation", f"{time.perf_counter() - start:.0f}")
    parts = bench.prepare("model=gpt_nano", "dataset=stdlib", "trainer.compile=on", "dataset.document_mask=true")
    cost = trainer_of(parts, told, budget=budget, validate_every=0.5).train()
    # One for the shape of the windows, and one for what is scored.
    yield Row("windows: graphs compiled", str(cost.compiled_graphs), cost.compiled_graphs == 2, cost.compiled_graphs)


@part
def batch(bench: Bench) -> Iterator[Row]:
    """The batch that is found for the memory at hand, and whether training then has to cut it."""
    for name, words in (("seq2seq_small", PAIRS), ("gpt_small", ("model=gpt_small", "dataset=stdlib"))):
        limit = ["trainer.memory_gb=0.02"] if bench.small else ["dataset.batch_tokens_limit=1000000"]
        # After the small sizes, which name a number.
        asked = [*bench.words(*words), "dataset.batch_tokens=auto", *limit]
        start = time.perf_counter()
        setup = Setup(compose(asked))
        setup.config = with_batch_tokens(setup, {}, print)
        found, seconds = setup.config.dataset.batch_size, time.perf_counter() - start
        yield Row(f"{name}: batch_tokens=auto", f"{found:,} tokens, found in {seconds:.0f} s", None, found)
        trainer = trainer_of(setup.prepare({}), Told(), budget=Budget(steps=3), validate_every=1.0)
        cost, pieces = trainer.train(), trainer.stepper.pieces
        value = f"{cost.peak_memory_bytes / 1e9:.2f} GB, each batch in {pieces}"
        yield Row(f"{name}: trained with it", value, pieces == 1, pieces)
