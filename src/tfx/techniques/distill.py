"""Knowledge distillation (Hinton 2015, arXiv 1503.02531): a student learns from a teacher's outputs.

Shapes: N target positions, V vocabulary, K cached logits, D student width, E teacher width.
"""

from __future__ import annotations

import hashlib
import math
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from tfx.config.schema import BudgetConfig, Root, group, setting
from tfx.data.batching import Batch, collate_pairs
from tfx.data.prepare import Pairs, PreparedData, Ragged
from tfx.data.sources import Corpus, replace_targets, writable_cache
from tfx.errors import UserError
from tfx.evaluation.generation import decode_sources
from tfx.evaluation.scoring import run_batch
from tfx.model.architecture import Architecture
from tfx.model.flops import decoding_flops, forward_flops
from tfx.model.linear import Linear, reduce_rows
from tfx.model.loss import LogitSlice
from tfx.model.rewiring import evenly_spaced
from tfx.model.transformer import Transformer
from tfx.record.files import read_json, replacing, write_json
from tfx.record.lock import making
from tfx.techniques.contract import Mean, Moment, Objective, Teacher, TeacherNeed, Technique, TechniqueSettings, Work


@dataclass
class DistillSettings(TechniqueSettings):
    """Settings of `Distill`."""

    teacher: str | None = setting(
        None, "a run directory or model file; null: init_from, else one is trained first, and cached", path=True
    )
    teacher_model: str | None = setting(
        None, "model choice of a teacher that is trained first; null: the run's own model"
    )
    teacher_budget: BudgetConfig = group(BudgetConfig)
    loss: str = setting(
        "forward_kl",
        "soft-target loss: KL(teacher || student), KL(student || teacher), Jensen-Shannon, or none",
        choices=("forward_kl", "reverse_kl", "jensen_shannon", "none"),
        paper="Hinton 2015, arXiv 1503.02531; Gu 2023, arXiv 2306.08543; Wen 2023, arXiv 2307.15190",
    )
    temperature: float = setting(
        1.0, "softens both distributions; the loss is scaled by its square", minimum=1e-3, maximum=100
    )
    alpha: float = setting(0.8, "share of the soft-target loss; the task's own loss has the rest", minimum=0, maximum=1)
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
        False, "start from evenly spaced teacher layers, where widths agree", paper="Sanh 2019, arXiv 1910.01108"
    )
    cache_top_k: int | None = setting(
        None, "text to text: compute the teacher's k largest logits once, and keep them", minimum=1
    )


# Of what the cache holds of a teacher: its outputs and its logits.
_VERSION = 2
# The logit of a token whose probability is 0: finite, so that 0 times it is 0.
ABSENT = -1e30


class SoftTargets:
    """Divergence between temperature-softened teacher and student, times T squared, at each position (N,).

    ``forward_kl`` is KL(p || q) with teacher p and student q, ``reverse_kl`` KL(q || p), ``jensen_shannon`` the
    mean KL of both to their mixture. Gradients are those of the student's logits, in closed form. ``counts_N`` are
    the weights of the positions, 0 for padding; None: 1 everywhere.
    """

    def __init__(self, kind: str, temperature: float, counts_N: Tensor | None) -> None:
        self.kind, self.temperature, self._counts = kind, temperature, counts_N

    def teacher_logits(self, rows: slice) -> Tensor:
        """The teacher's logits (n, V) at a slice of positions, a new tensor."""
        raise NotImplementedError

    def __call__(self, piece: LogitSlice, needs_error: bool) -> tuple[Tensor, Tensor, Tensor | None]:
        loss_N, error_NV = self.divergence(piece, needs_error)
        if self._counts is not None:
            counts_N = self._counts[piece.rows]
            loss_N = loss_N * counts_N
            if error_NV is not None:
                error_NV.mul_(counts_N.unsqueeze(1))
        return loss_N, loss_N, error_NV

    def divergence(self, piece: LogitSlice, needs_error: bool) -> tuple[Tensor, Tensor | None]:
        """At each position of a slice (n,), and its gradient for the student's logits (n, V)."""
        return divergence(self.kind, self.teacher_logits(piece.rows), piece, self.temperature, needs_error)


