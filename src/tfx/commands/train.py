"""`tfx train [overrides]`: data, tokenizer and model; training; evaluation; the run directory."""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tfx.commands.closing import closing_table
from tfx.config import describe
from tfx.config.schema import LauncherConfig, Root
from tfx.errors import UserError
from tfx.run.console import RunConsole, size
from tfx.run.directory import RunDirectory, model_file
from tfx.run.files import write_json, write_json_lines, write_text
from tfx.run.lock import locked
from tfx.run.seeds import derive_seed
from tfx.run.signals import StoppedBySignal, leaving_on_signals

if TYPE_CHECKING:
    import torch

    from tfx.compression.checkpoint import LoadedModel
    from tfx.data.batching import Batch
    from tfx.data.prepare import PreparedData
    from tfx.evaluation.quality import Quality
    from tfx.model.transformer import Transformer
    from tfx.techniques.contract import Teacher
    from tfx.techniques.stack import Stack
    from tfx.training.loop import TrainingResult


class _ReportedError(Exception):
    """A run failed, and its summary, its log and the user have been told."""


def main(arguments: Sequence[str]) -> int:
    """Composes the config, trains, and prints the closing table; with ``-m`` runs a sweep and prints its results."""
    if any(word in ("-h", "--help") for word in arguments):
        print_help()
        return 0
    from tfx.config.compose import run_with_hydra
    from tfx.sweep import launcher
    from tfx.sweep.jobs import ENDED_BADLY
    from tfx.sweep.table import print_results

    status = 0

    def job(config: Root, typed: list[str], directory: str) -> float | None:
        nonlocal status
        try:
            with leaving_on_signals():
                summary = train(config, typed, Path(directory))
        except KeyboardInterrupt as error:
            status = error.status if isinstance(error, StoppedBySignal) else 130
            return None
        except _ReportedError:
            status = 1
            return None
        if summary is None:
            return None
        return float(summary["valid"][summary["primary_metric"]])

    jobs = launcher.register()
    try:
        run_with_hydra(job, arguments)
    except StoppedBySignal as stopped:
        status = stopped.status
    if jobs:
        print_results(jobs)
        status = status or int(any(job.state in ENDED_BADLY for job in jobs))
    return status


def train(config: Root, typed: Sequence[str], folder: Path) -> dict[str, Any] | None:
    """One run from config to `summary.json`, which is returned; None after a dry run.

    Nothing is written before config and data are known to be good. Raises `UserError` where they are not.
    """
    import torch

    from tfx.commands.teacher import make_teachers
    from tfx.data.prepare import prepare_data
    from tfx.evaluation.metrics import check_metrics
    from tfx.model.architecture import check_model
    from tfx.model.device import choose_device
    from tfx.techniques.stack import Stack

    console = RunConsole()
    check_metrics(config.dataset.metrics)
    check_model(config.model)
    device = choose_device(config.trainer.device)
    if config.trainer.threads is not None:
        torch.set_num_threads(config.trainer.threads)
    if config.trainer.deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
        torch.use_deterministic_algorithms(True)
    if config.trainer.tensorboard:
        _require_tensorboard()
    if RunDirectory(folder).config.exists():
        RunDirectory.create(folder)  # says that it is not overwritten
    stack = Stack.from_config(config)
    if config.reference is not None:
        model_file(Path(config.reference))  # says before any training that it is not there
    teachers = {} if config.dry_run else make_teachers(config, stack, device, console)
    transform = stack.prepare_data if stack.order["prepare_data"] and not config.dry_run else None
    origin = _origin(config)
    context = config.model.context if origin is None else origin.model.architecture.context
    tokenizer = None if origin is None else origin.tokenizer
    data = prepare_data(config.dataset, context, tokenizer, transform)
    stack.data_prepared(teachers, data, device)
    model = _build(config, data, device, origin)
    console.header(_header(config, data, model, device, folder, stack))
    if config.dry_run:
        console.close()
        return None
    run = RunDirectory.create(folder)
    with locked(folder):
        RunDirectory.create(folder)  # another process may have begun and ended there meanwhile
        return _Run(config, typed, run, console, data, model, device, stack, teachers).execute()


