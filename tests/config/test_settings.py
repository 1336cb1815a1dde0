"""No setting is dead: each of the schema and of the techniques changes the data, the training, the file or its scores.

A new setting fails here until it has a value to try, or a reason not to.
"""

import hashlib
import json
from functools import cache
from itertools import islice

import pytest
import torch

from tfx.compression import checkpoint
from tfx.config.compose import change, compose
from tfx.config.describe import settings, technique_settings
from tfx.config.registry import entry_points
from tfx.config.schema import Root
from tfx.processes.group import ALONE
from tfx.record.directory import RunDirectory
from tfx.run.measure import Measurer
from tfx.run.setup import Parts, Setup
from tfx.run.teacher import make_teachers
from tfx.tasks.batches import training_batches
from tfx.techniques.calibration import Calibration
from tfx.terminal.console import RunConsole
from tfx.training.loop import Observer, Trainer

LM = ["dataset=json", "dataset.task=lm", "dataset.metrics=[]", "model=gpt_nano", "model.context=16"]
MUON, SAMPLE = ["optimizer=muon"], ["evaluation.method=sample"]
EMA, LAST = ["trainer.averaging.kind=ema"], ["trainer.averaging.kind=last"]
WILD = ["optimizer.lr=1", "trainer.validate_every=0.1", "trainer.instability.spike=null", "trainer.budget.steps=8"]
UNTRAINED = ["trainer.budget.steps=0"]  # its outputs are long
PRUNE, QUANTIZE = ["technique=prune", "technique.prune.start=0"], ["technique=quantize", "technique.quantize.group=16"]
AWARE = [*QUANTIZE, "technique.quantize.start=0"]
DISTILL = ["technique=distill", "technique.distill.teacher={teacher}"]
SHUFFLE = ["technique=shuffle", "technique.shuffle.share=1"]
MIXUP = ["technique=mixup", "technique.mixup.share=1"]
STRUCTURE = [*PRUNE, "technique.prune.structure.ffn=0.5"]
LLAMA3 = ["model.positions=rotary", "model.rotary_scaling=llama3", "model.rotary_factor=8", "model.rotary_context=20"]
BPE = ["technique=bpe_dropout", "dataset.tokenizer.kind=bpe", "dataset.tokenizer.vocab_size=300"]
FACTORIZE = ["technique=factorize", "technique.factorize.multiple=1"]
DROPS = ["technique=r_drop", "model.dropout=0.3"]
WANDA = [*PRUNE, "technique.prune.score=wanda"]
MOVEMENT = [*PRUNE, "technique.prune.score=movement", "technique.prune.threshold=0.4999", "technique.prune.sparsity=0"]
TWO_LAYERS = ["model.encoder_layers=2", "model.decoder_layers=2"]

