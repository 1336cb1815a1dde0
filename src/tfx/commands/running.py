"""One run from its config to its summary: what `train`, `resume` and `reproduce` have in common."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tfx.commands.closing import closing_table
from tfx.config.schema import Root
from tfx.errors import UserError
from tfx.run.console import RunConsole, size
from tfx.run.directory import SUMMARY_VERSION, RunDirectory, model_file
from tfx.run.files import read_json, write_json, write_json_lines, write_text
from tfx.run.lock import locked
from tfx.run.seeds import derive_seed
from tfx.run.signals import leaving_on_signals

if TYPE_CHECKING:
    import torch

    from tfx.commands.teacher import StandIn
    from tfx.compression.checkpoint import LoadedModel
    from tfx.data.batching import Batch
    from tfx.data.prepare import PreparedData
    from tfx.data.sources import Corpus, SourceFile
    from tfx.data.tokenizer import Tokenizer
    from tfx.evaluation.quality import Quality
    from tfx.model.transformer import Transformer
    from tfx.techniques.contract import Teacher
    from tfx.techniques.stack import Stack
    from tfx.training.loop import TrainingResult


# A model with more zeros than this was pruned.
_MANY_ZEROS = 0.02


class ReportedError(Exception):
    """A run failed, and its summary, its log and the user have been told."""


def status_of(work: Callable[[], dict[str, Any] | None]) -> tuple[int, dict[str, Any] | None]:
    """Runs ``work``, one of the functions below, and returns the exit status of its command and the summary."""
    try:
        with leaving_on_signals():
            return 0, work()
    except KeyboardInterrupt as error:
        return getattr(error, "status", 130), None
    except ReportedError:
        return 1, None


def train(config: Root, typed: Sequence[str], folder: Path, recorded: Sequence[float] = ()) -> dict[str, Any] | None:
    """A new run, from config to `summary.json`, which is returned; None after a dry run.

    ``recorded`` is the progress of each step of a run that is repeated (`Clock`). Raises `UserError`, and leaves
    nothing behind, where config or data are at fault.
    """
    console = RunConsole()
    if RunDirectory(folder).config.exists():
        RunDirectory.create(folder)  # says that it is not overwritten
    parts = Parts(config, console, folder)
    if config.dry_run:
        parts.prepare()
        parts.show()
        console.close()
        return None
    run = RunDirectory.create(folder)
    with locked(folder):
        RunDirectory.create(folder)  # another process may have begun and ended there meanwhile
        begun = _Run(config, typed, run, console, parts, recorded=recorded)
        try:
            return begun.execute()
        except UserError:
            if not begun.prepared:
                run.remove()
            raise


def resume(config: Root, typed: Sequence[str], run: RunDirectory, *, extends: bool = False) -> dict[str, Any]:
    """Goes on with the run of ``config`` from its newest whole state, or from the start where there is none.

    With ``extends`` the run is finished, and goes on with a longer budget: its result stays until there is another, and
    without a state `UserError` is raised. The caller holds the lock of the run directory.
    """
    from tfx.training.state import newest_state

    console = RunConsole()
    parts = Parts(config, console, run.path)
    state = newest_state(run.state, parts.device, console.note)
    if state is None and extends:
        raise UserError(
            f"{run.path} is finished and has no saved state any more: it cannot go on, init_from={run.path} can"
        )
    if state is None:
        console.note(f"{run.path} has no saved state: the run starts over")
        run.clear()
    else:
        run.tidy()
        console.note(f"going on after step {state['training']['clock']['steps']:,}")
    return _Run(config, typed, run, console, parts, state=state, extends=extends).execute()


class Parts:
    """What a run is made of: device and stack at once, then teachers, data and model."""

    def __init__(self, config: Root, console: RunConsole, folder: Path) -> None:
        """Checks all that needs no data; raises `UserError`."""
        import torch

        from tfx.commands.teacher import check_need
        from tfx.evaluation.metrics import check_metrics
        from tfx.model.architecture import check_model
        from tfx.model.device import choose_device
        from tfx.techniques.stack import Stack

        self.config, self.console, self.folder = config, console, folder
        self.teachers: dict[str, Teacher] = {}
        self.data: PreparedData
        self.model: Transformer
        check_metrics(config.dataset.metrics)
        check_model(config.model)
        self.device = choose_device(config.trainer.device)
        if config.trainer.threads is not None:
            # Some more than there are may repeat a run of another machine; each takes memory for its stack.
            most = 16 * (os.cpu_count() or 1)
            if config.trainer.threads > most:
                raise UserError(
                    f"trainer.threads={config.trainer.threads} is far more than this machine has: at most {most} here"
                )
            torch.set_num_threads(config.trainer.threads)
        if config.trainer.deterministic:
            os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
            torch.use_deterministic_algorithms(True)
        if config.trainer.tensorboard:
            _require_tensorboard()
        self.stack = Stack.from_config(config)
        if config.reference is not None:
            model_file(Path(config.reference))  # says before any training that it is not there
        for _, need in self.stack.teacher_needs():
            check_need(config, need)

    def prepare(self, stand_in: StandIn | None = None) -> None:
        """Makes the rest, in a dry run without the teachers.

        With ``stand_in`` teachers that are yet to be trained are what it returns, once there are data, and no text is
        changed by them. Raises `UserError` for data or settings that do not fit.
        """
        from tfx.commands.teacher import make_teachers, stand_in_teachers
        from tfx.data.prepare import prepare_data
        from tfx.evaluation.quality import quality_notes

        config, stack = self.config, self.stack
        is_real = not config.dry_run and stand_in is None
        if is_real:
            self.teachers = make_teachers(config, stack, self.device, self.console)
        transform = stack.prepare_data if stack.order["prepare_data"] and is_real else None
        origin, self.data = read_inputs(config, transform)
        if stand_in is not None:
            self.teachers = stand_in_teachers(config, stack, self.data, self.device, stand_in)
        self.model = build_model(config, self.data, self.device, origin)
        # Before anything is removed: what the size of the final file is compared with.
        self.dense = self.model.architecture
        reduced = stack.reduce_tokenizer(self.data)
        if reduced is not None:
            self._reduce(*reduced)
            whole = self.data.tokenizer.fingerprint
            self.data = prepare_data(config.dataset, self.dense.context, reduced[0], transform)
            self.data.reduced_from = whole
        self.data.notes += quality_notes(self.data, config.dataset.metrics)
        stack.data_prepared(self.teachers, self.data, self.device)

    def show(self) -> None:
        """The header, and what training would give up of the model that it starts from."""
        self.console.header(_header(self.config, self.data, self.model, self.device, self.folder, self.stack))
        if (lost := _zeros_given_up(self.config, self.model, self.stack)) is not None:
            self.console.note(lost)

    def _reduce(self, tokenizer: Tokenizer, ids: list[int]) -> None:
        """Leaves these tokens alone to the model, and to teachers of the same tokenizer."""
        from tfx.model.rewiring import keep_tokens

        keep_tokens(self.model, ids).apply(self.model)
        for teacher in self.teachers.values():
            if teacher.tokenizer_fingerprint == self.data.tokenizer.fingerprint:
                keep_tokens(teacher.model, ids).apply(teacher.model)
                teacher.tokenizer, teacher.tokenizer_fingerprint = tokenizer, tokenizer.fingerprint


class _Run:
    """One run with its directory open: whatever happens now leaves a `summary.json`."""

    def __init__(
        self,
        config: Root,
        typed: Sequence[str],
        run: RunDirectory,
        console: RunConsole,
        parts: Parts,
        state: dict[str, Any] | None = None,
        recorded: Sequence[float] = (),
        extends: bool = False,
    ) -> None:
        self.config, self.typed, self.run, self.console = config, typed, run, console
        self.parts, self.state, self.recorded, self.extends = parts, state, recorded, extends
        self.device, self.stack = parts.device, parts.stack
        self.prepared = False
        self.facts: dict[str, Any] = {
            "format_version": SUMMARY_VERSION,
            "task": config.dataset.task,
            "name": config.name,
            "tags": config.tags,
            "model": config.model.name,
            "dataset": config.dataset.name,
            "techniques": self.stack.names,
            "plan": self.stack.plan(),
            "seed": config.seed,
            "primary_metric": config.dataset.metrics[0] if config.dataset.metrics else "loss",
        }
        # The steps after which the run was taken up again.
        self.resumed: list[int] = []
        if state is not None:
            self.resumed = [*state["resumed"], state["training"]["clock"]["steps"]]

    def execute(self) -> dict[str, Any]:
        """Trains, compresses and evaluates; writes the summary with its status however that ends."""
        try:
            # First of all, so that a run that is killed while a teacher trains can be resumed.
            self._write_config()
            self.console.open_log(self.run.log)
            self._prepare()
            dense_bytes = self.measurer.dense_bytes(self.parts.dense)
            training = self._train()
            summary = self._evaluate(training, self._compress(training), dense_bytes)
            write_json(self.run.summary, summary)
        except BaseException as error:
            self._failed(error)
            if isinstance(error, Exception) and not isinstance(error, UserError):
                raise ReportedError from error
            raise
        else:
            # The result stands: what fails from here on is no failure of the run.
            self._report()
            self._show(summary)
            return summary
        finally:
            self.console.close()

    def _show(self, summary: dict[str, Any]) -> None:
        try:
            self.console.result(closing_table(summary))
            self.console.result(f"run: {self.run.path}")
        except Exception as error:
            self.console.failure(error)
            self.console.note(f"the closing table cannot be shown: {type(error).__name__}: {error}")

    def _failed(self, error: BaseException) -> None:
        """Tells summary, log and user."""
        interrupted = isinstance(error, KeyboardInterrupt)
        status = "interrupted" if interrupted else "failed"
        if isinstance(error, OSError) and error.filename and error.strerror:
            message = f"{error.filename} cannot be written or read: {error.strerror}"
        else:
            message = str(error) or "stopped by the user" if interrupted else f"{type(error).__name__}: {error}"
        self.console.failure(error)
        try:
            # A run that went on from its end still has the result of then, and the files of it.
            if self.extends:
                self.console.note(f"{self.run.summary} is of the run as it was finished before")
            else:
                write_json(self.run.summary, {"status": status, "error": message, **self.facts})
        except OSError as trouble:
            self.console.note(f"{self.run.summary} cannot be written: {trouble.strerror}")
        if isinstance(error, UserError):
            return  # printed by the command line
        advice = f"go on with `tfx resume {self.run.path}`" if interrupted else f"see {self.run.log}"
        self.console.note(f"{status}: {' '.join(message.split())} ({advice})")

    def _prepare(self) -> None:
        from tfx.commands.measure import Measurer

        self.parts.prepare()
        self.parts.show()
        self.data, self.model, self.teachers = self.parts.data, self.parts.model, self.parts.teachers
        self.facts["task"] = self.data.task
        self._write_environment()
        self.measurer = Measurer(self.config, self.data, self.device, self.run, self.console)
        if self.state is not None:
            self.measurer.load_state_dict(self.state["measurer"])
        elif (reference := self._reference()) is not None:
            self.measurer.measure_reference(*reference)

    def _reference(self) -> tuple[Path, str] | None:
        """The dense model that differences are taken against, and what it is to this run."""
        if self.config.reference is not None:
            return Path(self.config.reference), "reference"
        if self.config.init_from is not None:
            return Path(self.config.init_from), "init_from"
        return next(((teacher.path, "teacher") for teacher in self.teachers.values()), None)

    def _report(self) -> None:
        """Writes the page. The result is there already: a page that cannot be made is a note, not a failed run."""
        from tfx.commands.report import report

        try:
            report([self.run.path], self.run.report)
        except Exception as error:
            self.console.failure(error)
            self.console.note(f"no {self.run.report.name}: {type(error).__name__}: {error}")

    def _write_config(self) -> None:
        from omegaconf import OmegaConf

        from tfx.config.compose import to_yaml

        write_text(self.run.overrides, OmegaConf.to_yaml(OmegaConf.create(list(self.typed))))
        write_text(self.run.config, to_yaml(self.config))

    def _write_environment(self) -> None:
        from tfx.run.environment import describe_environment, environment_differences

        fingerprints = {"data": self.data.fingerprint, "corpus": self.data.corpus}
        fingerprints["tokenizer"] = self.data.tokenizer.fingerprint
        fingerprints |= {f"teacher of {name}": teacher.sha256 for name, teacher in self.teachers.items()}
        environment = describe_environment(self.device, fingerprints)
        if self.state is not None and self.run.environment.is_file():
            differences = environment_differences(read_json(self.run.environment), environment)
            for name, (before, now) in differences.items():
                self.console.note(
                    f"{name} was {before} and is {now}: the result may differ from an uninterrupted run's"
                )
            if any(name.startswith("fingerprints.") for name in differences):
                raise UserError(f"the data, tokenizer or teacher of {self.run.path} changed since: it cannot go on")
        write_text(self.run.tokenizer, self.data.tokenizer.to_json())
        write_json(self.run.environment, environment)

    def _train(self) -> TrainingResult:
        from tfx.compression import checkpoint
        from tfx.run.metrics import MetricsLog
        from tfx.training.loop import Observer, Trainer
        from tfx.training.state import StateSaver

        events = self.run.path / "tensorboard" if self.config.trainer.tensorboard else None
        metrics = MetricsLog(self.run.metrics, events, None if self.state is None else self.state["metrics"])
        saver = StateSaver(self.run.state, self.config.trainer.save.keep)
        console, run = self.console, self

        class Recorder(Observer):
            """Every row goes to metrics.jsonl and to the console; weights and states go to files."""

            def stepped(self, row: dict[str, Any], **place: Any) -> None:
                metrics.write("train", **place, **row)
                console.stepped(row, **place)

            def validated(self, row: dict[str, Any], **place: Any) -> None:
                metrics.write("valid", **place, **row)
                console.validated(row, **place)

            def compressing(self, seconds: float) -> None:
                console.training_ended()
                run.measurer.measure_model("trained", run.model, seconds)
                console.training_started()

            def noted(self, message: str) -> None:
                console.note(message)

            def keep(self, name: str) -> None:
                run.run.state.mkdir(exist_ok=True)
                file = run.run.state / f"{name}.safetensors"
                checkpoint.save(file, run.model, run.data.tokenizer, run.config.evaluation)

            def save(self, step: int, state: dict[str, Any]) -> None:
                measured = run.measurer.state_dict()
                rest = {"measurer": measured, "metrics": metrics.place(), "resumed": run.resumed}
                saver.save(step, {"training": state, **rest})

        training = None if self.state is None else self.state["training"]
        trainer = Trainer(
            self.config, self.model, self.data, self.device, Recorder(), self.stack, training, self.recorded
        )
        self.prepared = True
        self.state = None  # its tensors are not needed any more
        try:
            console.training_started()
            result = trainer.train()
        finally:
            console.training_ended()
            metrics.close()
            saver.close()
        if trainer.clock.history:
            write_json(self.run.progress, trainer.clock.history)
        return result

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
                "teacher_seconds": sum(teacher.total_seconds for teacher in self.teachers.values()),
                "teacher_tokens": sum(teacher.tokens for teacher in self.teachers.values()),
                "teacher_flops": sum(teacher.total_flops for teacher in self.teachers.values()),
            },
            "inference": measurer.inference,
            "data": {
                "notes": data.notes,
                "files": {name: [asdict(file) for file in files] for name, files in data.files.items()},
                **{name: len(split) for name, split in data.splits.items()},
            },
            "quality_drops": measurer.drops,
            "evidence": evidence,
            "resumed": self.resumed,
        }


# --- pieces -----------------------------------------------------------------------------------------


def read_inputs(
    config: Root, transform: Callable[[Corpus], Corpus] | None = None
) -> tuple[LoadedModel | None, PreparedData]:
    """The model that the run starts from, where there is one, and the data in its tokens. Raises `UserError`."""
    from tfx.data.prepare import prepare_data

    origin = _origin(config)
    if origin is None:
        return None, prepare_data(config.dataset, config.model.context, None, transform)
    return origin, prepare_data(config.dataset, origin.model.architecture.context, origin.tokenizer, transform)


def _origin(config: Root) -> LoadedModel | None:
    """The model that ``init_from`` names. Raises `UserError` where it is for another task than the data."""
    from tfx.compression import checkpoint

    if config.init_from is None:
        return None
    loaded = checkpoint.load(Path(config.init_from), kernels=False)
    family = loaded.model.architecture.family
    if family != config.dataset.task:
        raise UserError(
            f"init_from={config.init_from} is a model for {family}, and dataset '{config.dataset.name}' is for "
            f"{config.dataset.task}: name another with dataset=…"
        )
    return loaded


def build_model(config: Root, data: PreparedData, device: torch.device, origin: LoadedModel | None) -> Transformer:
    """The model before its first step, on the device: that of ``origin``, else a new one by the config's seed."""
    import torch

    from tfx.model.architecture import Architecture
    from tfx.model.transformer import Transformer, check_fits, initialise

    if origin is not None:
        model = Transformer.holding(origin.model.architecture, origin.model.state_dict(), config.model)
        return model.train().to(device)
    architecture = Architecture.from_config(config.model, data.tokenizer.vocab_size)
    check_fits(architecture, device)
    if config.dry_run:  # its plan needs names and shapes alone
        with torch.device("meta"):
            return Transformer(architecture, config.model)
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
        *(("", f"{name}: {_files(files)}") for name, files in data.files.items()),
        ("tokenizer", f"{data.tokenizer.kind}, {data.tokenizer.vocab_size:,} entries"),
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


