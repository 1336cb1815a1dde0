"""Measures a run's models on their files, read back from disk."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from tfx.compression import checkpoint
from tfx.config.schema import Root
from tfx.config.task_facts import TASKS
from tfx.errors import UserError
from tfx.evaluation.quality import Quality, measure_quality
from tfx.evaluation.speed import Candidate, measure_speed
from tfx.exchange.importing import local_file
from tfx.model.early_exit import logits_of_exits
from tfx.model.transformer import Transformer, run_batch
from tfx.processes.group import ALONE, Group
from tfx.record.directory import RunDirectory
from tfx.record.files import sha256
from tfx.record.metric_vocabulary import higher_is_better
from tfx.record.summary import FILE, REFERENCE, Reference, Speed, Stage
from tfx.system.signals import raise_if_signalled
from tfx.tasks.batches import scoring_batches
from tfx.tasks.prepare import PreparedData, prepare_data
from tfx.terminal.console import RunConsole, number

if TYPE_CHECKING:
    from tfx.model.architecture import Architecture
    from tfx.model.batch import Batch
    from tfx.techniques.stack import Stack


class BrokenInvariantError(Exception):
    """The model after a technique differs from its file, or from what the technique promised."""


class Measurer:
    """Writes models of one run to files, reads them back and measures them.

    ``stages`` collects the rows of `summary.json`, in the order in which they were measured.
    """

    def __init__(
        self,
        config: Root,
        data: PreparedData,
        device: torch.device,
        run: RunDirectory,
        console: RunConsole,
        group: Group = ALONE,
    ) -> None:
        """The first process of a ``group`` measures; the others `help` it wherever it is `helped`."""
        self.config, self.data, self.device, self.run, self.console = config, data, device, run, console
        self.group = group
        self.primary = config.dataset.metrics[0] if config.dataset.metrics else "loss"
        self.stages: list[Stage] = []
        self.reference: Reference | None = None
        self.inference: dict[str, Speed] = {}
        self.drops: list[str] = []

    def state_dict(self) -> dict[str, Any]:
        """The measurements from before and during training."""
        return {
            "stages": [asdict(stage) for stage in self.stages],
            "reference": None if self.reference is None else asdict(self.reference),
            "drops": self.drops,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """The inverse of `state_dict`."""
        self.stages = [Stage(**row) for row in state["stages"]]
        self.reference = None if state["reference"] is None else Reference(**state["reference"])
        self.drops = list(state["drops"])

    # --- pieces ---------------------------------------------------------------------------------------

    def quality(self, loaded: checkpoint.LoadedModel, split: str, data: PreparedData | None = None) -> Quality:
        """Loss and text metrics of a model on a split; on validation data at most ``evaluation.decode_valid`` rows.

        ``data`` is given for a model with another tokenizer or a smaller context.
        """
        self.group.first((str(loaded.path), split))
        return self._quality(loaded, split, data or self.data)

    @contextmanager
    def helped(self) -> Iterator[None]:
        """Inside, the other processes take their share of each `quality`: they are in `help`."""
        yield
        self.group.first(None)

    def help(self) -> None:
        """Takes this process's share of the first one's `quality`, until that needs no more help."""
        while (work := self.group.first(None)) is not None:
            file, split = work
            loaded = checkpoint.load(Path(file), str(self.device))
            self._quality(loaded, split, self._data_for(loaded, file)[0])

    def _quality(self, loaded: checkpoint.LoadedModel, split: str, data: PreparedData) -> Quality:
        config = self.config
        self.console.training_started()
        quality = measure_quality(
            loaded.model,
            data.splits[split],
            loaded.tokenizer,
            config.evaluation,
            config.dataset.metrics,
            seed=config.seed,
            most_decoded=config.evaluation.decode_valid if split == "valid" and "test" in data.splits else None,
            progress=partial(self._decoded, f"decoding {split}"),
            group=self.group,
        )
        self.console.training_ended()
        return quality

    def _decoded(self, what: str, done: int, total: int) -> None:
        self.console.decoding(what, done, total)
        raise_if_signalled()

    def speeds(self, **models: tuple[checkpoint.LoadedModel, PreparedData]) -> dict[str, Speed]:
        """Latency, throughput and memory of models, measured in turn, each on the test inputs of its own data."""
        split = self.data.test_split
        candidates = {
            name: Candidate(loaded.model, data.splits[split], loaded.tokenizer)
            for name, (loaded, data) in models.items()
        }
        return measure_speed(candidates, self.config.evaluation)

    # --- the reference --------------------------------------------------------------------------------

    def measure_reference(self, path: Path, name: str) -> None:
        """Measures the dense model that results are compared with: quality on this run's data, bytes and speed."""
        start = time.perf_counter()
        file = local_file(path)
        loaded = checkpoint.load(file, str(self.device))
        if loaded.model.architecture.family in TASKS[self.data.task].starts_from:
            return  # it has no outputs yet
        if loaded.model.architecture.family != self.data.task:
            raise UserError(f"reference {path} is for another task than dataset '{self.data.name}'")
        is_other = loaded.tokenizer.fingerprint != self.data.tokenizer.fingerprint
        # A run with a part of the reference's tokens splits a text the same way, unless it needs a removed one.
        is_part = loaded.tokenizer.fingerprint == self.data.reduced_from
        if is_other and not is_part and self.primary in ("loss", "perplexity"):
            raise UserError(
                f"reference {path} has another tokenizer than the run, so their {self.primary} is over different "
                "tokens: give the run the reference's (dataset.tokenizer.path=REFERENCE_RUN/tokenizer.json)"
            )
        data, notes = self._data_for(loaded, f"{name} {path}")
        if notes:
            self.console.note(f"{name} {path} is measured with its own tokens or context: {'; '.join(notes)}")
        bytes_ = checkpoint.read_header(file).bytes
        valid = self.quality(loaded, "valid", data).metrics
        test = valid if data.test_split == "valid" else self.quality(loaded, "test", data).metrics
        self.reference = Reference(
            name=name,
            path=str(path),
            sha256=sha256(file),
            valid=valid,
            test=test,
            bytes=bytes_.weights + bytes_.header,
            parameters=count_parameters(loaded.model)[0],
            train=(RunDirectory(path).training_cost() if path.is_dir() else {}) or None,
        )
        # Its speed is measured at the end, in turn with that of the file.
        self._add(REFERENCE, loaded, valid, bytes_.weights + bytes_.header, time.perf_counter() - start, latency=0.0)

    def _data_for(self, loaded: checkpoint.LoadedModel, what: str) -> tuple[PreparedData, list[str]]:
        """The run's data in the tokens and the context of another model, and notes on what that leaves out."""
        same = loaded.tokenizer.fingerprint == self.data.tokenizer.fingerprint
        if same and _longest(self.data) <= loaded.model.architecture.context:
            return self.data, []
        try:
            architecture = loaded.model.architecture
            data = prepare_data(
                self.config.dataset, architecture.context, loaded.tokenizer, outputs=architecture.outputs
            )
        except UserError as error:
            raise UserError(f"{what} cannot be measured on the run's data: {error}") from error
        return data, [note for note in data.notes if note not in self.data.notes and not note.startswith("train:")]

    def measure_inference(self, loaded: checkpoint.LoadedModel, plain: Path) -> None:
        """Speed and memory of the final file, of its model as plain tensors in fp32 and bf16, and of the reference.

        They take turns, so that a slow phase of the machine affects all of them.
        """
        reduced = checkpoint.load(plain, str(self.device))
        reduced.model.bfloat16()
        models = {"file": (loaded, self.data), "plain_bf16": (reduced, self.data)}
        if loaded.path != plain:
            models["plain_fp32"] = (checkpoint.load(plain, str(self.device)), self.data)
        if self.reference is not None:
            path = Path(self.reference.path)
            other = checkpoint.load(local_file(path), str(self.device))
            models["reference"] = (other, self._data_for(other, f"{self.reference.name} {path}")[0])
        self.inference = self.speeds(**models)
        self.inference.setdefault("plain_fp32", self.inference["file"])
        for row in self.stages:
            if row.name in (REFERENCE, FILE) or row is self.stages[-2]:
                # The stage before it is the same file.
                measured = "reference" if row.name == REFERENCE else "file"
                row.latency_ms = self.inference[measured].latency_ms["p50"]
            elif row.parameters == self.stages[-1].parameters:
                # The same shapes as plain tensors, timed in turn with the others: alone, it met another load.
                row.latency_ms = self.inference["plain_fp32"].latency_ms["p50"]

    # --- stages ---------------------------------------------------------------------------------------

    def dense_bytes(self, architecture: Architecture) -> int:
        """Bytes of weights and header of a model as a plain fp32 file, which is written, measured and removed."""
        with torch.device("meta"):
            shapes = Transformer(architecture).state_dict()
        zeros = {name: torch.zeros(shape.shape) for name, shape in shapes.items()}
        with self._temporary(Transformer.holding(architecture, zeros)) as file:
            account = checkpoint.read_header(file).bytes
        return account.weights + account.header

    def measure_model(self, name: str, model: Transformer, seconds: float) -> None:
        """Measures a stage whose weights are plain tensors; its file is not kept."""
        with self._temporary(model) as file:
            self.measure_dense(name, file, seconds)

    def measure_dense(self, name: str, file: Path, seconds: float) -> None:
        """Measures a stage whose weights are the plain tensors of a file."""
        loaded = checkpoint.load(file, str(self.device))
        account = checkpoint.read_header(file).bytes
        self._add(name, loaded, self.quality(loaded, "valid").metrics, account.weights + account.header, seconds)

    @contextmanager
    def _temporary(self, model: Transformer) -> Iterator[Path]:
        file = self.run.stage
        try:
            checkpoint.save(file, model, self.data.tokenizer, self.config.evaluation)
            yield file
        finally:
            file.unlink(missing_ok=True)

    def measure_compressed(self, name: str, model: Transformer, stack: Stack, seconds: float) -> Path:
        """Writes the compressed file of a stage and measures it; the file of the last stage is the final one.

        Raises `BrokenInvariantError` if the file is larger than that of the stage before, if a pruned weight is no
        longer zero, if weights that the architecture ties are not one tensor, or if the model read back from the file
        differs from the one in memory in a single bit of its hidden states.
        """
        file = self.run.stage
        try:
            check_zeros(name, model, stack.masks)
            check_ties(name, model)
            checkpoint.save(file, model, self.data.tokenizer, self.config.evaluation, stack.storage())
            self._measure_compressed(name, model, stack, file, seconds)
        except BaseException:
            file.unlink(missing_ok=True)
            raise
        return file

    def _measure_compressed(self, name: str, model: Transformer, stack: Stack, file: Path, seconds: float) -> None:
        loaded = checkpoint.load(file, str(self.device))
        account = checkpoint.read_header(file).bytes
        size = account.weights + account.header
        before = next((row for row in reversed(self.stages) if row.name != REFERENCE), None)
        # Of several that removed parts while training, the first to finish shows the bytes of all.
        if before is not None and size > before.bytes:
            raise BrokenInvariantError(f"{name} made the file larger: {size:,} bytes after {before.bytes:,}")
        self._compare(name, model, stack, loaded.model)
        # Int8 kernels keep weights in their own format.
        weights = checkpoint.load(file, kernels=False).model if stack.storage().int8 else loaded.model
        check_zeros(f"{name}, read back from the file,", weights, stack.masks)
        valid = self.quality(loaded, "valid").metrics
        self._add(name, loaded, valid, size, seconds, counts=count_parameters(model))
        self._check_drop(name)

    @torch.inference_mode()
    def _compare(self, name: str, model: Transformer, stack: Stack, loaded: Transformer) -> None:
        ours = checkpoint.runnable(model, stack.storage())
        context = model.architecture.context
        split = self.data.splits["valid"]
        batches = scoring_batches(split, self.data.tokenizer, batch_tokens=1024, context=context)
        batch = next(iter(batches)).to(self.device)
        expected, found = (_logits(one, batch) for one in (ours, loaded))
        if not torch.equal(expected, found):
            worst = float((expected - found).abs().max())
            raise BrokenInvariantError(
                f"after {name} the model read back from the file differs from the one in memory: "
                f"logits differ by up to {worst:g}"
            )

    def _add(
        self,
        name: str,
        loaded: checkpoint.LoadedModel,
        valid: dict[str, float],
        size: int,
        seconds: float,
        latency: float | None = None,
        counts: tuple[int, int] | None = None,
    ) -> None:
        parameters, nonzero = counts or count_parameters(loaded.model)
        if latency is None:
            latency = self.speeds(stage=(loaded, self.data))["stage"].latency_ms["p50"]
        self.stages.append(Stage(name, valid, size, parameters, nonzero, seconds, latency))

    def _check_drop(self, name: str) -> None:
        allowed = self.config.max_quality_drop
        base = self.stages[0]
        if allowed is None or base.name == name:
            return
        sign = 1.0 if higher_is_better(self.primary) else -1.0
        drop = sign * (base.valid[self.primary] - self.stages[-1].valid[self.primary])
        if drop <= allowed:
            return
        message = (
            f"{name} lost {number(drop)} of {self.primary} on validation data against '{base.name}', "
            f"and max_quality_drop={allowed:g}"
        )
        if self.config.on_quality_drop == "stop":
            raise BrokenInvariantError(message)
        self.drops.append(message)
        self.console.note(message)