# A value that is not the default, and what it needs to matter.
VALUES: dict[str, tuple[str, list[str]]] = {
    "seed": ("2", []),
    "init_from": ("{teacher}", []),
    "model.encoder_layers": ("2", []),
    "model.decoder_layers": ("2", []),
    "model.width": ("32", []),
    "model.heads": ("4", []),
    "model.kv_heads": ("1", []),
    "model.ffn_width": ("24", []),
    "model.passes": ("2", []),
    "model.context": ("8", []),
    "model.positions": ("learned", []),
    "model.norm_position": ("post", []),
    "model.norm": ("rmsnorm", []),
    "model.activation": ("gelu", []),
    "model.qk_norm": ("true", []),
    "model.bias": ("false", []),
    "model.tied_embeddings": ("none", []),
    "model.rotary_base": ("100", ["model.positions=rotary"]),
    "model.rotary_scaling": ("linear", ["model.positions=rotary", "model.rotary_factor=4"]),
    "model.rotary_factor": ("2", ["model.positions=rotary", "model.rotary_scaling=linear"]),
    "model.rotary_low": ("1.5", LLAMA3),
    "model.rotary_high": ("8", LLAMA3),
    "model.rotary_context": ("32", LLAMA3),
    "model.relative_buckets": ("8", ["model.positions=relative"]),
    "model.relative_distance": ("64", ["model.positions=relative", "model.relative_buckets=4"]),
    "model.norm_eps": ("0.1", []),
    "model.attention_bias": ("false", []),
    "model.ffn_bias": ("false", []),
    "model.output_bias": ("true", []),
    "model.embedding_scale": ("false", []),
    "model.embedding_norm": ("true", []),
    "model.token_types": ("2", []),
    "model.dropout": ("0.5", []),
    "model.attention_dropout": ("0.5", []),
    "model.ffn_dropout": ("0.5", []),
    "model.token_dropout": ("0.5", []),
    "model.layer_dropout": ("0.5", []),
    "dataset.source": ("other", []),
    "dataset.target": ("other", []),
    "dataset.text": ("other", LM),
    "dataset.join": (",", LM),
    "dataset.document_mask": ("true", LM),
    "dataset.splits.train": ("[valid]", []),
    "dataset.splits.valid": ("[test]", []),
    "dataset.splits.test": ("[extra]", []),
    "dataset.limit.train": ("20", []),
    "dataset.limit.valid": ("5", []),
    "dataset.limit.test": ("5", []),
    "dataset.max_tokens": ("4", []),
    "dataset.max_length_ratio": ("3", ["dataset.target=other"]),
    "dataset.batch_tokens": ("200", []),
    "dataset.streaming": ("true", []),
    "dataset.buffer": ("5", ["dataset.streaming=true"]),
    "dataset.tokenizer.rows": ("3", []),
    "dataset.tokenizer.kind": ("bpe", ["dataset.tokenizer.vocab_size=300"]),
    "dataset.tokenizer.vocab_size": ("12", []),
    "dataset.tokenizer.split_digits": ("true", ["dataset.tokenizer.kind=bpe", "dataset.tokenizer.vocab_size=300"]),
    "dataset.tokenizer.path": ("{tokenizer}", []),
    "dataset.metrics": ("[exact_match]", []),
    "optimizer.name": ("muon", []),
    "optimizer.lr": ("0.1", []),
    "optimizer.betas": ("[0.5,0.5]", []),
    "optimizer.eps": ("0.1", []),
    "optimizer.weight_decay": ("5", []),
    "optimizer.momentum": ("0.2", MUON),
    "optimizer.matrix_lr": ("0.3", MUON),
    "optimizer.matrix_block": ("2", MUON),
    "optimizer.layer_decay": ("0.5", []),
    "optimizer.clip_norm": ("0.001", ["optimizer.eps=0.1"]),
    "schedule.name": ("constant", []),
    "schedule.warmup": ("0.7", ["schedule=linear"]),
    "schedule.final": ("0.5", ["schedule=linear"]),
    "schedule.power": ("5", ["schedule=polynomial"]),
    "schedule.decay": ("0.9", ["schedule=wsd"]),
    "trainer.budget.steps": ("6", []),
    "trainer.budget.tokens": ("300", []),
    "trainer.precision": ("bf16", []),
    "trainer.accumulation": ("2", []),
    "trainer.label_smoothing": ("0.5", []),
    "trainer.averaging.kind": ("ema", []),
    "trainer.averaging.decay": ("0.1", EMA),
    "trainer.averaging.start": ("0.2", LAST),
    "trainer.averaging.snapshots": ("2", [*LAST, "trainer.budget.steps=10", "trainer.averaging.start=0.1"]),
    "trainer.save.every_steps": ("2", []),
    "trainer.save.every_minutes": ("0.0000001", []),
    "trainer.early_stopping.metric": ("loss", [*WILD, "trainer.early_stopping.patience=1"]),
    "trainer.early_stopping.patience": ("1", [*WILD, "trainer.early_stopping.metric=loss"]),
    "trainer.keep_zeros": ("true", ["init_from={pruned}", "technique=[]"]),
    "trainer.keep": ("best", WILD),
    "trainer.best_by": ("perplexity", WILD),
    "trainer.validate_every": ("0.2", []),
    "trainer.log_every": ("1", []),
    "evaluation.decode_valid": ("3", []),
    "evaluation.precision": ("bf16", []),
    "evaluation.temperature": ("9", SAMPLE),
    "evaluation.top_k": ("1", SAMPLE),
    "evaluation.top_p": ("0.05", SAMPLE),
    "technique.distill.start": ("0.5", DISTILL),
    "technique.distill.end": ("0.5", DISTILL),
    "technique.distill.teacher": ("{other}", DISTILL),
    "technique.distill.loss": ("reverse_kl", DISTILL),
    "technique.distill.align_tokens": ("true", DISTILL),
    "technique.distill.align_temperature": ("5", [*DISTILL, "technique.distill.align_tokens=true"]),
    "technique.distill.beta": ("0.2", [*DISTILL, "technique.distill.loss=jensen_shannon"]),
    "technique.distill.on_policy": ("1", DISTILL),
    "technique.distill.temperature": ("4", DISTILL),
    "technique.distill.alpha": ("0.2", DISTILL),
    "technique.distill.alpha_final": ("0", DISTILL),
    "technique.distill.hidden": ("1", DISTILL),
    "technique.distill.attention": ("1", DISTILL),
    "technique.distill.layer_map": ("uniform", [*DISTILL, "technique.distill.hidden=1"]),
    "technique.distill.relations": ("1", DISTILL),
    "technique.distill.relation_pairs": ("[query-key]", [*DISTILL, "technique.distill.relations=1"]),
    "technique.distill.relation_heads": ("4", [*DISTILL, "technique.distill.relations=1"]),
    "technique.distill.initialise": ("true", DISTILL),
    "technique.distill.cache_top_k": ("2", DISTILL),
    "technique.bpe_dropout.start": ("0.5", BPE),
    "technique.bpe_dropout.end": ("0.5", BPE),
    "technique.bpe_dropout.rate": ("0.9", BPE),
    "technique.factorize.start": ("0.6", FACTORIZE),
    "technique.factorize.parameters": ("0.3", FACTORIZE),
    "technique.factorize.energy": ("0.9", FACTORIZE),
    "technique.factorize.multiple": ("5", FACTORIZE),
    "technique.factorize.weighted": ("false", FACTORIZE),
    "technique.factorize.calibration": ("1", FACTORIZE),
    "technique.factorize.skip": ("[encoder.*]", FACTORIZE),
    "technique.factorize.store": ("fp32", FACTORIZE),
    "technique.r_drop.start": ("0.5", DROPS),
    "technique.r_drop.end": ("0.5", DROPS),
    "technique.r_drop.alpha": ("1", DROPS),
    "technique.mixup.start": ("0.5", MIXUP),
    "technique.mixup.end": ("0.5", MIXUP),
    "technique.mixup.alpha": ("9", MIXUP),
    "technique.mixup.share": ("0.3", MIXUP),
    "technique.prune.start": ("0.6", PRUNE),
    "technique.prune.end": ("0.3", PRUNE),
    "technique.prune.score": ("wanda", PRUNE),
    "technique.prune.calibration": ("1", WANDA),
    "technique.prune.penalty": ("5", MOVEMENT),
    "technique.prune.structure.layers_by": (
        "every_other",
        ["model.encoder_layers=3", *PRUNE, "technique.prune.structure.encoder_layers=2"],
    ),
    "technique.prune.structure.layers_at": (
        "end",
        [*TWO_LAYERS, *PRUNE, "technique.prune.structure.encoder_layers=1"],
    ),
    "technique.prune.sparsity": ("0.9", PRUNE),
    "technique.prune.threshold": ("0.2", PRUNE),
    "technique.prune.pattern": ("2:4", PRUNE),
    "technique.prune.scope": ("row", PRUNE),
    "technique.prune.embeddings": ("true", PRUNE),
    "technique.prune.vectors": ("true", PRUNE),
    "technique.prune.skip": ("[encoder.*]", PRUNE),
    "technique.prune.schedule": ("once", PRUNE),
    "technique.prune.initial": ("0.4", PRUNE),
    "technique.prune.every": ("1", PRUNE),
    "technique.prune.rewind": ("0.2", [*PRUNE, "technique.prune.end=0.6", "trainer.budget.steps=8"]),
    "technique.prune.store": ("fp32", PRUNE),
    "technique.prune.structure.heads": ("0.5", PRUNE),
    "technique.prune.structure.ffn": ("0.5", PRUNE),
    "technique.prune.structure.encoder_layers": ("1", [*TWO_LAYERS, *PRUNE]),
    "technique.prune.structure.decoder_layers": ("1", [*TWO_LAYERS, *PRUNE]),
    "technique.prune.structure.vocabulary": ("true", [*PRUNE, "dataset.tokenizer.path={tokenizer}"]),
    "technique.quantize.start": ("0.1", [*QUANTIZE, "technique.quantize.bits=2"]),
    "technique.quantize.bits": ("2", QUANTIZE),
    "technique.quantize.layers": ("['*.ffn.*:2']", QUANTIZE),
    "technique.quantize.skip": ("[encoder.*]", QUANTIZE),
    "technique.quantize.embeddings": ("false", QUANTIZE),
    "technique.quantize.method": ("codebook", QUANTIZE),
    "technique.quantize.range": ("affine", QUANTIZE),
    "technique.quantize.granularity": ("tensor", QUANTIZE),
    "technique.quantize.rate": ("2", QUANTIZE),
    "technique.quantize.embedding_rate": ("3", [*QUANTIZE, "technique.quantize.rate=2"]),
    "technique.quantize.bytes": ("9000", QUANTIZE),
    "technique.quantize.ratio": ("5", QUANTIZE),
    "technique.quantize.group": ("8", QUANTIZE),
    "technique.quantize.clip": ("false", [*QUANTIZE, "technique.quantize.bits=2"]),
    "technique.quantize.aware": ("false", AWARE),
    "technique.quantize.learned_step": ("true", AWARE),
    "technique.quantize.every": ("1", [*AWARE, "technique.quantize.bits=2"]),
    "technique.quantize.activations": (
        "int8",
        ["technique=quantize", "technique.quantize.bits=8", "technique.quantize.granularity=channel"],
    ),
    "technique.quantize.calibration": ("1", [*QUANTIZE, "technique.quantize.method=gptq"]),
    "technique.quantize.entropy": ("false", QUANTIZE),
    "technique.quantize.scales": ("fp32", QUANTIZE),
    "technique.quantize.store": ("fp32", QUANTIZE),
    "technique.shuffle.start": ("0.2", SHUFFLE),
    "technique.shuffle.end": ("0.9", SHUFFLE),
    "technique.shuffle.mode": ("whole", SHUFFLE),
    "technique.shuffle.window": ("1", SHUFFLE),
    "technique.shuffle.span": ("1", [*SHUFFLE, "technique.shuffle.mode=spans"]),
    "technique.shuffle.share": ("0.3", SHUFFLE),
    "technique.shuffle.anneal": ("none", [*SHUFFLE, "trainer.budget.steps=8"]),
    "technique.shuffle.side": ("both", SHUFFLE),
    "technique.shuffle.examples": ("by_length", [*SHUFFLE, "dataset.batch_tokens=48"]),
}