def _files(files: list[SourceFile]) -> str:
    """The files of a split with their rows, as many as a line can take."""
    shown = [file.file if file.rows is None else f"{file.file} ({file.rows:,} rows)" for file in files[:6]]
    return ", ".join(shown) + (f" and {len(files) - 6} more" if len(files) > 6 else "")


def _zeros_given_up(config: Root, model: Transformer, stack: Stack) -> str | None:
    """Says that training would fill the zeros of a pruned model; None where there are few, or something keeps them."""
    from tfx.techniques.zeros import zero_share

    budget = config.trainer.budget
    if config.init_from is None or 0 in (budget.steps, budget.tokens, budget.seconds) or stack.order["mask"]:
        return None
    share = zero_share(model)
    if share < _MANY_ZEROS:
        return None
    return (
        f"{share:.0%} of the weights of init_from={config.init_from} are zero, and training fills them: the file will "
        "be as large as that of a dense model; trainer.keep_zeros=true keeps them zero"
    )


def _attended(test: Quality, data: PreparedData, count: int) -> list[tuple[str | None, str]]:
    """Inputs whose attention is kept: the first sources with what the model made of them, or pieces of the text."""
    if data.task == "seq2seq":
        return [(row["source"], row["hypothesis"]) for row in test.predictions[:count]]
    tokens = data.splits[data.test_split].tokens
    return [(None, data.tokenizer.decode(tokens[start : start + 24].tolist())) for start in range(0, 24 * count, 24)]


def _plan_rows(stack: Stack, model: Transformer) -> list[tuple[str, str]]:
    acts = [("stack", f"{row['phase']} {row['hook']}: {row['technique']}, {row['when']}") for row in stack.plan()]
    return acts + stack.plan_for(model)
