"""The settings of distillation."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tfx.config.schema import Budget, group, setting
from tfx.errors import UserError
from tfx.techniques.contract import TechniqueSettings

# Which layers are compared, and which vectors of a layer are related to which.
LAYER_MAPS = ("last", "uniform", "top", "bottom")
RELATIONS = ("query-query", "key-key", "value-value", "query-key")


@dataclass
class DistillSettings(TechniqueSettings):
    """Settings of `Distill`."""

    teacher: Any = setting(
        None,
        "a run directory, model file or model folder, or a list of them, averaged in probability; null: init_from, "
        "else one is trained first, and cached",
        path=True,
    )
    teacher_model: str | None = setting(None, "model of a teacher that is trained first; null: the same as the run's")
    teacher_budget: Budget = group(Budget)
    loss: str = setting(
        "forward_kl",
        "soft-target loss: KL(teacher || student), KL(student || teacher), Jensen-Shannon, or none",
        choices=("forward_kl", "reverse_kl", "jensen_shannon", "none"),
        paper="Hinton 2015, arXiv 1503.02531; Gu 2023, arXiv 2306.08543; Wen 2023, arXiv 2307.15190",
    )
    beta: float = setting(
        0.5,
        "jensen_shannon: the teacher's share of the mixture, and of its own KL divergence in the loss",
        above=0,
        below=1,
        paper="Agarwal 2023, arXiv 2306.13649",
    )
    align_tokens: bool = setting(
        False,
        "teachers with another tokenizer: learn how likely they find the spans of text that both tokenize",
        paper="Minixhofer 2025, arXiv 2503.20083",
    )
    align_temperature: float = setting(
        100.0, "align_tokens: the likelihood p of a span counts as p^(1/temperature)", minimum=1, maximum=1e4
    )
    on_policy: float = setting(
        0.0,
        "share of the batches whose targets the student itself writes, to be judged by the teacher alone",
        minimum=0,
        maximum=1,
        paper="Agarwal 2023, arXiv 2306.13649",
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
        "weight of the mean squared error of hidden states, through a learned projection",
        minimum=0,
        paper="Romero 2015, arXiv 1412.6550; Jiao 2020, arXiv 1909.10351",
    )
    attention: float = setting(
        0.0,
        "weight of the mean squared error of the scores of self-attention, before their softmax; as many heads in both",
        minimum=0,
        paper="Jiao 2020, arXiv 1909.10351",
    )
    layer_map: str = setting(
        "last",
        "what hidden and attention compare: the last layers; or each layer of the student with the teacher's at the "
        "same share of its depth, with its top ones, or with its bottom ones (hidden: and the embeddings)",
        choices=LAYER_MAPS,
        paper="Jiao 2020, arXiv 1909.10351",
    )
    relations: float = setting(
        0.0,
        "weight of the KL divergence of self-attention relations in the student's last layer; widths and heads may "
        "differ",
        minimum=0,
        paper="Wang 2020, arXiv 2002.10957; Wang 2021, arXiv 2012.15828",
    )
    relation_pairs: list[str] = setting(
        ["query-query", "key-key", "value-value"],
        "which vectors are related; query-key is the attention itself",
        choices=RELATIONS,
        paper="Wang 2021, arXiv 2012.15828",
    )
    relation_heads: int | None = setting(
        None, "heads that the vectors of all heads are regrouped into; null: as many as the teacher has", minimum=1
    )
    relation_layer: int | None = setting(
        None, "the teacher's layer, from 1, whose relations are taught, in each stack; null: its last", minimum=1
    )
    sequence_level: bool = setting(
        False, "text to text: train on the teacher's beam output as target", paper="Kim & Rush 2016, arXiv 1606.07947"
    )
    beam: int = setting(5, "sequence level: hypotheses of the teacher's beam; 1: greedy", minimum=1, maximum=1000)
    initialise: bool = setting(
        False,
        "start from evenly spaced layers of the (first) teacher; the widths must agree",
        paper="Sanh 2019, arXiv 1910.01108",
    )
    cache_top_k: int | None = setting(
        None, "text to text and labels: compute the teacher's k largest logits once and cache them", minimum=1
    )

    @property
    def teachers(self) -> tuple[Path, ...]:
        """The paths that ``teacher`` names. Raises `UserError` if it is no list of different paths."""
        if self.teacher is None:
            return ()
        named = self.teacher if isinstance(self.teacher, list) else [self.teacher]
        if not named or any(isinstance(path, dict | list | bool) or path is None for path in named):
            raise UserError(
                f"technique.distill.teacher={self.teacher} names no teachers: write a run, or several as [RUN1,RUN2]"
            )
        paths = tuple(Path(str(path)) for path in named)
        if len(set(paths)) < len(paths):
            raise UserError(
                f"technique.distill.teacher={self.teacher} names one teacher twice: name each once, for all count alike"
            )
        return paths
