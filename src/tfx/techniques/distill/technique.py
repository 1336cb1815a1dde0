"""Knowledge distillation (Hinton 2015, arXiv 1503.02531): a student learns from the outputs and states of teachers.

Shapes: N target positions, B rows, T target length, D student width, E teacher width.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from tfx.config.schema import Root
from tfx.data.corpus import Corpus, with_targets
from tfx.errors import UserError
from tfx.model.architecture import Architecture
from tfx.model.batch import Batch
from tfx.model.flops import decoding_flops
from tfx.model.loss import LogitLoss
from tfx.model.transformer import States, Transformer
from tfx.record.seeds import derive_seed
from tfx.tasks import task_named
from tfx.tasks.contract import Retold
from tfx.tasks.prepare import PreparedData
from tfx.techniques.contract import Instant, Mean, Objective, Student, Teacher, TeacherNeed, Technique
from tfx.techniques.distill.cache import TopLogits, decoded_outputs
from tfx.techniques.distill.checks import (
    check_context,
    check_settings,
    check_teacher,
    matches_layers,
    reads_states,
    uses_logits,
)
from tfx.techniques.distill.label_cache import LabelLogits
from tfx.techniques.distill.layers import check_layers, copy_layers
from tfx.techniques.distill.matching import Matcher, check_matching
from tfx.techniques.distill.settings import DistillSettings
from tfx.techniques.distill.soft_targets import Average, FromAnswers, FromHidden, FromTopK, Measure
from tfx.techniques.distill.spans import SpanLikelihood, log_likelihoods, sums

# What is learnt from a teacher's layers, by the setting that weighs it, and the name of its evidence.
_MATCHED = {"hidden": "hidden_error", "attention": "attention_error", "relations": "relation_divergence"}

# What is averaged over the training: the losses, and shares that prove nothing by themselves.
_SHARES = ("mean_alpha", "aligned_share", "on_policy_share", "unlabelled_share")
_MEANS = ("divergence", *_MATCHED.values(), *_SHARES)


class Distill(Technique):
    """Soft targets, layers, sequence-level targets, and initialisation, from one teacher or several."""

    name = "distill"
    Settings = DistillSettings
    effects = ("adds a teacher",)
    reads_unlabelled = True
    after = ("permutes tokens", "mixes examples")

    def __init__(self, settings: DistillSettings) -> None:
        super().__init__(settings)
        self.teachers: Sequence[Teacher] = ()
        self._matchers: list[Matcher] = []
        self._top_logits: TopLogits | LabelLogits | None = None
        self._data: PreparedData | None = None
        self._means = {name: Mean() for name in _MEANS}
        self._targets_changed = 0.0
        self._layers_copied = self._monolingual = 0

    # --- declarations ---------------------------------------------------------------------------------

    def check(self, config: Root) -> None:
        check_settings(self.settings, config, self.teacher_need(config))

    def conflicts(self) -> dict[str, str]:
        found: dict[str, str] = {}
        if self.settings.cache_top_k is not None:
            why = "cached logits (technique.distill.cache_top_k) are of the unchanged examples"
            found |= {"mixes examples": why, "permutes tokens": why, "splits words anew": why}
        if self.settings.align_tokens:
            why = "another tokenizer spells whole texts (technique.distill.align_tokens)"
            found |= {"mixes examples": why, "permutes tokens": why}
            found["runs twice"] = "likelihoods of spans (technique.distill.align_tokens) are those of one pass"
        return found

    def hooks(self) -> tuple[str, ...]:
        used = []
        if self.settings.sequence_level:
            used.append("prepare_data")
        if self.settings.on_policy:
            used.append("rewrite_batch")
        if self.settings.initialise or matches_layers(self.settings):
            used.append("prepare_model")
        if uses_logits(self.settings) or matches_layers(self.settings):
            used.append("objective")
        return tuple(used)

    def acts_before_training(self) -> bool:
        # Without steps the projections of hidden states do nothing.
        return bool(self.settings.initialise)

    def reads_states(self) -> bool:
        return reads_states(self.settings)

    def teacher_need(self, config: Root) -> TeacherNeed:
        paths = self.settings.teachers
        if not paths and self.settings.teacher_model is None and config.init_from is not None:
            # A run that starts from a finished model has that as its teacher.
            paths = (Path(config.init_from),)
        return TeacherNeed(paths, self.settings.teacher_model, self.settings.teacher_budget)

    def alpha(self, progress: float) -> float:
        """Share of the soft-target loss at this progress."""
        settings = self.settings
        if not self.active(progress) or settings.loss == "none":
            return 0.0
        if settings.alpha_final is None:
            return float(settings.alpha)
        passed = (progress - settings.start) / (settings.end - settings.start)
        return float(settings.alpha + (settings.alpha_final - settings.alpha) * passed)

    # --- the teachers ---------------------------------------------------------------------------------

    def receive_teachers(self, teachers: Sequence[Teacher], data: PreparedData | None, device: torch.device) -> None:
        self.teachers = teachers
        self._data = data
        for teacher in teachers:
            if self.settings.sequence_level and not teacher.model.architecture.is_seq2seq:
                raise UserError(
                    f"technique.distill.sequence_level: the teacher {teacher.path} is a language model, which writes "
                    "no targets for sources: name one that is text to text (technique.distill.teacher=RUN)"
                )
            teacher.model.to(device).eval().requires_grad_(False)
            if data is not None:
                check_teacher(self.settings, teacher, data)
        if data is not None and self.settings.cache_top_k is not None and uses_logits(self.settings):
            kind = TopLogits if data.outputs is None else LabelLogits
            self._top_logits = kind.of(teachers, data, self.settings.cache_top_k, device)

    def plan(self, model: Transformer) -> list[str]:
        for teacher in self.teachers:  # a dry run has none
            if not model.architecture.is_seq2seq and not self._has_other_tokens(teacher):
                check_context(self.settings, teacher, model.architecture.context, "model.context={}")
            check_matching(self.settings, model.architecture, teacher.model.architecture)
        if self.settings.initialise and self.teachers:
            check_layers(self.teachers[0].model.architecture, model.architecture)
        return []

    def prepare_data(self, corpus: Corpus, config: Root) -> Corpus:
        sources, before = (list(corpus.splits["train"][side]) for side in ("source", "target"))
        outputs, key = decoded_outputs(self.teachers, sources, corpus.fingerprint, self.settings.beam)
        # An empty output teaches nothing: keep the reference.
        targets = [new or old for new, old in zip(outputs, before, strict=True)]
        changed = sum(new != old for new, old in zip(targets, before, strict=True))
        self._targets_changed = changed / max(1, len(before))
        changed_corpus = with_targets(corpus, sources, targets, f"distill:{key}")
        return replace(changed_corpus, unlabelled=self._written(corpus.unlabelled))

    def _written(self, unlabelled: Corpus | None) -> Corpus | None:
        """Texts without references with a teacher's outputs as their targets; those without an output are left out."""
        if unlabelled is None:
            return None
        texts = list(unlabelled.splits["train"]["text"])
        outputs, key = decoded_outputs(self.teachers, texts, unlabelled.fingerprint, self.settings.beam)
        pairs = [(text, output) for text, output in zip(texts, outputs, strict=True) if output]
        if len(pairs) < len(texts):
            unlabelled.notes.append(f"monolingual: of {len(texts) - len(pairs):,} texts the teacher made nothing")
        if not pairs:
            raise UserError(
                "dataset.monolingual: the teacher's outputs are all empty, so there is nothing to learn from them: "
                "train the teacher for longer, or leave it out"
            )
        self._monolingual = len(pairs)
        sources, targets = ([pair[side] for pair in pairs] for side in (0, 1))
        return with_targets(unlabelled, sources, targets, f"distill:{key}")

    def prepare_model(self, model: Transformer, config: Root) -> nn.Module | None:
        if self.settings.initialise:
            self._layers_copied = copy_layers(self.teachers[0].model, model)
        if not matches_layers(self.settings):
            return None
        with torch.random.fork_rng(devices=[]):
            # The projections are drawn from seed and shapes alone.
            torch.manual_seed(config.seed)
            for teacher in self.teachers:
                check_matching(self.settings, model.architecture, teacher.model.architecture)
                self._matchers.append(Matcher(self.settings, model, teacher.model))
        return nn.ModuleList(self._matchers).to(model.embedding.weight.device) if self.settings.hidden else None

    # --- the student's own texts ----------------------------------------------------------------------

    def rewrite_batch(self, batch: Batch, student: Student, moment: Instant) -> tuple[Batch, float]:
        """On-policy distillation (Agarwal 2023, arXiv 2306.13649): what the student writes is judged by the teacher."""
        if not self.active(moment.progress):
            return batch, 0.0
        draw = torch.rand((), generator=moment.generator(f"{self.name} on policy", torch.device("cpu")))
        if draw >= self.settings.on_policy:
            self._means["on_policy_share"].add(0.0, float(batch.targets))
            return batch, 0.0
        assert self._data is not None
        task, tokenizer = task_named(self._data.task), self._data.tokenizer
        seed = derive_seed(moment.seed, f"{self.name} on policy", moment.step, moment.batch)

        def write(model: Transformer) -> tuple[Batch, float]:
            written = task.sampled(model, batch, tokenizer, seed)
            return written, writing_flops(model.architecture, written)

        written, flops = student(write)
        self._means["on_policy_share"].add(float(written.targets), float(written.targets))
        return written, flops

    # --- the loss -------------------------------------------------------------------------------------

    def objective(self, objective: Objective, moment: Instant) -> None:
        alpha = self.alpha(moment.progress)
        is_matched = matches_layers(self.settings) and self.active(moment.progress)
        if alpha == 0.0 and not is_matched:
            return
        counts_N = objective.counts_N()
        taught: list[tuple[Tensor, States | None]] = []
        if is_matched or (alpha and self._top_logits is None and not self.settings.align_tokens):
            with torch.no_grad():
                taught = [self._taught(teacher, objective) for teacher in self.teachers]
        if alpha:
            objective.logit_losses = [(n, loss, scale * (1.0 - alpha)) for n, loss, scale in objective.logit_losses]
            if self.settings.align_tokens:
                for loss in self._span_losses(objective):
                    objective.logit_losses.append((self.name, loss, alpha / len(self.teachers)))
            else:
                soft = self._soft_targets(objective, [hidden_NE for hidden_NE, _ in taught], counts_N)
                objective.logit_losses.append((self.name, soft, alpha))
        if is_matched:
            self._match(objective, taught, counts_N)
        self._means["mean_alpha"].add(alpha, 1.0)
        total = counts_N.sum()
        self._means["unlabelled_share"].add(total * (not objective.batch.is_labelled), total)

    def _taught(self, teacher: Teacher, objective: Objective) -> tuple[Tensor, States | None]:
        """A teacher's last hidden states (N, E), and those between its layers if they are read."""
        batch = objective.batch
        if self._has_other_tokens(teacher):
            batch = self._retold(teacher, batch).batch.to(batch.target_out_BT.device)
        if not self.reads_states():
            return objective.select(objective.forward(teacher.model, batch)), None
        hidden_BTE, states = objective.forward_with_states(teacher.model, batch)
        return objective.select(hidden_BTE), states

    def _has_other_tokens(self, teacher: Teacher) -> bool:
        return self._data is not None and teacher.tokenizer_fingerprint != self._data.tokenizer.fingerprint

    def _retold(self, teacher: Teacher, batch: Batch) -> Retold:
        """A batch in the tokens of a teacher. Raises `UserError` for mixed examples, which have tokens of two texts."""
        assert self._data is not None
        if batch.mix is not None:
            raise UserError(
                f"technique.distill: the teacher {teacher.path} has another tokenizer, which cannot spell mixed "
                "examples: leave mixup out, or give the student the teacher's tokenizer (dataset.tokenizer.path=…)"
            )
        task, context = task_named(self._data.task), teacher.model.architecture.context
        return task.retold(batch, self._data.tokenizer, teacher.tokenizer, context)

    def _soft_targets(self, objective: Objective, hidden: list[Tensor], counts_N: Tensor) -> LogitLoss:
        outputs = self.teachers[0].model.architecture.outputs
        if outputs is not None and outputs.predicts != "one":
            with torch.no_grad():
                answers = [t.model.project(h.float()) for t, h in zip(self.teachers, hidden, strict=True)]
            return FromAnswers(outputs.predicts, answers, counts_N)
        measure = Measure(self.settings.loss, self.settings.temperature, self.settings.beta)
        # Where the positions that count were picked, each of them counts one, unless examples are mixed.
        weights_N = None if objective.keep_N is not None and objective.batch.mix is None else counts_N
        if self._top_logits is not None:
            ids, logits = self._top_logits.of_batch(objective.batch)
            return FromTopK(
                measure,
                weights_N,
                objective.select(ids),
                objective.select(logits),
                self.teachers[0].model.architecture.output_count,
            )
        found = []
        for teacher, hidden_NE in zip(self.teachers, hidden, strict=True):
            factors = teacher.model.output_factors(hidden_NE)
            found.append(FromHidden(measure, weights_N, *factors, teacher.precision.products))
        return found[0] if len(found) == 1 else Average(measure, weights_N, found)

    def _span_losses(self, objective: Objective) -> Iterator[SpanLikelihood]:
        """What each teacher, in its own tokens, makes of the spans of text that are tokens of both."""
        batch = objective.batch
        device = batch.target_out_BT.device
        target_N = objective.select(batch.target_out_BT.unsqueeze(-1)).squeeze(-1)
        own_factors = objective.model.output_factors(objective.hidden_ND)
        for teacher in self.teachers:
            told = self._retold(teacher, batch)
            assert told.own_BT is not None
            assert told.other_BT is not None
            other, dtype = told.batch.to(device), teacher.precision.products
            with torch.no_grad():
                hidden_NE = objective.forward(teacher.model, other).flatten(0, 1)
                span_N, spelt_N = told.other_BT.flatten().to(device), other.target_out_BT.flatten()
                is_in = span_N >= 0
                factors = teacher.model.output_factors(hidden_NE[is_in])
                log_p_N = log_likelihoods(*factors, spelt_N[is_in], dtype)
                teacher_C = sums(log_p_N, span_N[is_in], told.count)
            own_N = objective.select(told.own_BT.to(device).unsqueeze(-1)).squeeze(-1)
            self._means["aligned_share"].add((own_N >= 0).sum(), (target_N >= 0).sum())
            temperature = self.settings.align_temperature
            yield SpanLikelihood(teacher_C, own_N, target_N, own_factors, dtype, temperature)

    def _match(
        self,
        objective: Objective,
        taught: list[tuple[Tensor, States | None]],
        counts_N: Tensor,
    ) -> None:
        """Adds what the layers learn: the mean over the teachers, as a sum over the batch's target positions."""
        counts_BT, total = objective.counts_BT(), counts_N.sum()
        found: dict[str, list[Tensor]] = {name: [] for name in _MATCHED}
        for matcher, (hidden_NE, states) in zip(self._matchers, taught, strict=True):
            if self.settings.hidden and self.settings.layer_map == "last":
                found["hidden"].append(matcher.last_error(objective.hidden_ND, hidden_NE, counts_N))
            if states is None:
                continue
            assert objective.states is not None
            errors = matcher.errors(objective.states, states, objective.batch, counts_BT)
            objective.flops += errors.flops
            for name in _MATCHED:
                if (error := getattr(errors, name)) is not None:
                    found[name].append(error * total)
        for name, evidence in _MATCHED.items():
            if found[name]:
                error = torch.stack(found[name]).mean()
                objective.other.append((f"{self.name}_{name}", error, getattr(self.settings, name)))
                self._means[evidence].add(error.detach(), total)

    # --- proof ----------------------------------------------------------------------------------------

    def evidence(self) -> dict[str, float]:
        return {
            **{name: mean.value for name, mean in self._means.items()},
            "targets_changed": self._targets_changed,
            "layers_copied": float(self._layers_copied),
            "texts_written": float(self._monolingual),
        }

    def acted(self) -> bool:
        # The share of a term does not prove that the term acted.
        return any(value != 0 for name, value in self.evidence().items() if name not in _SHARES)

    def report(self, name: str, total: Tensor, count: int) -> None:
        """What the loop measured of a loss term of this technique."""
        if name == self.name:
            self._means["divergence"].add(total, count)

    def state_dict(self) -> dict[str, Any]:
        return {name: mean.state() for name, mean in self._means.items()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        for name, value in state.items():
            self._means[name].restore(value)


def writing_flops(architecture: Architecture, batch: Batch) -> float:
    """FLOPs of decoding the targets of a batch, each as long as it is."""
    source = 0 if batch.source_BS is None else batch.source_BS.shape[1]
    ends_B = (batch.target_out_BT >= 0).long().cumsum(1).argmax(1) + 1
    return sum(decoding_flops(architecture, source, length, hypotheses=1) for length in ends_B.tolist())