# What these change is seen elsewhere, in the test that is named, or not on this machine.
ELSEWHERE = {
    "evaluation.engine": "tests/exchange/test_engines.py: needs other libraries",
    "evaluation.engine_numbers": "tests/exchange/test_engines.py: needs other libraries",
    "evaluation.min_length": "tests/model/test_rules.py: what they forbid",
    "evaluation.no_repeat_ngram": "tests/model/test_rules.py: what they forbid",
    "evaluation.repetition_penalty": "tests/model/test_rules.py: what they forbid",
    "dry_run": "tests/commands: nothing is trained",
    "name": "tests/report: what a run is called",
    "tags": "tests/report: what runs are found by",
    "reference": "tests/run/test_compressed.py: what differences are taken against",
    "max_quality_drop": "tests/run/test_compressed.py: the gate",
    "on_quality_drop": "tests/run/test_compressed.py: the gate",
    "model.name": "a name, shown in tables",
    "model.family": "goes with dataset.task: no other combination is allowed",
    "dataset.name": "a name, shown in tables",
    "dataset.task": "goes with model.family: no other combination is allowed",
    "dataset.format": "tests/data/test_corpus.py: which reader",
    "dataset.path": "tests/data/test_corpus.py: where the data are",
    "dataset.hub": "needs the hub",
    "dataset.hub_config": "needs the hub",
    "dataset.hub_revision": "needs the hub",
    "dataset.valid_fraction": "tests/data/test_corpus.py: without a validation split",
    "dataset.tokenizer.lowercase": "tests/data/test_tokenizer.py: of texts with capitals",
    "dataset.mix": "tests/tasks/test_mixture.py: several corpora",
    "dataset.empty": "tests/data/test_corpus.py: an error or not",
    "model.convolution": "tests/model/test_convolution.py: of encoders",
    "model.pooling": "tests/model/test_label_loss.py: of classifiers",
    "model.pooler": "tests/model/test_label_loss.py: of classifiers",
    **{
        f"dataset.{name}": "tests/tasks/test_classification.py: of classifiers"
        for name in (
            *("pair", "label", "predict", "labels", "label_separator"),
            *("class_weights", "long_texts"),
        )
    },
    "trainer.budget.seconds": "tests/training/test_budget.py: by the clock",
    "trainer.device": "there is a CPU alone here",
    "trainer.devices": "tests/processes/test_equal.py: the same numbers from several processes",
    "trainer.parallel": "tests/processes/test_equal.py: what several processes share",
    "trainer.local.steps": "tests/training/test_parallel.py: when processes meet",
    "trainer.local.average_moments": "tests/training/test_parallel.py: what becomes of each process's own moments",
    "trainer.local.outer_lr": "tests/training/test_parallel.py: how far they then go",
    "trainer.local.outer_momentum": "tests/training/test_parallel.py: how far they then go",
    "trainer.prefetch": "tests/training/test_ahead.py: the same numbers, faster",
    "trainer.compile": "the same numbers, faster",
    "trainer.deterministic": "the CPU's kernels always are",
    "trainer.activation_checkpointing": "tests/model: the same numbers in less memory",
    "trainer.save.keep": "tests/training/test_state.py: how many states stay",
    "trainer.instability.policy": "tests/training/test_stability.py: what becomes of a bad step",
    "trainer.instability.spike": "tests/training/test_stability.py: which step is bad",
    "trainer.instability.patience": "tests/training/test_stability.py: when it stops all the same",
    "trainer.memory_gb": "tests/run/test_batch_size.py: of a size that is found",
    "dataset.batch_tokens_limit": "tests/run/test_batch_size.py: of a size that is found",
    "trainer.profile": "tests/training/test_profile.py: two more files",
    "trainer.threads": "the same numbers but for their last bits",
    "tracking.to": "tests/run/test_tracking.py: what others receive",
    "tracking.project": "tests/run/test_tracking.py: where they keep it",
    "tracking.artifacts": "tests/run/test_tracking.py: which files they receive",
    "evaluation.method": "tests/model/test_decoding.py: of models whose outputs are long enough",
    "evaluation.beam": "tests/model/test_decoding.py: of models whose outputs are long enough",
    "evaluation.length_penalty": "tests/model/test_decoding.py: of models whose outputs are long enough",
    "evaluation.max_length_ratio": "tests/model/test_decoding.py: of models whose outputs are long enough",
    "evaluation.new_tokens": "tests/evaluation/test_quality.py: of generate alone",
    "evaluation.batch_tokens": "the same numbers in less memory",
    "evaluation.attention_maps": "tests/commands/test_whole.py: one more file",
    "evaluation.latency_inputs": "tests/evaluation/test_quality.py: how much is timed",
    "technique": "the list of techniques",
    "technique.distill.sequence_level": "tests/techniques/test_distill.py: the outputs of a teacher that has learned",
    "dataset.monolingual": "tests/tasks/test_mixture.py: text that only a teacher can say something of",
    "dataset.monolingual_share": "tests/tasks/test_mixture.py: of such text",
    "technique.distill.relation_layer": "tests/techniques/test_matching.py: of teachers with several layers",
    "technique.distill.beam": "tests/techniques/test_distill.py: of such outputs",
    "technique.distill.teacher_model": "tests/run/test_teacher.py: trains a teacher first",
    "technique.distill.teacher_budget.steps": "tests/run/test_teacher.py: of a teacher that is trained first",
    "technique.distill.teacher_budget.tokens": "tests/run/test_teacher.py: of a teacher that is trained first",
    "technique.distill.teacher_budget.seconds": "tests/run/test_teacher.py: of a teacher that is trained first",
    **{
        f"technique.early_exit.{name}": "tests/techniques/test_early_exit.py: of classifiers"
        for name in ("start", "end", "layers", "weight", "joint", "max_drop", "threshold")
    },
    "technique.quantize.end": "refused: the grid stays",
    "technique.factorize.end": "refused: factors stay",
    **{f"technique.{name}.allow_noop": "tests/techniques/test_stack.py: an error or not" for name in entry_points()},
}