def _logits(model: Transformer, batch: Batch) -> Tensor:
    """What a model says, with its exits."""
    if model.architecture.exits:
        return logits_of_exits(model, batch)
    return model.project(run_batch(model, batch))


def check_zeros(name: str, model: Transformer, masks: Mapping[str, Tensor]) -> None:
    """Raises `BrokenInvariantError` if a pruned weight (False in its mask) is not zero."""
    for tensor, parameter in model.named_parameters():
        mask = masks.get(tensor)
        if mask is not None and (revived := int((parameter[~mask.to(parameter.device)] != 0).sum())):
            raise BrokenInvariantError(f"after {name} {revived:,} pruned weights of '{tensor}' are no longer zero")


def check_ties(name: str, model: Transformer) -> None:
    """Raises `BrokenInvariantError` if the model stores a weight separately that its architecture ties to another."""
    with torch.device("meta"):
        _, expected = checkpoint.unique_tensors(Transformer(model.architecture))
    _, found = checkpoint.unique_tensors(model)
    for alias, stored in expected.items():
        if found.get(alias) != stored:
            raise BrokenInvariantError(f"after {name} '{alias}' is no longer tied to '{stored}'")


def count_parameters(model: Transformer) -> tuple[int, int]:
    """Number of all parameters, tied ones once, and of those that are not zero."""
    parameters = list(model.parameters())
    return sum(p.numel() for p in parameters), sum(int((p != 0).sum()) for p in parameters)


def _longest(data: PreparedData) -> int:
    """Positions of the longest input of the scored splits."""
    return max((split.longest for name, split in data.splits.items() if name != "train"), default=0)