class _Run:
    """One run with its directory open: whatever happens now leaves a `summary.json`."""

    def __init__(
        self,
        config: Root,
        typed: Sequence[str],
        run: RunDirectory,
        console: RunConsole,
        data: PreparedData,
        model: Transformer,
        device: torch.device,
        stack: Stack,
        teachers: dict[str, Teacher],
    ) -> None:
        self.config, self.typed, self.run, self.console = config, typed, run, console
        from tfx.commands.measure import Measurer

        self.stack, self.teachers = stack, teachers
        self.data, self.model, self.device = data, model, device
        self.measurer = Measurer(config, data, device, run, console)
        self.facts: dict[str, Any] = {
            "format_version": 1,
            "task": data.task,
            "model": config.model.name,
            "dataset": config.dataset.name,
            "techniques": stack.names,
            "plan": stack.plan(),
            "seed": config.seed,
            "primary_metric": config.dataset.metrics[0] if config.dataset.metrics else "loss",
        }

    def execute(self) -> dict[str, Any]:
        """Trains, compresses and evaluates; writes the summary with its status however that ends."""
        try:
            self.console.open_log(self.run.log)
            self._write_inputs()
            reference = self._reference()
            if reference is not None:
                self.measurer.measure_reference(*reference)
            dense_bytes = self.measurer.dense_bytes(self.model)
            training = self._train()
            summary = self._evaluate(training, self._compress(training), dense_bytes)
            write_json(self.run.summary, summary)
            self._report()
            self.console.result(closing_table(summary))
            self.console.result(f"run: {self.run.path}")
            return summary
        except BaseException as error:
            interrupted = isinstance(error, KeyboardInterrupt)
            status = "interrupted" if interrupted else "failed"
            message = str(error) or "stopped by the user" if interrupted else f"{type(error).__name__}: {error}"
            self.console.failure(error)
            write_json(self.run.summary, {"status": status, "error": message, **self.facts})
            self.console.note(f"{status}: {' '.join(message.split())} (see {self.run.log})")
            if isinstance(error, Exception) and not isinstance(error, UserError):
                raise _ReportedError from error
            raise
        finally:
            self.console.close()

    def _reference(self) -> tuple[Path, str] | None:
        """The dense model that differences are taken against, and what it is to this run."""
        if self.config.reference is not None:
            return Path(self.config.reference).expanduser(), "reference"
        if self.config.init_from is not None:
            return Path(self.config.init_from).expanduser(), "init_from"
        return next(((teacher.path, "teacher") for teacher in self.teachers.values()), None)

    def _report(self) -> None:
        """Writes the page. The result is there already: a page that cannot be made is a note, not a failed run."""
        from tfx.commands.report import report

        try:
            report([self.run.path], self.run.report)
        except Exception as error:
            self.console.failure(error)
            self.console.note(f"no {self.run.report.name}: {type(error).__name__}: {error}")

    def _write_inputs(self) -> None:
        from omegaconf import OmegaConf

        from tfx.config.compose import to_yaml
        from tfx.run.environment import describe_environment

        write_text(self.run.config, to_yaml(self.config))
        write_text(self.run.overrides, OmegaConf.to_yaml(OmegaConf.create(list(self.typed))))
        write_text(self.run.tokenizer, self.data.tokenizer.to_json())
        fingerprints = {"data": self.data.fingerprint, "tokenizer": self.data.tokenizer.fingerprint}
        fingerprints |= {f"teacher of {name}": teacher.sha256 for name, teacher in self.teachers.items()}
        write_json(self.run.environment, describe_environment(self.device, fingerprints))

    def _train(self) -> TrainingResult:
        from tfx.compression import checkpoint
        from tfx.run.metrics import MetricsLog
        from tfx.training.loop import Trainer

        events = self.run.path / "tensorboard" if self.config.trainer.tensorboard else None
        metrics = MetricsLog(self.run.metrics, events)
        console, measurer, model = self.console, self.measurer, self.model

        class Recorder:
            """Every row goes to metrics.jsonl and to the console."""

            def stepped(self, row: dict[str, Any], **place: Any) -> None:
                metrics.write("train", **place, **row)
                console.stepped(row, **place)

            def validated(self, row: dict[str, Any], **place: Any) -> None:
                metrics.write("valid", **place, **row)
                console.validated(row, **place)

            def compressing(self, seconds: float) -> None:
                console.training_ended()
                measurer.measure_model("trained", model, seconds)
                console.training_started()

        def keep(name: str) -> None:
            self.run.state.mkdir(exist_ok=True)
            file = self.run.state / f"{name}.safetensors"
            checkpoint.save(file, self.model, self.data.tokenizer, self.config.evaluation)

        try:
            console.training_started()
            return Trainer(self.config, self.model, self.data, self.device, Recorder(), self.stack).train(keep)
        finally:
            console.training_ended()
            metrics.close()

    def _compress(self, training: TrainingResult) -> Path:
        """Lets the stack have its last word, and writes the model: as plain tensors, and compressed where it is.

        Returns the final file. Each technique that acts on weights leaves a row of ``stages``.
        """
        from tfx.compression import checkpoint
        from tfx.techniques.calibration import Calibration

        written = None
        start = time.perf_counter()
        for technique in self.stack.finish(self.model, Calibration(self.model, self._calibration_batches)):
            written = self.measurer.measure_compressed(
                technique.name, self.model, self.stack, time.perf_counter() - start
            )
            start = time.perf_counter()
        checkpoint.save(self.run.model, self.model, self.data.tokenizer, self.config.evaluation)
        if written is None:
            self.measurer.measure_dense("trained", self.run.model, training.seconds)
            return self.run.model
        written.rename(self.run.compressed)
        return self.run.compressed

    def _calibration_batches(self, count: int) -> list[Batch]:
        """A slice of the training data, by the run's seed."""
        from tfx.data.batching import training_batches

        endless = training_batches(
            self.data.splits["train"],
            self.data.tokenizer,
            batch_tokens=self.config.dataset.batch_tokens,
            context=self.model.architecture.context,
            seed=derive_seed(self.config.seed, "calibration"),
        )
        return [batch.to(self.device) for batch in islice(endless, count)]

    def _evaluate(self, training: TrainingResult, file: Path, dense_bytes: int) -> dict[str, Any]:
        """Measures what is read back from the final file."""
        from tfx.compression import checkpoint
        from tfx.evaluation.attention import record_attention
        from tfx.run.metrics import MetricsLog

        data, measurer = self.data, self.measurer
        evidence = self.stack.evidence()
        start = time.perf_counter()
        loaded = checkpoint.load(file, str(self.device))
        bytes_ = checkpoint.read_header(file).bytes
        # The last stage was measured on this very file.
        measurer.stages.append({**measurer.stages[-1], "name": "file"})
        valid = measurer.stages[-1]["valid"]
        test = measurer.quality(loaded, data.test_split)
        measurer.measure_inference(loaded, self.run.model)
        measurer.stages[-1]["seconds"] = time.perf_counter() - start
        write_json_lines(self.run.predictions, test.predictions)
        write_json(self.run.tensors, checkpoint.tensor_rows(checkpoint.load(file, kernels=False)))
        if count := self.config.evaluation.attention_maps:
            inputs = _attended(test, data, count)
            write_json(self.run.attention, record_attention(loaded.model, loaded.tokenizer, inputs))
        metrics = MetricsLog(self.run.metrics)
        for name, values in {"valid": valid, data.test_split: test.metrics}.items():
            row: dict[str, Any] = {"seconds": training.seconds, "final": True, **values}
            metrics.write(name, step=training.steps, tokens=training.tokens, **row)
        metrics.close()
        return {
            "status": "completed",
            **self.facts,
            "test": test.metrics,
            "test_split": data.test_split,
            "valid": valid,
            "signatures": test.signatures,
            "reference": measurer.reference,
            "stages": measurer.stages,
            "bytes": {
                "dense_fp32": dense_bytes,
                "file": bytes_.file,
                "weights": bytes_.weights,
                "header": bytes_.header,
                "tokenizer": bytes_.tokenizer,
                "ratio": dense_bytes / (bytes_.weights + bytes_.header),
            },
            "parameters": measurer.stages[-1]["parameters"],
            "train": training.to_dict()
            | {
                "teacher_seconds": sum(teacher.seconds for teacher in self.teachers.values()),
                "teacher_tokens": sum(teacher.tokens for teacher in self.teachers.values()),
                "teacher_flops": sum(teacher.flops for teacher in self.teachers.values()),
            },
            "inference": measurer.inference,
            "data": {"notes": data.notes, **{name: len(split) for name, split in data.splits.items()}},
            "quality_drops": measurer.drops,
            "evidence": evidence,
        }


