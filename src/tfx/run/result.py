"""The result of a run, measured on its final file, read back from disk."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tfx.compression import checkpoint
from tfx.evaluation.attention import record_attention
from tfx.record.directory import RunDirectory
from tfx.record.files import write_json, write_json_lines
from tfx.record.metrics_log import MetricsLog
from tfx.record.summary import FILE, VERSION, Facts, FileBytes, Result, TrainingCost
from tfx.run.measure import Measurer

if TYPE_CHECKING:
    from tfx.config.schema import Root
    from tfx.run.setup import Parts
    from tfx.techniques.stack import Stack


def facts_of(config: Root, stack: Stack) -> Facts:
    """The facts about a run that its summary holds, whether it succeeded or failed."""
    return Facts(
        format_version=VERSION,
        task=config.dataset.task,
        name=config.name,
        tags=config.tags,
        model=config.model.name,
        dataset=config.dataset.name,
        techniques=stack.names,
        plan=stack.plan(),
        seed=config.seed,
        primary_metric=config.dataset.metrics[0] if config.dataset.metrics else "loss",
    )


def measure_result(
    parts: Parts,
    run: RunDirectory,
    measurer: Measurer,
    training: TrainingCost,
    file: Path,
    resumed: Sequence[int],
) -> Result:
    """Measures the final ``file``, and writes its predictions and tensor rows.

    ``resumed`` are the steps after which the run was resumed.
    """
    data = parts.data
    dense_bytes = measurer.dense_bytes(parts.dense)
    evidence = parts.stack.evidence()
    start = time.perf_counter()
    loaded = checkpoint.load(file, str(parts.device))
    bytes_ = checkpoint.read_header(file).bytes
    # The last stage was measured on this file.
    stage = replace(measurer.stages[-1], name=FILE)
    measurer.stages.append(stage)
    test = measurer.quality(loaded, data.test_split)
    measurer.measure_inference(loaded, run.model)
    stage.seconds = time.perf_counter() - start
    write_json_lines(run.predictions, test.predictions)
    write_json(run.tensors, checkpoint.tensor_rows(checkpoint.load(file, kernels=False)))
    if count := parts.config.evaluation.attention_maps:
        inputs = data.splits[data.test_split].attended(test.predictions, data.tokenizer, count)
        write_json(run.attention, record_attention(loaded.model, loaded.tokenizer, inputs))
    metrics = MetricsLog(run.metrics)
    for name, values in {"valid": stage.valid, data.test_split: test.metrics}.items():
        row: dict[str, Any] = {"seconds": training.seconds, "final": True, **values}
        metrics.write(name, step=training.steps, tokens=training.tokens, **row)
    metrics.close()
    teachers = [teacher for own in parts.teachers.values() for teacher in own]
    return Result(
        test=test.metrics,
        test_split=data.test_split,
        valid=stage.valid,
        signatures=test.signatures,
        reference=measurer.reference,
        stages=measurer.stages,
        bytes=FileBytes(
            dense_fp32=dense_bytes,
            file=bytes_.file,
            weights=bytes_.weights,
            header=bytes_.header,
            tokenizer=bytes_.tokenizer,
            ratio=dense_bytes / (bytes_.weights + bytes_.header),
        ),
        parameters=stage.parameters,
        train=replace(
            training,
            teacher_steps=sum(teacher.steps for teacher in teachers),
            teacher_seconds=sum(teacher.total_seconds for teacher in teachers),
            teacher_tokens=sum(teacher.tokens for teacher in teachers),
            teacher_flops=sum(teacher.total_flops for teacher in teachers),
        ),
        inference=measurer.inference,
        data={
            "notes": data.notes,
            "files": {name: [asdict(file) for file in files] for name, files in data.files.items()},
            **({"mix": data.shares} if data.shares else {}),
            **{name: split.size for name, split in data.splits.items()},
        },
        quality_drops=measurer.drops,
        evidence=evidence,
        resumed=list(resumed),
    )