def divergence(
    kind: str, teacher_NV: Tensor, piece: LogitSlice, temperature: float, needs_error: bool = True
) -> tuple[Tensor, Tensor | None]:
    """The divergence (N,) between teacher's and student's logits (N, V), times T^2, and its gradient for the latter.

    A teacher logit of `ABSENT` (not among its cached ones) has probability 0, which ``reverse_kl`` has no value for.
    The teacher's tensor is used up.
    """
    if temperature != 1.0:
        teacher_NV = teacher_NV.div_(temperature)
        piece = LogitSlice(piece.rows, piece.logits_NV / temperature)
    scale = temperature**2
    if kind == "forward_kl":
        # Every pass over (N, V) counts: half of a small model's step is spent here. With log p = t - log Z_t,
        # sum p (log p - log q) = p . t - log Z_t - (p . s - log Z_s).
        log_normalizer_N1 = teacher_NV.logsumexp(1, keepdim=True)
        p_NV = (teacher_NV - log_normalizer_N1).exp_()
        loss_N = _dot(p_NV, teacher_NV.sub_(piece.logits_NV)) + (piece.log_normalizer_N1 - log_normalizer_N1).squeeze(1)
        error_NV = torch.sub(piece.probabilities_NV, p_NV, out=p_NV) if needs_error else None
    elif kind == "reverse_kl":
        q_NV = piece.probabilities_NV
        gap_NV = piece.logits_NV - piece.log_normalizer_N1 - teacher_NV.log_softmax(1)
        loss_N = _dot(q_NV, gap_NV)
        error_NV = gap_NV.sub_(loss_N.unsqueeze(1)).mul_(q_NV) if needs_error else None
    else:
        log_p_NV, q_NV = teacher_NV.log_softmax(1), piece.probabilities_NV
        log_q_NV = piece.logits_NV - piece.log_normalizer_N1
        log_m_NV = torch.logaddexp(log_p_NV, log_q_NV).sub_(math.log(2.0))
        to_mixture_NV = log_q_NV.sub_(log_m_NV)
        kl_q_N = _dot(q_NV, to_mixture_NV)
        kl_p_N = _dot(log_p_NV.exp(), log_p_NV - log_m_NV)
        loss_N = 0.5 * (kl_p_N + kl_q_N)
        # d JS / d log q = q (log q - log m) / 2: the mixture's own derivatives cancel.
        error_NV = to_mixture_NV.sub_(kl_q_N.unsqueeze(1)).mul_(q_NV).mul_(0.5) if needs_error else None
    if error_NV is not None and temperature != 1.0:
        error_NV.mul_(temperature)
    return loss_N * scale, error_NV


def _dot(a_NV: Tensor, b_NV: Tensor) -> Tensor:
    """Row by row, without their product as a tensor."""
    return torch.linalg.vecdot(a_NV, b_NV)


class _FromHidden(SoftTargets):
    """Teacher logits projected from its hidden states slice by slice, so that they too never exist as a whole."""

    def __init__(
        self,
        kind: str,
        temperature: float,
        counts_N: Tensor | None,
        hidden_NE: Tensor,
        weight_VE: Tensor,
        dtype: torch.dtype,
    ) -> None:
        super().__init__(kind, temperature, counts_N)
        self._hidden, self._weight, self._dtype = hidden_NE, weight_VE.to(dtype), dtype

    def teacher_logits(self, rows: slice) -> Tensor:
        hidden = self._hidden[rows]
        return (reduce_rows(hidden, self._dtype) @ self._weight.t())[: len(hidden)].float()


