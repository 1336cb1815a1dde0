"""The contract of a technique: settings, hooks, and what it declares so that the stack can order and check it.

A technique is one class with one dataclass of settings. It overrides only the hooks that it
needs. Hooks run in the order of their phases. Within a hook, the effects that techniques declare decide their order,
never the order in which they were typed, and never their names.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar, Protocol, TypeVar

import numpy as np
import torch
from torch import Tensor, nn

from tfx.compression.checkpoint import Storage
from tfx.compression.grid import Grid, straight_through
from tfx.config.schema import Budget, Root, setting
from tfx.config.task_facts import TASKS
from tfx.data.corpus import Corpus
from tfx.data.tokenizer import Tokenizer
from tfx.model.architecture import Architecture
from tfx.model.batch import Batch
from tfx.model.device import FULL_PRECISION, Precision
from tfx.model.loss import LogitLoss
from tfx.model.rewiring import Rewiring, removed_parts
from tfx.model.transformer import States, Transformer, run_batch_with_states
from tfx.record.seeds import derive_seed
from tfx.tasks.prepare import PreparedData
from tfx.techniques.rows import ALL_ROWS, Rows

if TYPE_CHECKING:
    from pathlib import Path

    from tfx.techniques.calibration import Calibration, Validation

Result = TypeVar("Result")

# Each hook belongs to one phase.
HOOKS = {
    "prepare_data": "DATA",
    "reduce_tokenizer": "DATA",
    "order_batches": "DATA",
    "rewrite_batch": "DATA",
    "resize_batch": "DATA",
    "transform_batch": "DATA",
    "prepare_model": "MODEL",
    "rewire": "MODEL",
    "objective": "OBJECTIVE",
    "mask": "WEIGHTS",
    "grid": "PRECISION",
}

# The hooks that run once, before the first step: `start` and `end` do not apply to them.
BEFORE_TRAINING = ("prepare_data", "reduce_tokenizer", "prepare_model")


@dataclass
class TechniqueSettings:
    """The settings that every technique has."""

    start: float = setting(0.0, "when it begins to act", minimum=0, below=1, unit="fractions of the budget")
    end: float = setting(1.0, "when it stops acting", above=0, maximum=1, unit="fractions of the budget")
    allow_noop: bool = setting(False, "do not fail the run if it did nothing (for controls)")


@dataclass(frozen=True)
class Instant:
    """When a hook is called: the run's seed, the optimizer step, the batch inside it, and progress in [0, 1]."""

    seed: int
    step: int
    batch: int
    progress: float

    def generator(self, purpose: str, device: torch.device) -> torch.Generator:
        """A generator for one purpose at this instant, the same in a resumed run."""
        return torch.Generator(device).manual_seed(derive_seed(self.seed, purpose, self.step, self.batch))


@dataclass(frozen=True)
class TeacherNeed:
    """Models that must exist before training: existing ones, or one to train first.

    ``paths`` are run directories or model files; without any the train command trains ``model`` (None: the run's
    own) within ``budget`` (if none is named, twice the run's own) on the run's own data, and caches it.
    """

    paths: tuple[Path, ...]
    model: str | None
    budget: Budget


@dataclass(frozen=True)
class Work:
    """The cost of making something from a teacher's outputs that is now cached."""

    seconds: float
    flops: float


@dataclass
class Teacher:
    """A teacher as the train command passes it on, and what its training cost, in this run or before (0: unknown).

    ``sha256`` is that of its file; it is empty for an untrained stand-in. Its forward passes use ``precision``, that of
    the run. ``work`` is the cost of what was made from its outputs and cached, in this run or before, by the name of
    what was made.
    """

    model: Transformer
    tokenizer_fingerprint: str
    tokenizer: Any
    generation: Any
    path: Path
    sha256: str
    precision: Precision = FULL_PRECISION
    steps: int = 0
    seconds: float = 0.0
    tokens: int = 0
    flops: float = 0.0
    work: dict[str, Work] = field(default_factory=dict)

    @property
    def total_seconds(self) -> float:
        """Total of its training and its work."""
        return self.seconds + sum(work.seconds for work in self.work.values())

    @property
    def total_flops(self) -> float:
        """Total of its training and its work."""
        return self.flops + sum(work.flops for work in self.work.values())