# --- pieces -----------------------------------------------------------------------------------------


def _origin(config: Root) -> LoadedModel | None:
    """The model that ``init_from`` names. Raises `UserError` where it is for another task than the data."""
    from tfx.compression import checkpoint

    if config.init_from is None:
        return None
    loaded = checkpoint.load(Path(config.init_from).expanduser(), kernels=False)
    family = loaded.model.architecture.family
    if family != config.dataset.task:
        raise UserError(
            f"init_from={config.init_from} is a model for {family}, and dataset '{config.dataset.name}' is for "
            f"{config.dataset.task}: name another with dataset=…"
        )
    return loaded


def _build(config: Root, data: PreparedData, device: torch.device, origin: LoadedModel | None) -> Transformer:
    from tfx.model.architecture import Architecture
    from tfx.model.transformer import Transformer, initialise

    if origin is not None:
        model = Transformer(origin.model.architecture, config.model)
        model.load_state_dict(origin.model.state_dict())
        return model.to(device)
    architecture = Architecture.from_config(config.model, data.tokenizer.vocab_size)
    model = Transformer(architecture, config.model)
    initialise(model, config.seed)
    return model.to(device)


def _require_tensorboard() -> None:
    try:
        import torch.utils.tensorboard  # noqa: F401
    except ImportError:
        raise UserError("trainer.tensorboard needs an extra: pip install 'tfx[tensorboard]'") from None


