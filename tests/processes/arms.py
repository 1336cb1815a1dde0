"""Short trainings that one process and two must do alike."""

from __future__ import annotations

import json
import os
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

from tfx.compression import checkpoint
from tfx.config.compose import compose
from tfx.evaluation.quality import measure_quality
from tfx.processes.ending import run_and_end
from tfx.processes.group import Group, join
from tfx.run.life import status_of, train
from tfx.run.setup import Parts, Setup
from tfx.run.teacher import make_teachers
from tfx.techniques.calibration import Calibration
from tfx.terminal.console import SilentConsole
from tfx.training import loop
from tfx.training.loop import Observer, Trainer

TINY = (
    *("model=seq2seq_tiny", "model.width=32", "model.heads=2", "model.ffn_width=64", "model.dropout=0"),
    *("model.encoder_layers=1", "model.decoder_layers=1", "optimizer=adamw", "optimizer.lr=0.003"),
    *("dataset=normalize", "dataset.limit.train=300", "dataset.limit.valid=40", "dataset.limit.test=30"),
    *("dataset.batch_tokens=512", "trainer.budget.steps=10", "trainer.log_every=1", "trainer.validate_every=0.5"),
    *("trainer.precision=fp32", "trainer.threads=1", "evaluation.batch_tokens=512"),
)
# In a group of two the batches have odd numbers of rows too, and the second arm accumulates.
ARMS: dict[str, tuple[str, ...]] = {
    "dense": (),
    "accumulated": ("trainer.accumulation=2", "trainer.averaging.kind=ema"),
    "streamed": ("dataset=json", "dataset.path={folder}/pairs", "dataset.streaming=true", "dataset.buffer=40"),
    "one_row": ("dataset.batch_tokens=24", "technique=shuffle", "technique.shuffle.share=1"),
    "local": ("trainer.parallel=local", "trainer.local.steps=4", "trainer.averaging.kind=ema"),
    "local_one_row": (
        *("trainer.parallel=local", "trainer.local.steps=4", "dataset.batch_tokens=24", "optimizer=muon"),
        *("technique=[prune,quantize]", "technique.quantize.granularity=channel"),
    ),
    "fsdp": ("trainer.parallel=fsdp", "dataset.batch_tokens=96", "trainer.accumulation=2"),
    # A weight of one row, of which the second process has none.
    "fsdp_one_row": (
        *("trainer.parallel=fsdp", "dataset=kinds", "model=encoder_tiny", "model.decoder_layers=0"),
        *("model.pooling=attention", "trainer.keep=last"),
    ),
    "fsdp_distill": ("trainer.parallel=fsdp", "technique=[distill,shuffle,mixup]", "technique.shuffle.share=1"),
    "fsdp_prune": (
        *("trainer.parallel=fsdp", "technique=prune", "technique.prune.scope=global", "technique.prune.vectors=true"),
        *("technique.prune.rewind=0.1", "technique.prune.embeddings=true"),
        *("dataset.batch_tokens=96", "trainer.accumulation=2"),
    ),
    "fsdp_quantize": (
        *("trainer.parallel=fsdp", "technique=quantize", "technique.quantize.start=0.2"),
        *("technique.quantize.granularity=channel", "technique.quantize.range=affine"),
        "trainer.activation_checkpointing=true",
    ),
    "fsdp_all": (
        *("trainer.parallel=fsdp", "technique=[distill,prune,quantize]", "technique.quantize.rate=2"),
        *("technique.quantize.start=0.3", "technique.prune.score=movement"),
    ),
    "fsdp_at_end": (
        *("trainer.parallel=fsdp", "technique=[prune,quantize]", "technique.prune.score=wanda"),
        *("technique.prune.calibration=2", "technique.prune.structure.vocabulary=true", "model.decoder_layers=2"),
        *("technique.prune.structure.decoder_layers=1", "technique.prune.structure.layers_by=loss"),
        *("technique.prune.structure.layers_at=end", "technique.quantize.method=gptq"),
        *("technique.quantize.calibration=2", "technique.quantize.group=16"),
    ),
    "distill": ("technique=distill", "technique.distill.hidden=0.1"),
    "shuffle_mixup": (
        "technique=[shuffle,mixup]",
        *("technique.shuffle.share=0.5", "technique.shuffle.side=both", "technique.mixup.share=0.5"),
    ),
    "prune_quantize": ("technique=[prune,quantize]", "technique.quantize.granularity=channel"),
    "everything": (
        "technique=[distill,mixup,prune,quantize]",
        "technique.mixup.share=0.5",
        "technique.quantize.rate=2",
    ),
}


class Curve(Observer):
    """Notes the losses."""

    def __init__(self) -> None:
        self.rows: list[dict[str, float]] = []

    def stepped(self, row: dict[str, float], **place: Any) -> None:
        self.rows.append({"loss": row["loss"], "norm": row["gradient_norm"], "tokens": place["tokens"]})

    def validated(self, row: dict[str, float], **place: Any) -> None:
        self.rows.append({"valid": row["loss"]})


