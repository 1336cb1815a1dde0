"""The parts of a run: device and stack, which need no data, then teachers, data and model."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from tfx.config.schema import AUTO, Root
from tfx.config.task_facts import TASKS, facts_of
from tfx.errors import UserError
from tfx.processes.group import ALONE, Group
from tfx.run.tracking.contract import require
from tfx.system.malloc import keep_freed_memory
from tfx.system.processors import cores

if TYPE_CHECKING:
    import torch

    from tfx.compression.checkpoint import LoadedModel
    from tfx.data.corpus import Corpus
    from tfx.data.tokenizer import Tokenizer
    from tfx.model.architecture import Architecture
    from tfx.model.transformer import Transformer
    from tfx.tasks.prepare import PreparedData
    from tfx.techniques.contract import Teacher, Teachers
    from tfx.techniques.stack import Stack

    # Makes untrained stand-ins for the teachers of a stack, by technique, from the run's data.
    StandIns = Callable[[PreparedData], Teachers]


@dataclass(frozen=True)
class Parts:
    """What training needs. ``dense`` is the architecture before the stack removes anything from it."""

    config: Root
    device: torch.device
    stack: Stack
    teachers: Teachers
    data: PreparedData
    model: Transformer
    dense: Architecture
    group: Group = ALONE


class Setup:
    """The device and the stack of a run, checked before any data is read."""

    def __init__(self, config: Root, group: Group = ALONE) -> None:
        """Checks what can be checked without data, and applies process-wide settings; raises `UserError`."""
        import torch

        from tfx.evaluation.metrics import check_metrics
        from tfx.exchange.importing import local_file
        from tfx.model.architecture import check_model
        from tfx.model.compilation import missing_for_compiling
        from tfx.model.device import choose_device
        from tfx.run.teacher import check_need
        from tfx.techniques.stack import Stack
        from tfx.training.parallel import check_sharded

        self.config = config = _with_model_of_origin(config)
        check_metrics(config.dataset.metrics, config.dataset.task)
        if config.evaluation.engine != "torch":
            raise UserError(
                f"evaluation.engine={config.evaluation.engine} is for `tfx evaluate` and `tfx generate`: a run is "
                "scored by its own model, so leave it out"
            )
        check_model(config.model)
        self.group = group
        self.device = choose_device(config.trainer.device, group)
        if config.trainer.compile == "on" and (missing := missing_for_compiling(self.device)):
            raise UserError(
                f"trainer.compile=on needs {missing}, which this machine does not have: install it, or leave "
                "trainer.compile out"
            )
        if self.device.type == "cpu":
            keep_freed_memory()
        if config.trainer.threads is not None:
            # A few more threads than cores can repeat a run of another machine; but each takes memory for its stack.
            most = 16 * cores()
            if config.trainer.threads > most:
                raise UserError(
                    f"trainer.threads={config.trainer.threads} is far more than this machine has: at most {most} here"
                )
            torch.set_num_threads(config.trainer.threads)
        if config.trainer.deterministic:
            os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
        # Also off again: the process may have done another run before, as trials do. Only where it changes: setting it
        # loads torch's compiler, which takes more than a second.
        if torch.are_deterministic_algorithms_enabled() != config.trainer.deterministic:
            torch.use_deterministic_algorithms(config.trainer.deterministic)
            # It would also write NaN into all new memory, to show what reads it before it is written.
            torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
        require(config.tracking.to)
        self.stack = Stack.from_config(config)
        check_sharded(config, self.stack)
        _check_order(config, self.stack)
        _check_batch(config, group)
        if config.reference is not None:
            local_file(Path(config.reference))  # raises before any training if it does not exist
        for _, need in self.stack.teacher_needs():
            check_need(config, need)
        _check_quality_drop(config, self.stack)

    def prepare(self, teachers: Teachers | None = None, stand_ins: StandIns | None = None) -> Parts:
        """Reads the data and builds the model. ``teachers`` are those of the stack, by technique.

        Without teachers no technique changes a text: a dry run has none, and in a trial ``stand_ins`` makes some after
        the data is read. Raises `UserError` for data or settings that do not fit.
        """
        from tfx.evaluation.labels import check_label_metrics
        from tfx.evaluation.quality import quality_notes
        from tfx.model.early_exit import set_exits
        from tfx.tasks.prepare import prepare_data
        from tfx.training.validation import judged_by

        config, stack = self.config, self.stack
        transform = stack.prepare_data if stack.order["prepare_data"] and teachers is not None else None
        is_written = transform is not None or not stack.order["prepare_data"]
        if (
            not stack.reads_unlabelled or not is_written
        ):  # as an arm of an ablation, and where no teacher writes targets
            config = replace(config, dataset=replace(config.dataset, monolingual=None))
        origin, data = read_inputs(config, transform, with_monolingual=True)
        if teachers is None:
            teachers = {} if stand_ins is None else stand_ins(data)
        parts = self.group.size if config.trainer.parallel == "fsdp" else 1
        model = build_model(config, data, self.device, origin, parts)
        if model.architecture.exits and not stack.trains_exits:
            set_exits(model, ())
            data.notes.append(
                "the heads by which texts leave the model of init_from early would no longer fit, and are left out: "
                "+technique=early_exit keeps and trains them"
            )
        # Before anything is removed: the size of the final file is compared with this one.
        dense = model.architecture
        reduced = stack.reduce_tokenizer(data)
        if reduced is not None:
            whole = data.tokenizer.fingerprint
            all_teachers = [teacher for own in teachers.values() for teacher in own]
            _keep_tokens(*reduced, model, [t for t in all_teachers if t.tokenizer_fingerprint == whole])
            data = prepare_data(
                config.dataset, dense.context, reduced[0], transform, dense.outputs, with_monolingual=True
            )
            data.reduced_from = whole
        data.notes += [*quality_notes(data, config.dataset.metrics), *_decoding_notes(origin, config)]
        if data.outputs is not None:
            check_label_metrics([judged_by(config)], data.outputs)
        stack.data_prepared(teachers, data, model.architecture, self.device)
        return Parts(config, self.device, stack, teachers, data, model, dense, self.group)


def _with_model_of_origin(config: Root) -> Root:
    """The config with the settings of the model that a file or folder in ``init_from`` holds; a run brings its own."""
    from tfx.compression.checkpoint import read_header
    from tfx.exchange.importing import local_file

    origin = None if config.init_from is None else Path(config.init_from)
    if origin is None or (origin / "config.yaml").is_file():
        return config
    model = read_header(local_file(origin)).architecture.to_config(config.model)
    if model.family == "encoder":  # below a classifier, whose other settings are the config's
        if config.dataset.task != "classification":
            return config  # `_origin` says that no other task has a use for it
        own = config.model
        model = replace(model, family="classification", pooling=own.pooling, pooler=own.pooler)
    return replace(config, model=replace(model, name=origin.stem))


def _check_order(config: Root, stack: Stack) -> None:
    """Raises `UserError` if a technique orders the batches of an epoch, and streamed data has no such order."""
    dataset = config.dataset
    is_streamed = dataset.streaming or any(entry.get("streaming") for entry in dataset.mix)
    if is_streamed and (ordering := stack.order["order_batches"]):
        raise UserError(
            f"technique '{ordering[0].name}' orders the batches of a whole epoch by their lengths, and a streamed data "
            "set has none: leave it out, or prepare the data with dataset.streaming=false"
        )


def _check_quality_drop(config: Root, stack: Stack) -> None:
    """Raises `UserError` where a loss of quality is to be measured, and there is no dense model to measure it by."""
    has_reference = config.reference is not None or config.init_from is not None or bool(stack.teacher_needs())
    if config.max_quality_drop is not None and not has_reference and stack.compresses_now(1.0 - 1e-9):
        raise UserError(
            f"max_quality_drop={config.max_quality_drop:g} is measured against a reference, and this run has none: the "
            "model that it compresses is still training then. Name a dense one with reference=RUN"
        )


def _check_batch(config: Root, group: Group) -> None:
    """Raises `UserError` if the size of a batch is to be found and several processes divide the weights."""
    trainer = config.trainer
    if config.dataset.batch_tokens == AUTO and trainer.parallel == "fsdp" and max(group.size, trainer.devices) > 1:
        raise UserError(
            "dataset.batch_tokens=auto tries steps with whole weights, and trainer.parallel=fsdp is for those that do "
            "not fit: name a number; a step that does not fit says so"
        )


def _keep_tokens(tokenizer: Tokenizer, ids: list[int], model: Transformer, teachers: list[Teacher]) -> None:
    """Removes all other tokens from the model, and from the teachers with the same tokenizer."""
    from tfx.model.rewiring import keep_tokens

    keep_tokens(model, ids).apply(model)
    for teacher in teachers:
        keep_tokens(teacher.model, ids).apply(teacher.model)
        teacher.tokenizer, teacher.tokenizer_fingerprint = tokenizer, tokenizer.fingerprint


def read_inputs(
    config: Root, transform: Callable[[Corpus], Corpus] | None = None, *, with_monolingual: bool = False
) -> tuple[LoadedModel | None, PreparedData]:
    """The model that the run starts from, if any, and the data in its tokens (`prepare_data`). Raises `UserError`."""
    from tfx.tasks.prepare import prepare_data

    origin = _origin(config)
    context, tokenizer, outputs = config.model.context, None, None
    if origin is not None:
        architecture = origin.model.architecture
        context, tokenizer, outputs = architecture.context, origin.tokenizer, architecture.outputs
    data = prepare_data(config.dataset, context, tokenizer, transform, outputs, with_monolingual=with_monolingual)
    return origin, data


def _origin(config: Root) -> LoadedModel | None:
    """The model that ``init_from`` names. Raises `UserError` if it is for another task than the data."""
    from tfx.compression import checkpoint
    from tfx.exchange.importing import local_file

    if config.init_from is None:
        return None
    loaded = checkpoint.load(local_file(Path(config.init_from)), kernels=False)
    family = loaded.model.architecture.family
    if family in TASKS[config.dataset.task].starts_from:
        return loaded
    facts_of(family, f"init_from={config.init_from}")
    if family != config.dataset.task:
        raise UserError(
            f"init_from={config.init_from} is a model for {family}, and dataset '{config.dataset.name}' is for "
            f"{config.dataset.task}: name another with dataset=…"
        )
    return loaded


def _decoding_notes(origin: LoadedModel | None, config: Root) -> list[str]:
    """Says if texts are decoded otherwise than those that the model of ``init_from`` was scored with."""
    from tfx.evaluation.generation import describe_decoding

    if origin is None or not TASKS[config.dataset.task].decodes:
        return []
    scored, used = describe_decoding(origin.generation), describe_decoding(config.evaluation)
    if scored == used:
        return []
    return [
        f"decoding by {used}; the model of init_from was scored with {scored}: compare with this run's reference, "
        "not with the scores of that run"
    ]


def build_model(
    config: Root, data: PreparedData, device: torch.device, origin: LoadedModel | None, parts: int = 1
) -> Transformer:
    """The model before its first step, on the device: that of ``origin``, or a new one from the config's seed.

    Training divides it into ``parts``. Raises `UserError` for a new one that would not fit into the device.
    An ``origin`` of another family, an encoder, gives what is on it no weights: these are new.
    """
    import torch

    from tfx.model.architecture import Architecture, with_outputs
    from tfx.model.transformer import Transformer, check_fits, initialise

    if origin is not None and origin.model.architecture.family == data.task:
        model = Transformer.holding(origin.model.architecture, origin.model.state_dict(), config.model)
        return model.train().to(device)
    if origin is not None:
        model = Transformer(with_outputs(origin.model.architecture, config.model, data.outputs), config.model)
        initialise(model, config.seed)
        inner = {name: t for name, t in origin.model.state_dict().items() if not name.startswith("output.")}
        model.load_state_dict(inner, strict=False)
        return model.to(device)
    architecture = Architecture.from_config(config.model, data.tokenizer.vocab_size, data.outputs)
    check_fits(architecture, device, parts)
    if config.dry_run:  # the plan needs only names and shapes
        with torch.device("meta"):
            return Transformer(architecture, config.model)
    model = Transformer(architecture, config.model)
    initialise(model, config.seed)
    return model.to(device)