# The teachers of a stack, by the name of the technique that they teach.
Teachers = Mapping[str, Sequence[Teacher]]


class Student(Protocol):
    """The model of a training, as it is now."""

    def __call__(self, work: Callable[[Transformer], Result]) -> Result:
        """What ``work`` returns for the model, in evaluation mode, with the weights as its forward pass sees them."""


@dataclass
class Objective:
    """The training loss of one batch, before it is computed: terms on the logits, and other terms.

    ``logit_losses`` are (name, loss on the student's logits, scale), the first of them the task's own;
    ``other`` are (name, differentiable sum over targets, scale). A technique changes scales and adds terms.
    ``forward(model, batch)`` gives the hidden states (B, T, D) of any model on the same batch, of ``model``, the
    student, those of another pass. ``hidden_ND`` and ``keep_N`` are the student's hidden states at the positions that
    count, and which of the batch's flattened positions those are (None: all). ``states`` are those between the
    student's blocks, if a technique `reads_states`; ``forward_with_states`` gives those of any model too. ``flops``
    gets what a technique computes besides such passes.
    """

    model: Transformer
    batch: Batch
    forward: Callable[[Transformer, Batch], Tensor]
    hidden_ND: Tensor
    keep_N: Tensor | None
    logit_losses: list[tuple[str, LogitLoss, float]]
    other: list[tuple[str, Tensor, float]] = field(default_factory=list)
    states: States | None = None
    forward_with_states: Callable[[Transformer, Batch], tuple[Tensor, States]] = run_batch_with_states
    flops: float = 0.0

    def select(self, values_BTX: Tensor) -> Tensor:
        """Picks the positions that count: values (B, T, ...) as rows (N, ...)."""
        flat = values_BTX.flatten(0, 1)
        return flat if self.keep_N is None else flat[self.keep_N]

    def counts_BT(self) -> Tensor:
        """How much each position counts: the sum of the weights of its labels, 0 for padding."""
        mass_N = torch.stack([(ids >= 0) * (1.0 if w is None else w) for ids, w in self.batch.targets_and_weights()])
        return mass_N.sum(0).float().view_as(self.batch.target_out_BT)

    def counts_N(self) -> Tensor:
        """How much each position that counts does."""
        return self.select(self.counts_BT())