class _FromTopK(SoftTargets):
    """Teacher logits from a cache of the k largest: renormalised over them."""

    def __init__(
        self,
        kind: str,
        temperature: float,
        counts_N: Tensor | None,
        ids_NK: Tensor,
        logits_NK: Tensor,
        vocab: int,
    ) -> None:
        super().__init__(kind, temperature, counts_N)
        self._ids, self._logits, self._vocab = ids_NK, logits_NK, vocab

    def divergence(self, piece: LogitSlice, needs_error: bool) -> tuple[Tensor, Tensor | None]:
        if self.kind != "forward_kl":
            return super().divergence(piece, needs_error)
        # Where the teacher's probability is 0 the student's logit counts in the normaliser alone: no pass over
        # (N, V) but those of the student's own softmax.
        softened = piece if self.temperature == 1.0 else LogitSlice(piece.rows, piece.logits_NV / self.temperature)
        ids_NK = self._ids[piece.rows]
        log_p_NK = (self._logits[piece.rows] / self.temperature).log_softmax(1)
        p_NK, log_q_NK = log_p_NK.exp(), softened.logits_NV.gather(1, ids_NK) - softened.log_normalizer_N1
        loss_N = _dot(p_NK, log_p_NK - log_q_NK) * self.temperature**2
        if not needs_error:
            return loss_N, None
        error_NV = softened.probabilities_NV.scatter_add(1, ids_NK, -p_NK)
        return loss_N, error_NV if self.temperature == 1.0 else error_NV.mul_(self.temperature)

    def teacher_logits(self, rows: slice) -> Tensor:
        ids = self._ids[rows]
        full = torch.full((len(ids), self._vocab), ABSENT, device=ids.device)
        return full.scatter_(1, ids, self._logits[rows])


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
        self._top_k: dict[str, np.ndarray] | None = None
        self._offsets: np.ndarray | None = None
        self._product_dtype = torch.float32
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
        if config.dataset.task == "lm":
            for name in ("sequence_level", "cache_top_k"):
                if getattr(settings, name):
                    raise UserError(f"technique.distill.{name} is for text to text, not for a language model")
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
        if need.path is not None and need.budget != BudgetConfig():
            key = "init_from" if settings.teacher is None else "technique.distill.teacher"
            raise UserError(
                f"{key}={need.path} is a teacher that exists, and technique.distill.teacher_budget is for one that is "
                "to be trained: leave the budget out, or name its model (technique.distill.teacher_model=MODEL)"
            )

    def conflicts(self) -> dict[str, str]:
        if self.settings.cache_top_k is None:
            return {}
        why = "cached logits (technique.distill.cache_top_k) are of the unchanged examples"
        return {"mixes examples": why, "permutes tokens": why}

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
        # The projection of hidden states is nothing without steps.
        return bool(self.settings.initialise)

    def teacher_need(self, config: Root) -> TeacherNeed:
        path = self.settings.teacher
        if path is None and self.settings.teacher_model is None:
            # A run that starts from a finished model has its teacher there.
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
        # Training mode lets its linear layers use the fast products; it has no dropout, and no gradients.
        teacher.model.to(device).train().requires_grad_(False)
        self._product_dtype = next(
            (module.product_dtype for module in teacher.model.modules() if isinstance(module, Linear)), torch.float32
        )
        if data is None:
            return
        self._check_teacher(teacher, data)
        if self.settings.cache_top_k is not None and self._uses_logits():
            self._load_top_k(teacher, data, device)

    def _check_teacher(self, teacher: Teacher, data: PreparedData) -> None:
        """Raises `UserError` where the student's tokens mean nothing to a teacher whose inside it learns from."""
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
                f"{asked[0]}: the teacher has another tokenizer than the student, so they know different tokens; give "
                "the student the teacher's (dataset.tokenizer.path=TEACHER_RUN/tokenizer.json), or learn from its "
                "outputs alone (technique.distill.sequence_level=true technique.distill.loss=none)"
            )
        train = data.splits["train"]
        if isinstance(train, Pairs):
            longest = 1 + max(int(side.lengths.max()) for side in (train.source, train.target))
            self._check_context(longest, "dataset.max_tokens={}", -1)

    def _check_context(self, longest: int, remedy: str, offset: int = 0) -> None:
        """Raises `UserError` where the teacher has no positions for inputs of this length."""
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
        sources = list(corpus.splits["train"]["source"])
        # The beam is the method's, however the teacher's own run was scored.
        decoding = replace(teacher.generation, method="beam", beam=self.settings.beam)
        shape = (decoding.beam, decoding.length_penalty, decoding.max_length_ratio)
        content = f"{_VERSION}\0{corpus.fingerprint}\0{teacher.sha256}\0{shape}"
        key = hashlib.sha256(content.encode()).hexdigest()[:32]
        path = writable_cache("teacher-outputs") / f"{key}.json"
        with making(path):
            if not path.is_file():
                start = time.perf_counter()
                longest = teacher.model.architecture.context - 1
                ids = [row[:longest] for row in teacher.tokenizer.encode(sources)]
                encoded = Ragged.from_lists(ids, np.int64)
                teacher.model.eval()
                decoded = decode_sources(teacher.model, encoded, teacher.tokenizer, decoding, seed=0)
                teacher.model.train()
                seconds, flops = time.perf_counter() - start, _decoding_flops(teacher, ids, decoded, decoding.beam)
                write_json(path, {"seconds": seconds, "flops": flops, "outputs": decoded})
            # As JSON, an output may hold line ends of any kind.
            made = read_json(path)
        outputs, teacher.work["outputs"] = made["outputs"], Work(made["seconds"], made["flops"])
        before = list(corpus.splits["train"]["target"])
        # An empty output teaches nothing: there the reference stays.
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
        self._projection = Linear(model.architecture.width, teacher.architecture.width, bias=False)
        # Keyed by nothing but its shape: an orthogonal start keeps the student's geometry.
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(config.seed)
            nn.init.orthogonal_(self._projection.weight)
        return self._projection.to(model.embedding.weight.device)

    # --- the loss -------------------------------------------------------------------------------------

    def objective(self, objective: Objective, moment: Moment) -> None:
        assert self.teacher is not None
        alpha = self.alpha(moment.progress)
        weight = self.settings.hidden if self.active(moment.progress) else 0.0
        if alpha == 0.0 and weight == 0.0:
            return
        counts_N = objective.select((objective.batch.target_out_BT >= 0).unsqueeze(-1)).squeeze(-1)
        if objective.batch.mix is not None:
            labels = objective.batch.targets_and_weights()
            mass = sum((ids >= 0).float() * w for ids, w in labels if w is not None)
            counts_N = mass if objective.keep_N is None else mass[objective.keep_N]  # type: ignore[assignment, index]
        counts_N = counts_N.float()
        hidden_NE: Tensor | None = None
        if self._top_k is None or weight:
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
        if self._top_k is not None:
            ids, logits = self._cached_rows(objective.batch)
            return _FromTopK(
                kind,
                temperature,
                weights_N,
                objective.select(ids.to(counts_N.device)),
                objective.select(logits.to(counts_N.device)),
                self.teacher.model.architecture.vocab_size,
            )
        assert hidden_NE is not None
        weight = self.teacher.model.output.weight
        return _FromHidden(kind, temperature, weights_N, hidden_NE, weight, self._product_dtype)

    # --- the cache of the teacher's largest logits ----------------------------------------------------

    def _load_top_k(self, teacher: Teacher, data: PreparedData, device: torch.device) -> None:
        k = min(self.settings.cache_top_k, teacher.model.architecture.vocab_size)
        train = data.splits["train"]
        assert isinstance(train, Pairs)
        self._offsets = np.concatenate([[0], np.cumsum(train.target.lengths + 1)])
        if not teacher.sha256:  # what it will say is not known: any logits cost as much to learn from
            size = (int(self._offsets[-1]), k)
            self._top_k = {
                "ids": np.broadcast_to(np.arange(k, dtype=np.int32), size),
                "logits": np.broadcast_to(np.float16(0), size),
            }
            return
        content = hashlib.sha256(
            f"{_VERSION}\0{data.fingerprint}\0{teacher.sha256}\0{k}\0{self._product_dtype}".encode()
        )
        # Which of the data's pairs are trained on is another matter than what they are.
        for side in (train.source, train.target):
            content.update(side.lengths.tobytes())
        key = content.hexdigest()[:32]
        path = writable_cache("teacher-logits") / f"{key}.npz"
        with making(path):
            if not path.is_file():
                begun, flops = time.perf_counter(), 0.0
                total = int(self._offsets[-1])
                ids = np.zeros((total, k), dtype=np.int32)
                logits = np.zeros((total, k), dtype=np.float16)
                for start in range(0, len(train), 128):
                    rows = np.arange(start, min(start + 128, len(train)))
                    batch = collate_pairs(train, rows, data.tokenizer).to(device)
                    with torch.no_grad():
                        top = teacher.model.project(run_batch(teacher.model, batch)).float().topk(k, dim=-1)
                    assert batch.source_BS is not None
                    shape = (batch.source_BS.shape[1], batch.target_in_BT.shape[1])
                    flops += forward_flops(teacher.model.architecture, len(rows), *shape)
                    real = (batch.target_out_BT >= 0).cpu()
                    span = slice(int(self._offsets[start]), int(self._offsets[rows[-1] + 1]))
                    ids[span] = top.indices.cpu()[real].numpy()
                    logits[span] = top.values.cpu()[real].numpy()
                with replacing(path) as temporary, open(temporary, "wb") as file:
                    np.savez(file, ids=ids, logits=logits, seconds=time.perf_counter() - begun, flops=flops)
        with np.load(path) as stored:
            self._top_k = {"ids": stored["ids"], "logits": stored["logits"]}
            teacher.work["logits"] = Work(float(stored["seconds"]), float(stored["flops"]))

    def _cached_rows(self, batch: Batch) -> tuple[Tensor, Tensor]:
        assert self._top_k is not None
        assert self._offsets is not None
        rows, length = batch.target_out_BT.shape
        width = self._top_k["ids"].shape[1]
        ids = np.zeros((rows, length, width), dtype=np.int64)
        # Padding repeats one id with equal logits; it counts nothing.
        ids[:] = np.arange(width)
        logits = np.zeros((rows, length, width), dtype=np.float32)
        for i, row in enumerate(batch.rows):
            span = slice(int(self._offsets[row]), int(self._offsets[row + 1]))
            count = span.stop - span.start
            ids[i, :count], logits[i, :count] = self._top_k["ids"][span], self._top_k["logits"][span]
        return torch.from_numpy(ids), torch.from_numpy(logits)

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
        # The share that a term was given proves nothing of the term.
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