def prepared(name: str, teacher: Path, group: Group) -> Parts:
    """The parts of an arm."""
    words = [word.replace("{folder}", str(teacher.parent)) for word in (*TINY, *ARMS[name])]
    if "distill" in " ".join(words):
        words.append(f"technique.distill.teacher={teacher}")
    setup = Setup(config := compose(words), group)
    return setup.prepare(make_teachers(config, setup.stack, setup.device, SilentConsole(), _untrained, group))


def _untrained(config: Any, folder: Path) -> None:
    raise AssertionError("the teacher is named")


def trained(name: str, teacher: Path, group: Group) -> dict[str, Any]:
    """What an arm's training did."""
    parts = prepared(name, teacher, group)
    curve = Curve()
    trainer = Trainer(parts.config, parts.model, parts.data, parts.device, curve, parts.stack, group=parts.group)
    cost = asdict(trainer.train())
    calibration = Calibration.on(parts.model, parts.data, parts.config, parts.device)
    compressed = [technique.name for technique in parts.stack.finish(parts.model, calibration)]
    named = dict(parts.model.named_parameters())
    weights = {n: float(p.detach().double().square().sum()) for n, p in named.items()}
    zeros = {n: (p == 0).flatten().tolist() for n, p in named.items()} if compressed else {}
    kept = ("steps", "tokens", "padding", "flops", "processes", "skipped_steps")
    return {
        "curve": curve.rows,
        "cost": {key: cost[key] for key in kept},
        "weights": weights,
        "compressed": compressed,
        "zeros": {n: "".join("01"[zero] for zero in found) for n, found in zeros.items()},
        "evidence": parts.stack.evidence(),
    }


def make_pairs(folder: Path) -> None:
    """Files of pairs that a streamed arm reads."""
    folder.mkdir()
    for split, count in (("train", 120), ("valid", 20), ("test", 20)):
        rows = [{"source": f"{split} {row} is a number", "target": f"the number {row}"} for row in range(count)]
        (folder / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


def make_teacher(path: Path) -> None:
    """A teacher file: the dense arm's model before its first step, with another seed."""
    parts = Setup(compose([*TINY, "seed=7"])).prepare()
    checkpoint.save(path, parts.model, parts.data.tokenizer, parts.config.evaluation)


def scored(teacher: Path, group: Group) -> dict[str, Any]:
    """The quality of the teacher: every metric, and every row."""
    parts = prepared("dense", teacher, group)
    loaded = checkpoint.load(teacher)
    evaluation = parts.config.evaluation
    split = parts.data.splits["valid"]
    return asdict(measure_quality(loaded.model, split, loaded.tokenizer, evaluation, ["chrf"], seed=1, group=group))


def all_of(teacher: Path, group: Group) -> dict[str, Any]:
    """Every arm, and the scores."""
    return {**{name: trained(name, teacher, group) for name in ARMS}, "scores": scored(teacher, group)}


def run(folder: Path) -> None:
    """A whole run, with a teacher that all processes train first."""
    words = [
        *(*TINY, "technique=[distill,prune]", "technique.prune.sparsity=0.4", "trainer.budget.steps=6"),
        *("technique.distill.teacher_budget.steps=4", "evaluation.latency_inputs=1", "trainer.save.every_steps=2"),
    ]
    train(compose(words), words, folder)


def run_divided(folder: Path) -> None:
    """A whole run with divided weights, a mask and a grid."""
    words = [
        *(*TINY, "trainer.parallel=fsdp", "technique=[prune,quantize]", "technique.quantize.rate=2"),
        *("trainer.budget.steps=6", "technique.quantize.method=trellis", "technique.quantize.calibration=2"),
        *("evaluation.latency_inputs=1", "dataset.metrics=[]"),
    ]
    train(compose(words), words, folder)


def fail(folder: Path) -> int:
    """The exit status of a run in whose second process a validation fails."""

    def broken(*_: Any, **__: Any) -> None:
        raise ValueError("a broken disk")

    if join().rank == 1:
        loop.score_loss = broken  # type: ignore[assignment]
    return status_of(lambda: train(compose(TINY), TINY, folder))[0]


def all_of_two(teacher: Path, folder: Path) -> dict[str, Any]:
    """All of it in one of two processes, and after it three whole runs."""
    found = all_of(teacher, join())
    run(folder / "run")
    run_divided(folder / "divided")
    return found | {"status": fail(folder / "failed")}


def main() -> int:
    """What one of two processes does."""
    teacher, folder = map(Path, sys.argv[1:])
    found = all_of_two(teacher, folder)
    (folder / f"{os.environ['RANK']}.json").write_text(json.dumps(found))
    return 0


if __name__ == "__main__":
    sys.exit(run_and_end(main))
