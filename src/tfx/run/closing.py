"""The closing table of a run, from its summary."""

from __future__ import annotations

from typing import Any

from rich.console import Group
from rich.text import Text

from tfx.config.task_facts import TASKS
from tfx.record.summary import FILE, REFERENCE, TRAINED, WHOLE_TRAINING, Facts, Result, TrainingCost
from tfx.terminal.console import clock, number, size
from tfx.terminal.tables import Column, Sheet

# Tolerance of a rate: the last weight of a matrix, or scales in fp16, can keep the codes this far from the target.
_NEAR = 0.02
# Ratios of latencies on a few inputs: anything between the two is noise, and called neither faster nor slower.
_FASTER, _SLOWER = 0.95, 1.25
# What the reference of a run is, by how it came to it.
_ROLES = {"teacher": "the teacher", "init_from": "the model of init_from"}


def closing_table(facts: Facts, result: Result) -> Group:
    """The result on the final file, the stages of the stack if it compresses, and warnings in plain words."""
    parts: list[Any] = [_scores(facts, result), _facts(facts, result)]
    if _is_compressed(result):
        parts += ["", _stages(facts, result)]
    lines = [*_slower(result), *_missed_rate(result.evidence), *result.quality_drops]
    parts += [Text(line, style="yellow") for line in lines]
    return Group(*parts)


def _scores(facts: Facts, result: Result) -> Sheet:
    table = Sheet(
        Column("", wrap=False),
        Column("validation", number=True),
        Column("test" if result.test_split == "test" else "test (none: valid)", number=True),
        title=": ".join([*filter(None, [facts.name]), f"{facts.model} on {facts.dataset}"]),
    )
    primary = facts.primary_metric
    for name in dict.fromkeys((primary, *result.test)):
        style = "bold" if name == primary else None
        table.add_row(name, number(result.valid.get(name)), number(result.test.get(name)), style=style)
    return table


def _facts(facts: Facts, result: Result) -> Sheet:
    """What it took to train, the final file, what the techniques did, and how the metrics are computed."""
    training, bytes_, speed = result.train, result.bytes, result.inference["file"]
    table = Sheet(Column("", wrap=False), Column("the run and its file"))
    unit = TASKS[facts.task].input
    seconds = f"{clock(training.seconds)} ({training.tokens_per_second:,.0f} tokens/s)"
    content = f"weights {size(bytes_.weights)}, header {size(bytes_.header)}, tokenizer {size(bytes_.tokenizer)}"
    for name, value in (
        ("training", f"{training.steps:,} steps, {training.tokens:,} tokens, {seconds}"),
        *_teacher(training),
        ("padding", f"{training.padding:.1%}"),
        ("parameters", f"{result.parameters:,}"),
        ("file", f"{size(bytes_.file)} ({content})"),
        ("latency", f"{speed.latency_ms['p50']:.1f} ms {unit} (p95 {speed.latency_ms['p95']:.1f})"),
        ("throughput", f"{speed.tokens_per_second:,.0f} {TASKS[facts.task].output}/s"),
    ):
        table.add_row(name, value)
    for name, proof in result.evidence.items():
        table.add_row(name, ", ".join(f"{key} {number(value)}" for key, value in proof.items() if value))
    for metric, signature in result.signatures.items():
        table.add_row(f"{metric} is", signature, style="dim")
    return table


def _teacher(training: TrainingCost) -> list[tuple[str, str]]:
    """The cost of training the teacher, if there is a teacher and its cost is known."""
    if not training.teacher_steps:
        return []
    cost = f"{training.teacher_steps:,} steps, {training.teacher_tokens:,} tokens"
    return [("teacher", f"{cost}, {clock(training.teacher_seconds)}")]


def _stages(facts: Facts, result: Result) -> Sheet:
    """One row per stage: what it did to quality, size and speed."""
    primary, dense = facts.primary_metric, result.bytes.dense_fp32
    unit = TASKS[facts.task].input
    base = result.stages[0]
    whole = result.train.seconds
    begun = next((row.seconds / whole for row in result.stages if row.name == TRAINED and whole), 1.0)
    # What began to compress while it trained has no trained model to be compared with.
    has_base = base.name != TRAINED or begun >= WHOLE_TRAINING
    role = _ROLES.get(result.reference.name) if base.name == REFERENCE and result.reference is not None else None
    told = [f"differences to '{base.name}', " + (f"{role}, " if role else "")] if has_base else []
    if begun < WHOLE_TRAINING:
        told.append(f"'{TRAINED}' when compression began, after {begun:.0%} of training, ")
    spare = {"quality": 0, "diff": 2, "weights": 4, "non-zero": 5, "size": 3, "ratio": 0, "ms": 1}
    table = Sheet(
        Column("stage"),
        *(Column(name, number=True, spare=order) for name, order in spare.items()),
        title=f"stages: {primary} on validation data, {''.join(told)}size without tokenizer, ms {unit}",
    )
    for row in result.stages:
        value = row.valid[primary]
        table.add_row(
            row.name,
            number(value),
            "" if row is base or not has_base else f"{value - base.valid[primary]:+.3g}",
            f"{row.parameters / 1e6:.3f} M",
            f"{row.nonzero_parameters / 1e6:.3f} M",
            size(row.bytes),
            f"{dense / row.bytes:.2f}x",
            "" if row.latency_ms is None else f"{row.latency_ms:.1f}",
        )
    return table


def _is_compressed(result: Result) -> bool:
    """Whether a technique has a stage, so that the file differs from that of the trained model."""
    return any(stage.name not in (REFERENCE, TRAINED, FILE) for stage in result.stages)


def _slower(result: Result) -> list[str]:
    """Says if the smaller file does not make a faster model, or makes a clearly slower one."""
    inference = result.inference
    if not _is_compressed(result) or result.bytes.ratio <= 1.0:
        return []
    file, lines = inference["file"], []
    for name, label in (
        ("plain_fp32", "its plain fp32 tensors"),
        ("plain_bf16", "its plain bf16 tensors"),
        ("reference", "the reference"),
    ):
        if name not in inference:
            continue
        ms, other = file.latency_ms["p50"], inference[name].latency_ms["p50"]
        if ms > _FASTER * other:
            what = "slower" if ms > _SLOWER * other else "no faster"
            lines.append(f"smaller is {what} here: {ms:.1f} ms with the file, {other:.1f} ms with {label}")
    return lines


def _missed_rate(evidence: dict[str, dict[str, float]]) -> list[str]:
    """Says if codes take more or fewer bits than the rate that was aimed at, and why."""
    proof = evidence.get("quantize", {})
    is_budget = "rate_for_bytes" in proof  # whose file keeps it: only what is left unused is worth a word
    wanted = proof.get("rate_for_bytes" if is_budget else "rate")
    if wanted is None:
        return []
    reached = proof["entropy_bits"]
    if abs(reached - wanted) <= _NEAR * wanted or (is_budget and reached > wanted):
        return []
    why = (
        "no step may be so coarse that a matrix becomes zero; name a higher rate, prune more, or skip fewer tensors"
        if reached > wanted
        else "technique.quantize.bits and the weights themselves limit the steps; the file needs no more bytes"
    )
    if is_budget:
        return [f"quantize: the codes take {reached:.3g} bits per weight, and the file may have {wanted:.3g}: {why}"]
    return [f"quantize: the codes take {reached:.3g} bits per weight, not the {wanted:.3g} that were aimed at: {why}"]