def _decoding_flops(teacher: Teacher, sources: list[list[int]], outputs: list[str], beam: int) -> float:
    """Of a search that ends each source as soon as its output is whole: it never ends sooner."""
    lengths = [len(ids) for ids in teacher.tokenizer.encode(outputs)]
    return sum(
        decoding_flops(teacher.model.architecture, len(source) + 1, length + 1, beam)
        for source, length in zip(sources, lengths, strict=True)
    )


def check_layers(theirs: Architecture, ours: Architecture) -> None:
    """Raises `UserError` where widths or the kinds of layers of teacher and student differ."""
    names = ("family", "width", "head_width", "vocab_size", "positions", "norm", "norm_position", "activation")
    for name in (*names, "qk_norm", "bias"):
        if getattr(theirs, name) != getattr(ours, name):
            raise UserError(
                f"technique.distill.initialise needs a teacher with the student's {name}: "
                f"{getattr(theirs, name)} is not {getattr(ours, name)}"
            )
    for their_shapes, our_shapes in ((theirs.encoder, ours.encoder), (theirs.decoder, ours.decoder)):
        numbers = evenly_spaced(len(our_shapes), len(their_shapes))
        for shape, number in zip(our_shapes, numbers, strict=True):
            if their_shapes[number] != shape:
                raise UserError(
                    "technique.distill.initialise needs layers of the same heads and feed-forward width: "
                    f"{their_shapes[number]} is not {shape}"
                )


def copy_layers(teacher: Transformer, student: Transformer) -> int:
    """Starts the student from evenly spaced teacher layers and its embeddings; returns the layers copied.

    Raises `UserError` as `check_layers` does.
    """
    check_layers(teacher.architecture, student.architecture)
    copied = 0
    with torch.no_grad():
        for ours, theirs in ((student.encoder, teacher.encoder), (student.decoder, teacher.decoder)):
            if ours is None or theirs is None:
                continue
            for block, number in zip(ours.blocks, evenly_spaced(len(ours.blocks), len(theirs.blocks)), strict=True):
                block.load_state_dict(theirs.blocks[number].state_dict())
                copied += 1
            ours.norm.load_state_dict(theirs.norm.state_dict())
        for name in ("embedding", "source_embedding", "output", "position"):
            theirs_part, ours_part = getattr(teacher, name), getattr(student, name)
            if theirs_part is not None and ours_part is not None and ours_part.weight.shape == theirs_part.weight.shape:
                ours_part.weight.copy_(theirs_part.weight)
    return copied