def _header(
    config: Root, data: PreparedData, model: Transformer, device: torch.device, folder: Path, stack: Stack
) -> list[tuple[str, str]]:
    from tfx.model.device import choose_precision

    parameters = sum(parameter.numel() for parameter in model.parameters())
    embeddings = sum(p.numel() for name, p in model.named_parameters() if "embedding" in name or "output" in name)
    unit = "pairs" if data.task == "seq2seq" else "tokens"
    splits = ", ".join(f"{name} {len(split):,}" for name, split in data.splits.items())
    if "test" not in data.splits:
        splits += " (no test split: the result is measured on valid)"
    budget = config.trainer.budget
    length = next(
        f"{value:,g} {name}"
        for name, value in (("steps", budget.steps), ("tokens", budget.tokens), ("seconds", budget.seconds))
        if value is not None
    )
    precision = choose_precision(config.trainer.precision, device).name
    # Weights, gradients and two moments in fp32; an average doubles the weights.
    copies = 4 + (config.trainer.averaging.kind != "none")
    rows = [
        ("data", f"{config.dataset.name}: {splits} {unit}"),
        ("tokenizer", f"{config.dataset.tokenizer.kind}, {data.tokenizer.vocab_size:,} entries"),
        (
            "model",
            f"{config.model.name}: {parameters:,} parameters ({embeddings / parameters:.0%} embeddings), "
            f"about {size(4 * copies * parameters)} with gradients and optimizer, activations apart",
        ),
        (
            "training",
            f"{length}, {config.dataset.batch_tokens * config.trainer.accumulation:,} tokens a step, "
            f"{config.optimizer.name}, {config.schedule.name}, seed {config.seed}",
        ),
        ("device", f"{device}, {precision}"),
        *(_plan_rows(stack, model) or [("stack", "no technique")]),
        ("run", str(folder)),
    ]
    return rows + [("note", note) for note in data.notes]


def _attended(test: Quality, data: PreparedData, count: int) -> list[tuple[str | None, str]]:
    """Inputs whose attention is kept: the first sources with what the model made of them, or pieces of the text."""
    if data.task == "seq2seq":
        return [(row["source"], row["hypothesis"]) for row in test.predictions[:count]]
    tokens = data.splits[data.test_split].tokens
    return [(None, data.tokenizer.decode(tokens[start : start + 24].tolist())) for start in range(0, 24 * count, 24)]


def _plan_rows(stack: Stack, model: Transformer) -> list[tuple[str, str]]:
    acts = [
        ("stack", f"{row['phase']} {row['hook']}: {row['technique']}, {row['start']:.0%} to {row['end']:.0%}")
        for row in stack.plan()
    ]
    return acts + stack.plan_for(model)


def print_help() -> None:
    """Prints the groups, their choices, and every setting with its default, type, range and paper."""
    from rich.console import Console
    from rich.table import Table

    console = Console(highlight=False)
    console.print("usage: tfx train [group=choice …] [key=value …] [-m] [Hydra's flags]\n")
    console.print("Trains, evaluates and writes a run directory. `-m` sweeps over comma-separated values.")
    console.print("`dry_run=true` checks and prints the plan; `--config-dir DIR` adds your own YAMLs;")
    console.print("`--cfg job` prints the composed config; `--hydra-help` lists Hydra's flags.\n")
    for group in describe.GROUPS:
        names = ", ".join(describe.choices(group)) or "(none)"
        console.print(f"[bold]{group}[/bold]: {names}", soft_wrap=True)
    console.print()
    table = Table(box=None, pad_edge=False, show_header=True)
    for column in ("key", "default", "what it is"):
        table.add_column(column, overflow="fold")
    sweep = ((key, field) for key, field in describe.settings(LauncherConfig, "hydra.launcher.") if field.metadata)
    for key, field in (*describe.settings(), *sweep):
        table.add_row(key, str(describe.default_of(field)), describe.explain_field(field))
    console.print(table)