def all_settings() -> list[str]:
    keys = [key for key, _ in settings()]
    return keys + [key for name in sorted(entry_points()) for key, *_ in technique_settings(name)]


def test_every_setting_is_tried_or_has_a_reason_not_to_be():
    assert sorted(VALUES.keys() | ELSEWHERE.keys()) == sorted(all_settings())
    assert not VALUES.keys() & ELSEWHERE.keys()


class Recorder(Observer):
    """What a training tells of itself, times aside."""

    def __init__(self) -> None:
        self.told: list[object] = []

    def stepped(self, row, **place):
        self.told.append(("step", place["step"], {k: v for k, v in row.items() if k != "tokens_per_second"}))

    def validated(self, row, **place):
        self.told.append(("valid", place["step"], row))

    def keep(self, name):
        self.told.append(name)

    def save(self, step, state):
        self.told.append(("save", step))


def digest(tensors) -> str:
    found = hashlib.sha256()
    for name, tensor in tensors.items():
        found.update(name.encode() + tensor.detach().float().cpu().numpy().tobytes())
    return found.hexdigest()


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """Data, a given tokenizer, teachers, a pruned model; and what was seen of each set of overrides."""
    here = tmp_path_factory.mktemp("settings")
    data = here / "data"
    data.mkdir()
    for split, count in (("train", 60), ("valid", 12), ("test", 12), ("extra", 5)):
        rows = []
        for number in range(count):
            words = " ".join(f"{split[0]}{(number * k) % 17}" for k in range(1, 2 + number % 5))
            rows.append({"source": words, "target": words[::-1], "other": f"{number} x", "text": words})
        (data / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TFX_CACHE", str(here / "cache"))
        world = World(here)
        world.names["teacher"] = world.saved("teacher", ["seed=7", *UNTRAINED])
        world.names["other"] = world.saved("other", ["seed=8"])
        world.names["pruned"] = world.saved("pruned", [*PRUNE, "technique.prune.sparsity=0.8"])
        parts = world.parts(["dataset.tokenizer.kind=bpe", "dataset.tokenizer.vocab_size=300", "dataset.source=other"])
        world.names["tokenizer"] = str(here / "tokenizer.json")
        (here / "tokenizer.json").write_text(parts.data.tokenizer.to_json())
        yield world


@cache
def composed(*words: str) -> Root:
    return compose(list(words))


def _no_training(config, folder):
    raise AssertionError("each teacher here is named")


class World:
    """Runs in memory, each set of overrides once."""

    def __init__(self, here) -> None:
        self.here = here
        self.names: dict[str, str] = {}
        self.seen: dict[tuple[str, ...], dict[str, object]] = {}

    def parts(self, overrides: list[str]) -> Parts:
        words = [word.format(**self.names) for word in overrides]
        keys = {word.partition("=")[0] for word in words}
        shape = {"encoder_layers": 1, "decoder_layers": 1, "width": 16, "heads": 2, "ffn_width": 16, "dropout": 0.0}
        is_lm, brings = "dataset.task=lm" in words, "init_from" in keys
        base = ["dataset=json", f"dataset.path={self.here / 'data'}", "optimizer=adamw", "evaluation=greedy"]
        base += [
            "dataset.metrics=[chrf]",
            "trainer.precision=fp32",
            "dataset.batch_tokens=100",
            "dataset.limit.train=40",
        ]
        base += ["trainer.validate_every=0.5", "evaluation.max_length_ratio=0.5"]
        base += [] if brings else ["dataset.tokenizer.kind=char"]
        base += [f"model.{name}={value}" for name, value in shape.items() if not (brings or (is_lm and "enc" in name))]
        base += [] if any(key.startswith("trainer.budget") for key in keys) else ["trainer.budget.steps=4"]
        # Hydra takes its time: what it composes is shared, and values are set on top.
        whole = [word for word in words if word.startswith("dataset.") or "." not in word.partition("=")[0]]
        values = [word for word in words if word not in whole]
        setup = Setup(change(composed(*base, *whole), values))
        teachers = make_teachers(setup.config, setup.stack, setup.device, RunConsole(), _no_training, ALONE)
        return setup.prepare(teachers)

    def trained(self, overrides: list[str]):
        parts, told = self.parts(overrides), Recorder()
        config = parts.config
        trainer = Trainer(config, parts.model, parts.data, parts.device, told, parts.stack)
        result = trainer.train()

        def batches(count: int):
            endless = training_batches(
                parts.data.splits["train"],
                parts.data.tokenizer,
                batch_tokens=config.dataset.batch_tokens,
                context=parts.model.architecture.context,
                seed=1,
            )
            return list(islice(endless, count))

        for _ in parts.stack.finish(parts.model, Calibration(parts.model, batches)):
            pass
        file = self.here / "model.safetensors"
        storage = parts.stack.storage() if parts.stack.compressing else None
        checkpoint.save(file, parts.model, parts.data.tokenizer, config.evaluation, storage)
        return parts, told, result, file

    def saved(self, name: str, overrides: list[str]) -> str:
        *_, file = self.trained(overrides)
        return str(file.rename(self.here / f"{name}.safetensors"))

    def look(self, overrides: list[str]) -> dict[str, object]:
        key = tuple(overrides)
        if key not in self.seen:
            parts, told, result, file = self.trained(overrides)
            loaded = checkpoint.load(file)
            run = RunDirectory(self.here / "none")
            quality = Measurer(parts.config, parts.data, parts.device, run, RunConsole()).quality(loaded, "valid")
            self.seen[key] = {
                "data": {name: split.size for name, split in parts.data.splits.items()},
                "notes": parts.data.notes,
                "plan": parts.stack.plan(),
                "told": told.told,
                "steps": (
                    result.steps,
                    result.tokens,
                    result.final_weights,
                    result.best_by,
                    result.stopped_early,
                    result.skipped_steps,
                ),
                "weights": digest(parts.model.state_dict()),
                "tensors": [(row.name, row.shape, row.codec, row.bytes) for row in loaded.tensors],
                "quality": quality.metrics,
                "hypotheses": [row.get("hypothesis") for row in quality.predictions],
                # A rate is there as it was asked for: what repeats a setting proves nothing.
                "evidence": {
                    name: {key: value for key, value in proof.items() if key != "rate"}
                    for name, proof in parts.stack.evidence().items()
                },
            }
        return self.seen[key]


@pytest.mark.parametrize("key", VALUES)
def test_a_setting_changes_something(key, world):
    value, context = VALUES[key]
    torch.manual_seed(0)
    before = world.look(context)
    chosen = key.removesuffix(".name") if key in ("optimizer.name", "schedule.name") else key
    after = world.look([*context, f"{chosen}={value}"])
    if key.startswith("technique."):
        plans = [dict(each, plan=None) for each in (before, after)]  # a plan that repeats a setting proves nothing
        before, after = plans
    assert before != after, f"{key}={value} changes nothing"


@pytest.mark.parametrize("context", [[], WILD, AWARE, DISTILL, SHUFFLE, PRUNE, LM], ids=str)
def test_looking_twice_sees_the_same(context, world):
    """Else anything would seem to change something."""
    before = world.look(context)
    del world.seen[tuple(context)]
    assert world.look(context) == before