class Technique:
    """Base of all techniques. Class attributes are declarations; instances live for one run."""

    name: ClassVar[str]
    Settings: ClassVar[type[TechniqueSettings]] = TechniqueSettings
    # What it does to the training, in words that other techniques refer to: "permutes tokens", "mixes examples".
    effects: tuple[str, ...] = ()
    # Effects that must come earlier, or later, inside the same hook.
    after: ClassVar[tuple[str, ...]] = ()
    before: ClassVar[tuple[str, ...]] = ()
    # Effects that some other technique of the run must have whenever this one acts.
    needs: tuple[str, ...] = ()
    tasks: ClassVar[tuple[str, ...]] = tuple(TASKS)
    # Whether it learns from texts without references (``dataset.monolingual``): `Corpus.unlabelled` of `prepare_data`,
    # to which it may give targets, and batches that are not labelled.
    reads_unlabelled: ClassVar[bool] = False
    # Whether it trains the heads by which texts leave a classifier early.
    trains_exits: ClassVar[bool] = False

    def __init__(self, settings: Any) -> None:
        self.settings = settings

    # --- declarations that depend on the settings -----------------------------------------------------

    def check(self, config: Root) -> None:
        """Raises `UserError` for settings that cannot work in this run."""

    def conflicts(self) -> dict[str, str]:
        """Effects that it cannot be combined with, each with the reason."""
        return {}

    def hooks(self) -> tuple[str, ...]:
        """The hooks that it uses with these settings; by default all that its class overrides."""
        return tuple(hook for hook in HOOKS if getattr(type(self), hook) is not getattr(Technique, hook))

    def plan(self, model: Transformer) -> list[str]:
        """What the header says about it. Parts that training removes are already gone from ``model``, which has real
        names and shapes but no values. Raises `UserError` for settings that do not fit the model.
        """
        return []

    def teacher_need(self, config: Root) -> TeacherNeed | None:
        """Teachers that must be made or read first."""
        return None

    def receive_teachers(self, teachers: Sequence[Teacher], data: PreparedData | None, device: torch.device) -> None:
        """Receives the teachers that `teacher_need` asked for; ``data`` is None before the data is prepared."""

    def reads_states(self) -> bool:
        """Whether its `objective` reads the states between the student's blocks."""
        return False

    def see_tokenizer(self, tokenizer: Tokenizer) -> None:
        """Shows the tokenizer that the file will hold, before training."""

    def acts_before_training(self) -> bool:
        """Whether it changes the model before the first step, so that it acts with a budget of zero too."""
        return "prepare_model" in self.hooks()

    def needs_whole_weights(self) -> str | None:
        """Why it cannot train where each process holds some rows of a weight (``trainer.parallel=fsdp``); None: it can.

        A technique that acts on weights says None if its `see` and `follow_gradient` work on `Rows`, and its `update`
        needs weights only where it `is_due`.
        """
        acts = {"rewire", "mask", "grid"} & set(self.hooks())
        if acts or type(self).follow_gradient is not Technique.follow_gradient:
            return "does not say that some rows of a weight are enough for it"
        return None

    def active(self, progress: float) -> bool:
        """Whether it acts at this progress."""
        return self.settings.start <= progress < self.settings.end

    def when(self, hook: str) -> str:
        """When a hook acts, for the plan."""
        if hook in BEFORE_TRAINING:
            return "before training"
        if hook == "order_batches":
            return "at each epoch"
        return f"{self.settings.start:.0%} to {self.settings.end:.0%}"

    # --- hooks, in the order of a run -----------------------------------------------------------------

    def prepare_data(self, corpus: Corpus, config: Root) -> Corpus:
        """Changes the text before it is tokenized."""
        return corpus

    def reduce_tokenizer(self, data: PreparedData) -> tuple[Tokenizer, list[int]] | None:
        """A smaller tokenizer for the data, and the old ids of its tokens; the model keeps only their rows."""
        return None

    def receive_data(self, data: PreparedData, architecture: Architecture) -> None:
        """Receives the tokenized data before training. Raises `UserError` for a tokenizer that it cannot work with."""

    def prepare_model(self, model: Transformer, config: Root) -> nn.Module | None:
        """Changes the model's first weights; returns modules of its own to be trained with the model."""
        return None

    def order_batches(self, lengths: np.ndarray, epoch: int, order: np.ndarray) -> np.ndarray:
        """Returns the order of an epoch's batches, given their lengths and the shuffled order."""
        return order

    def rewrite_batch(self, batch: Batch, student: Student, moment: Instant) -> tuple[Batch, float]:
        """A training batch, on the CPU, or one that the student writes in its place, and the FLOPs of doing so."""
        return batch, 0.0

    def resize_batch(self, batch: Batch, moment: Instant) -> Batch:
        """Changes a training batch on the CPU before it is counted (`Batch.counted`): its rows may become longer."""
        return batch

    def transform_batch(self, batch: Batch, moment: Instant) -> Batch:
        """Changes a training batch on the device; the batch carries what was done."""
        return batch

    def objective(self, objective: Objective, moment: Instant) -> None:
        """Changes the terms of the loss."""

    def update(self, model: Transformer, progress: float, masked: Callable[[str, Tensor], Tensor]) -> None:
        """Called before each optimizer step if it has a mask or grid hook: ramps advance here.

        ``masked(name, weight)`` is a weight after the techniques before this one. Where it is not due, the model may
        have no whole weights.
        """

    def is_due(self, progress: float) -> bool:
        """Whether `update` reads or changes weights at this progress."""
        return type(self).update is not Technique.update

    def reduced(self, architecture: Architecture) -> Architecture:
        """The architecture after `rewire`, known before any training. Raises `UserError` as `plan` does."""
        return architecture

    def reduction(self, before: Architecture, after: Architecture) -> str:
        """What `reduced` does to an architecture, in words for the plan."""
        return f"removes {removed_parts(before, after)}"

    def calibrate(
        self,
        model: Transformer,
        progress: float,
        calibration: Calibration,
        masked: Callable[[str, Tensor], Tensor],
    ) -> None:
        """Called before each `rewire`, and there to measure what that needs to know of the inputs of layers.

        ``masked`` is as in `update`: a step has left values in weights that the forward pass sees as zeros.
        """

    def rewire(self, model: Transformer, progress: float) -> Rewiring | None:
        """Removes parts of the model for good; called before each optimizer step and at the end, until it did."""
        return None

    def rewired(self, rewiring: Rewiring) -> None:
        """Adapts what it holds by tensor name to a model that it or another technique has rewired."""

    def mask(self, name: str, weight: Tensor) -> Tensor | None:
        """The current mask of the whole weight: True where it stays; None: everywhere."""
        return None

    def grid(self, name: str, weight: Tensor, progress: float, rows: Rows = ALL_ROWS) -> Grid | None:
        """The masked weight, or these rows of it, on its current grid; None: unchanged. Zero must stay zero."""
        return None

    def see(self, name: str, weight: Tensor, progress: float, rows: Rows = ALL_ROWS) -> Tensor:
        """What the forward pass sees of a masked weight: the values of its grid, with straight-through gradients.

        In a training step ``weight`` has these ``rows`` of it: fewer than all only if the technique says that it does
        not `needs_whole_weights`.
        """
        grid = self.grid(name, weight.detach(), progress, rows)
        return weight if grid is None else straight_through(weight, grid.values())

    def follow_gradient(
        self,
        name: str,
        weight: Tensor,
        gradient: Tensor,
        masked: Callable[[str, Tensor], Tensor],
        rows: Rows = ALL_ROWS,
    ) -> None:
        """Receives the gradient of a weight before a step: clipped, and 0 where the mask is False, unless
        `gradients_of_zeros`.

        It is finite, and 0 for a step that is refused on the device. ``masked`` is as in `update`. Weight and gradient
        have these ``rows``, as in `see`.
        """

    def by_rows(self) -> Iterable[tuple[str, Tensor]]:
        """What `follow_gradient` adds up, by the name of a weight: a row, or row of elements, for each of its rows.

        A process that holds some rows adds to these. It gets those of the others before `update` is due, before a state
        is saved, and at the end.
        """
        return ()

    def follows_gradients(self) -> bool:
        """Whether `follow_gradient` has a use for the next step's gradients."""
        return type(self).follow_gradient is not Technique.follow_gradient

    def gradients_of_zeros(self) -> bool:
        """Whether `follow_gradient` must get those of the weights that are masked, as the forward pass sees them.

        They never move a weight, but the norm that clips counts them.
        """
        return False

    def compresses(self, progress: float) -> bool:
        """Whether it has taken precision or parts from the weights at this progress, if it does so while training."""
        return progress >= self.settings.start

    def settled(self) -> bool:
        """Whether the view has its final form: fully pruned, on its grid.

        Scores from before cannot be compared with later ones. A grid that only `finish` chooses does not count.
        """
        return True

    def finish(self, model: Transformer, calibration: Calibration) -> None:
        """Chooses the final mask or grid: training is over, and the model holds what earlier techniques left."""

    def tune(self, model: Transformer, weights: Transformer, validation: Validation | None) -> None:
        """Chooses what the file says besides weights, such as a threshold, on validation data.

        Called whenever the weights are what a file will hold. ``weights`` runs as the model of that file does, and
        ``model`` gets what is chosen.
        """

    def keeps_zeros(self, share: float) -> bool:
        """Whether a mask leaves a model as sparse as it was, of whose weights this share was zero at the start."""
        return False

    def storage(self) -> Storage | None:
        """The dtype in the file for weights without a grid; None: no preference. The narrowest one named is used."""
        return None

    def report(self, name: str, total: Tensor, count: int) -> None:
        """Receives the sum of a loss term (`Objective.logit_losses`) over a number of targets, by the term's name."""

    # --- proof and state ------------------------------------------------------------------------------

    def evidence(self) -> dict[str, float]:
        """Numbers that prove that it acted."""
        return {}

    def acted(self) -> bool:
        """Whether it changed anything in this run."""
        return any(value != 0 for value in self.evidence().values())

    def state_dict(self) -> dict[str, Any]:
        """All that exact resuming needs besides the settings."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """The inverse of `state_dict`."""


class Mean:
    """A mean kept on the device: adding to it does not wait for the device."""

    # Where `HeldMeans` is in force: what was added since.
    _held: ClassVar[list[tuple[Mean, Tensor | float, Tensor | float]] | None] = None

    def __init__(self) -> None:
        self._sum: Tensor | float = 0.0
        self._count: Tensor | float = 0.0

    def add(self, total: Tensor | float, count: Tensor | float) -> None:
        """Adds ``count`` values with this sum."""
        if Mean._held is not None:
            Mean._held.append((self, total, count))
            return
        self._sum = self._sum + total
        self._count = self._count + count

    @property
    def value(self) -> float:
        """The mean so far; 0 where nothing was added."""
        count = float(self._count)
        return float(self._sum) / count if count else 0.0

    def state(self) -> tuple[float, float]:
        """Sum and count."""
        return float(self._sum), float(self._count)

    def restore(self, state: tuple[float, float]) -> None:
        """The inverse of `state`."""
        self._sum, self._count = state


class HeldMeans:
    """Holds back what is added to any `Mean` inside the context, until it is known whether that counts."""

    def __enter__(self) -> HeldMeans:
        assert Mean._held is None, "means are held back already"
        self._added = Mean._held = []
        return self

    def __exit__(self, *error: object) -> None:
        Mean._held = None

    def drop(self) -> None:
        """Forgets what was added so far."""
        self._added.clear()

    def merged(self) -> list[tuple[Mean, Tensor | float, Tensor | float]]:
        """Each mean with the sum and the count of all that was added to it, in the order of their first addition."""
        found: dict[int, tuple[Mean, Tensor | float, Tensor | float]] = {}
        for mean, total, count in self._added:
            _, before, counted = found.get(id(mean), (mean, 0.0, 0.0))
            found[id(mean)] = (mean, before + total, counted + count)
        return list(found.values())

    def replace(self, sums: Iterable[tuple[Tensor, Tensor]]) -> None:
        """Sum and count of each mean of `merged`, in place of what was added here: those of all processes."""
        self._added[:] = [
            (mean, total, count) for (mean, _, _), (total, count) in zip(self.merged(), sums, strict=True)
        ]

    def add(self, refused: Tensor | None = None) -> None:
        """After the context: adds it, or nothing where ``refused`` is 1 on the device."""
        for mean, total, count in self._added:
            if refused is None:
                mean.add(total, count)
            else:
                mean.add(_unless(refused, total), _unless(refused, count))


def _unless(refused: Tensor, value: Tensor | float) -> Tensor:
    """The value in double precision, 0 where it is refused, even if it is not finite."""
    wide = value.double() if isinstance(value, Tensor) else refused.new_full((), value, dtype=torch.float64)
    return torch.where(refused > 0, torch.zeros_like(wide), wide)
