"""The quality of a model on one split: loss, and the metrics of what it generates."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from tfx.config.schema import EvaluationConfig
from tfx.data.tokenizer import Tokenizer
from tfx.evaluation.labels import check_label_metrics, label_rows
from tfx.evaluation.metrics import score_text
from tfx.evaluation.out_of_memory import in_memory
from tfx.evaluation.scoring import score_loss
from tfx.evaluation.scripts import misfits
from tfx.model.device import scoring_in, scoring_numbers
from tfx.model.transformer import Transformer
from tfx.processes.group import ALONE, Group
from tfx.record.metric_vocabulary import DEPTH
from tfx.tasks.contract import Answers, Split
from tfx.tasks.prepare import PreparedData


@dataclass
class Quality:
    """Metrics by name, their signatures, and one row per sentence (or window of a stream) for the statistics."""

    metrics: dict[str, float]
    signatures: dict[str, str] = field(default_factory=dict)
    predictions: list[dict[str, Any]] = field(default_factory=list)


def quality_notes(data: PreparedData, metrics: Sequence[str]) -> list[str]:
    """Notes to read before trusting the numbers: metrics that do not fit the data, texts that the tokenizer changes."""
    notes = []
    split = data.splits[data.test_split]
    if data.outputs is not None:
        check_label_metrics(list(metrics), data.outputs)
    if split.texts is not None:
        notes += misfits(metrics, split.texts[:2_000]["references"])
    if changes := data.tokenizer.changes:
        notes.append(
            f"the tokenizer changes texts before it encodes them ({', '.join(changes)}), and outputs with them"
        )
    return notes


def _of_answers(split: Split, answers: Answers, scored: dict[str, float], metrics: Sequence[str]) -> Quality:
    """The quality of a classifier: its loss, the ``metrics`` that are asked for, and all statistics of each text."""
    rows = zip(split.shown(answers), label_rows(answers), strict=True)
    named = {name: scored[name] for name in ("loss", *metrics, DEPTH) if name in scored}
    return Quality(named, predictions=[shown | statistics for shown, statistics in rows])


def measure_quality(
    model: Transformer,
    split: Split,
    tokenizer: Tokenizer,
    config: EvaluationConfig,
    metrics: Sequence[str],
    *,
    seed: int,
    most_decoded: int | None = None,
    progress: Callable[[int, int], Any] | None = None,
    group: Group = ALONE,
) -> Quality:
    """Scores the loss of the whole split, and if outputs are texts decodes its first ``most_decoded`` rows.

    The processes of a ``group`` share the work; the first one gets the scores of one process, the others no metrics of
    texts. Signatures name the number format where it is not fp32: such scores compare with their like.
    """
    device = model.embedding.weight.device
    numbers = scoring_numbers(config.precision, device, is_result=True)
    with scoring_in(numbers, device):
        quality = _measured(model, split, tokenizer, config, metrics, seed, most_decoded, progress, group)
    if numbers != "fp32":
        for name in quality.metrics:
            known = quality.signatures.get(name)
            quality.signatures[name] = f"{known}|numbers:{numbers}" if known else f"numbers:{numbers}"
    return quality


def _measured(
    model: Transformer,
    split: Split,
    tokenizer: Tokenizer,
    config: EvaluationConfig,
    metrics: Sequence[str],
    seed: int,
    most_decoded: int | None,
    progress: Callable[[int, int], Any] | None,
    group: Group,
) -> Quality:
    device = model.embedding.weight.device
    score = in_memory(
        config.batch_tokens,
        lambda tokens: score_loss(model, split, tokenizer, batch_tokens=tokens, device=device, group=group),
        group,
    ).completed(group)
    if score.answers is not None:
        return _of_answers(split, score.answers, score.metrics, metrics)
    quality = Quality(score.metrics)
    losses = [
        {"nll": round(float(nll), 4), "targets": int(targets)} | ({"unknown_bytes": int(unknown)} if unknown else {})
        for nll, targets, unknown in zip(score.nll, score.targets, score.unknown_bytes, strict=True)
    ]
    if split.texts is None:
        quality.predictions = losses
        return quality
    count = min(len(split), most_decoded or len(split))
    hypotheses = in_memory(
        config.batch_tokens,
        lambda tokens: split.decode(
            model, tokenizer, replace(config, batch_tokens=tokens), count, seed=seed, progress=progress, group=group
        ),
        group,
    )
    # Of each row only one process has an output.
    hypotheses = [max(outputs) for outputs in zip(*group.gather(hypotheses), strict=True)]
    if not group.is_first:
        return quality
    texts = split.texts[:count]
    text = score_text(hypotheses, texts["references"], metrics)
    quality.metrics |= text.metrics
    quality.signatures = text.signatures
    for row, hypothesis in enumerate(hypotheses):
        references = texts["references"][row]
        quality.predictions.append(
            {
                "source": texts["source"][row],
                "reference": references[0] if len(references) == 1 else references,
                "hypothesis": hypothesis,
                **losses[row],
                **text.sentences[row],
            }
        )
    return quality
