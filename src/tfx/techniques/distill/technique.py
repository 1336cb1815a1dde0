"""Knowledge distillation (Hinton 2015, arXiv 1503.02531): a student learns from a teacher's outputs.

Shapes: N target positions, V vocabulary, K cached logits, D student width, E teacher width.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from tfx.config.schema import Budget, Root, group, setting
from tfx.config.tasks import TASKS
from tfx.data.sources import Corpus, replace_targets
from tfx.errors import UserError
from tfx.model.transformer import Transformer
from tfx.tasks.prepare import PreparedData
from tfx.techniques.contract import Instant, Mean, Objective, Teacher, TeacherNeed, Technique, TechniqueSettings
from tfx.techniques.distill.cache import TopLogits, decoded_outputs
from tfx.techniques.distill.layers import check_layers, copy_layers
from tfx.techniques.distill.soft_targets import FromHidden, FromTopK, SoftTargets


@dataclass
class DistillSettings(TechniqueSettings):
    """Settings of `Distill`."""

    teacher: str | None = setting(
        None, "a run directory or model file; null: init_from, else one is trained first, and cached", path=True
    )
    teacher_model: str | None = setting(None, "model of a teacher that is trained first; null: the same as the run's")
    teacher_budget: Budget = group(Budget)
    loss: str = setting(
        "forward_kl",
        "soft-target loss: KL(teacher || student), KL(student || teacher), Jensen-Shannon, or none",
        choices=("forward_kl", "reverse_kl", "jensen_shannon", "none"),
        paper="Hinton 2015, arXiv 1503.02531; Gu 2023, arXiv 2306.08543; Wen 2023, arXiv 2307.15190",
    )
    temperature: float = setting(
        1.0, "softens both distributions; the loss is scaled by its square", minimum=1e-3, maximum=100
    )
    alpha: float = setting(
        0.8, "weight of the soft-target loss; the task's own loss has the rest", minimum=0, maximum=1
    )
    alpha_final: float | None = setting(
        None, "alpha at the end, reached linearly; null: constant", minimum=0, maximum=1
    )
    hidden: float = setting(
        0.0,
        "weight of the mean squared error of the last hidden states, through a learned projection",
        minimum=0,
        paper="Romero 2015, arXiv 1412.6550; Jiao 2020, arXiv 1909.10351",
    )
    sequence_level: bool = setting(
        False, "text to text: train on the teacher's beam output as target", paper="Kim & Rush 2016, arXiv 1606.07947"
    )
    beam: int = setting(5, "sequence level: hypotheses of the teacher's beam; 1: greedy", minimum=1, maximum=1000)
    initialise: bool = setting(
        False, "start from evenly spaced teacher layers; the widths must agree", paper="Sanh 2019, arXiv 1910.01108"
    )
    cache_top_k: int | None = setting(
        None, "text to text: compute the teacher's k largest logits once and cache them", minimum=1
    )


class Distill(Technique):
    """Soft targets, hidden states, sequence-level targets, and initialisation, from one teacher."""

    name = "distill"
    Settings = DistillSettings
    effects = ("adds a teacher",)
    after = ("permutes tokens", "mixes examples")

    def __init__(self, settings: DistillSettings) -> None:
        super().__init__(settings)
        self.teacher: Teacher | None = None
        self._projection: nn.Linear | None = None
        self._top_logits: TopLogits | None = None
        self._divergence, self._hidden_error = Mean(), Mean()
        self._share = Mean()
        self._targets_changed = 0.0
        self._layers_copied = 0

    # --- declarations ---------------------------------------------------------------------------------

    def check(self, config: Root) -> None:
        settings = self.settings
        if not self._uses_logits() and not settings.hidden and not settings.sequence_level and not settings.initialise:
            raise UserError(
                "technique.distill has nothing to do: loss=none or alpha=0, hidden=0, sequence_level=false, "
                "initialise=false"
            )
        if not (task := TASKS[config.dataset.task]).decodes:
            for name in ("sequence_level", "cache_top_k"):
                if getattr(settings, name):
                    raise UserError(f"technique.distill.{name} is for text to text, not for {task.what}")
        if settings.cache_top_k is not None and settings.loss == "reverse_kl":
            raise UserError(
                "technique.distill.loss=reverse_kl needs the teacher's whole distribution, and "
                f"technique.distill.cache_top_k={settings.cache_top_k} keeps a part of it: leave it out, or "
                "set technique.distill.loss=forward_kl"
            )
        if settings.teacher is not None and settings.teacher_model is not None:
            raise UserError(
                f"technique.distill.teacher={settings.teacher} names a teacher that exists, and "
                f"technique.distill.teacher_model={settings.teacher_model} one that is to be trained: keep one of them"
            )
        need = self.teacher_need(config)
        if need.path is not None and need.budget != Budget():
            key = "init_from" if settings.teacher is None else "technique.distill.teacher"
            raise UserError(
                f"{key}={need.path} is a teacher that exists, and technique.distill.teacher_budget is for one that is "
                "to be trained: leave the budget out, or name its model (technique.distill.teacher_model=MODEL)"
            )

    def conflicts(self) -> dict[str, str]:
        if self.settings.cache_top_k is None:
            return {}
        why = "cached logits (technique.distill.cache_top_k) are of the unchanged examples"
        return {"mixes examples": why, "permutes tokens": why, "splits words anew": why}

    def hooks(self) -> tuple[str, ...]:
        used = []
        if self.settings.sequence_level:
            used.append("prepare_data")
        if self.settings.initialise or self.settings.hidden:
            used.append("prepare_model")
        if self._uses_logits() or self.settings.hidden:
            used.append("objective")
        return tuple(used)

    def acts_before_training(self) -> bool:
        # Without steps the projection of hidden states does nothing.
        return bool(self.settings.initialise)

    def teacher_need(self, config: Root) -> TeacherNeed:
        path = self.settings.teacher
        if path is None and self.settings.teacher_model is None:
            # A run that starts from a finished model has that as its teacher.
            path = config.init_from
        return TeacherNeed(
            None if path is None else Path(path), self.settings.teacher_model, self.settings.teacher_budget
        )

    def _uses_logits(self) -> bool:
        final = self.settings.alpha_final
        return self.settings.loss != "none" and (self.settings.alpha > 0 or bool(final))

    def alpha(self, progress: float) -> float:
        """Share of the soft-target loss at this progress."""
        settings = self.settings
        if not self.active(progress) or settings.loss == "none":
            return 0.0
        if settings.alpha_final is None:
            return settings.alpha
        passed = (progress - settings.start) / (settings.end - settings.start)
        return settings.alpha + (settings.alpha_final - settings.alpha) * passed

    # --- the teacher ----------------------------------------------------------------------------------

    def receive_teacher(self, teacher: Teacher, data: PreparedData | None, device: torch.device) -> None:
        if self.settings.sequence_level and not teacher.model.architecture.is_seq2seq:
            raise UserError(
                f"technique.distill.sequence_level: the teacher {teacher.path} is a language model, which writes "
                "no targets for sources: name one that is text to text (technique.distill.teacher=RUN)"
            )
        self.teacher = teacher
        teacher.model.to(device).eval().requires_grad_(False)
        if data is None:
            return
        self._check_teacher(teacher, data)
        if self.settings.cache_top_k is not None and self._uses_logits():
            self._top_logits = TopLogits.of(teacher, data, self.settings.cache_top_k, device)

    def _check_teacher(self, teacher: Teacher, data: PreparedData) -> None:
        """Raises `UserError` if teacher and student have other tokens, and the student learns from logits or states."""
        learnt = {
            f"loss={self.settings.loss}": self._uses_logits(),
            f"hidden={self.settings.hidden:g}": self.settings.hidden > 0,
            "initialise=true": self.settings.initialise,
        }
        asked = [f"technique.distill.{name}" for name, is_used in learnt.items() if is_used]
        if not asked:
            return
        family = teacher.model.architecture.family
        if family != data.task:
            raise UserError(
                f"{asked[0]} needs a teacher of the student's own family: {teacher.path} is a model for {family}, and "
                f"dataset '{data.name}' is for {data.task}; name another (technique.distill.teacher=RUN)"
            )
        if teacher.tokenizer_fingerprint != data.tokenizer.fingerprint:
            raise UserError(
                f"{asked[0]}: the teacher has another tokenizer than the student, so their tokens differ; give "
                "the student the teacher's (dataset.tokenizer.path=TEACHER_RUN/tokenizer.json, or =FOLDER for a model "
                "folder of transformers), or learn from its "
                "outputs alone (technique.distill.sequence_level=true technique.distill.loss=none)"
            )
        self._check_context(data.splits["train"].longest, "dataset.max_tokens={}", -1)

    def _check_context(self, longest: int, remedy: str, offset: int = 0) -> None:
        """Raises `UserError` if the teacher's context is too short for the inputs."""
        assert self.teacher is not None
        context = self.teacher.model.architecture.context
        if longest > context and (self._uses_logits() or self.settings.hidden):
            raise UserError(
                f"technique.distill: the student's inputs have up to {longest} tokens, and the teacher "
                f"{self.teacher.path} takes {context}: set {remedy.format(context + offset)}, or name another teacher"
            )

    def plan(self, model: Transformer) -> list[str]:
        if self.teacher is None:  # a dry run makes none
            return []
        if not model.architecture.is_seq2seq:
            self._check_context(model.architecture.context, "model.context={}")
        if self.settings.initialise:
            check_layers(self.teacher.model.architecture, model.architecture)
        return []

    def prepare_data(self, corpus: Corpus, config: Root) -> Corpus:
        teacher = self.teacher
        assert teacher is not None
        # The technique sets the beam, however the teacher's own run was scored.
        outputs, key = decoded_outputs(
            teacher, corpus, replace(teacher.generation, method="beam", beam=self.settings.beam)
        )
        before = list(corpus.splits["train"]["target"])
        # An empty output teaches nothing: keep the reference.
        targets = [new or old for new, old in zip(outputs, before, strict=True)]
        changed = sum(new != old for new, old in zip(targets, before, strict=True))
        self._targets_changed = changed / max(1, len(before))
        return replace_targets(corpus, targets, f"distill:{key}")

    def prepare_model(self, model: Transformer, config: Root) -> nn.Module | None:
        assert self.teacher is not None
        teacher = self.teacher.model
        if self.settings.initialise:
            self._layers_copied = copy_layers(teacher, model)
        if not self.settings.hidden:
            return None
        self._projection = nn.Linear(model.architecture.width, teacher.architecture.width, bias=False)
        # An orthogonal start, drawn from its shape alone, keeps the student's geometry.
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(config.seed)
            nn.init.orthogonal_(self._projection.weight)
        return self._projection.to(model.embedding.weight.device)

    # --- the loss -------------------------------------------------------------------------------------

    def objective(self, objective: Objective, moment: Instant) -> None:
        assert self.teacher is not None
        alpha = self.alpha(moment.progress)
        weight = self.settings.hidden if self.active(moment.progress) else 0.0
        if alpha == 0.0 and weight == 0.0:
            return
        counts_N = objective.counts_N()
        hidden_NE: Tensor | None = None
        if self._top_logits is None or weight:
            with torch.no_grad():
                hidden_NE = objective.select(objective.forward(self.teacher.model, objective.batch))
        if alpha:
            objective.logit_losses = [(n, loss, scale * (1.0 - alpha)) for n, loss, scale in objective.logit_losses]
            soft = self._soft_targets(objective, hidden_NE, counts_N)
            objective.logit_losses.append((self.name, soft, alpha))
        if weight and hidden_NE is not None and self._projection is not None:
            gap = self._projection(objective.hidden_ND.float()) - hidden_NE.float()
            error = (gap.square().mean(1) * counts_N).sum()
            objective.other.append((f"{self.name}_hidden", error, weight))
            self._hidden_error.add(error.detach(), counts_N.sum())
        self._share.add(alpha, 1.0)

    def _soft_targets(self, objective: Objective, hidden_NE: Tensor | None, counts_N: Tensor) -> SoftTargets:
        assert self.teacher is not None
        kind, temperature = self.settings.loss, self.settings.temperature
        # Where the positions that count were picked, each of them counts one, unless examples are mixed.
        weights_N = None if objective.keep_N is not None and objective.batch.mix is None else counts_N
        if self._top_logits is not None:
            ids, logits = self._top_logits.of_batch(objective.batch)
            return FromTopK(
                kind,
                temperature,
                weights_N,
                objective.select(ids),
                objective.select(logits),
                self.teacher.model.architecture.vocab_size,
            )
        assert hidden_NE is not None
        factors = self.teacher.model.output_factors(hidden_NE)
        return FromHidden(kind, temperature, weights_N, *factors, self.teacher.precision.products)

    # --- proof ----------------------------------------------------------------------------------------

    def evidence(self) -> dict[str, float]:
        return {
            "divergence": self._divergence.value,
            "hidden_error": self._hidden_error.value,
            "mean_alpha": self._share.value,
            "targets_changed": self._targets_changed,
            "layers_copied": float(self._layers_copied),
        }

    def acted(self) -> bool:
        # The weight of a term does not prove that the term acted.
        return any(value != 0 for name, value in self.evidence().items() if name != "mean_alpha")

    def report(self, name: str, total: Tensor, count: int) -> None:
        """What the loop measured of a loss term of this technique."""
        if name == self.name:
            self._divergence.add(total, count)

    def state_dict(self) -> dict[str, Any]:
        means = {"divergence": self._divergence, "hidden_error": self._hidden_error, "share": self._share}
        return {name: mean.state() for name, mean in means.items()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._divergence.restore(state["divergence"])
        self._hidden_error.restore(state["hidden_error"])
        self._share.restore(state["share"])
