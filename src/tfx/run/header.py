"""What a run prints before it trains: its data, model, budget and stack, and zeros that training would fill."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tfx.config.schema import AUTO, LocalConfig, OptimizerConfig, TrainerConfig
from tfx.config.task_facts import TASKS
from tfx.system.processors import cores
from tfx.system.threads import how_they_wait
from tfx.terminal.console import counted, size

if TYPE_CHECKING:
    import torch

    from tfx.model.device import Precision
    from tfx.model.transformer import Transformer
    from tfx.run.setup import Parts
    from tfx.tasks.contract import Split
    from tfx.techniques.stack import Stack

# A model with more zeros than this was pruned.
_MANY_ZEROS = 0.02


def header(parts: Parts, folder: Path) -> list[tuple[str, str]]:
    """Rows of a label and a text; a row with an empty label continues the one above."""
    from tfx.data.loaders import describe_files
    from tfx.model.device import choose_precision
    from tfx.model.parameter_roles import Role, parameter_roles

    config, data, model, device, stack = parts.config, parts.data, parts.model, parts.device, parts.stack
    parameters = sum(parameter.numel() for parameter in model.parameters())
    roles = parameter_roles(model)
    outside = (Role.EMBEDDING, Role.HEAD)
    embeddings = sum(p.numel() for name, p in model.named_parameters() if roles[name] in outside)
    unit = TASKS[data.task].rows
    splits = ", ".join(f"{name} {_size(split)}" for name, split in data.splits.items())
    if "test" not in data.splits:
        splits += " (no test split: the result is measured on valid)"
    length = str(config.trainer.budget)
    if config.dataset.batch_tokens == AUTO:  # a plan takes no step
        step = "as many tokens per batch as fit into memory"
    else:
        step = f"{counted(config.dataset.batch_size * config.trainer.accumulation, 'token')} per step"
    precision = choose_precision(config.trainer.precision, device)
    rows = [
        ("data", f"{config.dataset.name}: {splits} {unit}"),
        *(("", f"{name}: {describe_files(files)}") for name, files in data.files.items()),
        ("tokenizer", f"{data.tokenizer.kind}, {data.tokenizer.vocab_size:,} entries"),
        (
            "model",
            f"{config.model.name}: {parameters:,} parameters ({embeddings / parameters:.0%} embeddings), "
            f"about {_memory(parts)}",
        ),
        (
            "training",
            f"none: {length} train nothing, and only the stack below changes weights; seed {config.seed}"
            if config.trainer.budget.is_zero
            else f"{length}, {step}, {_optimizer(parts)}, {config.schedule.name}, seed {config.seed}",
        ),
        ("device", ", ".join([str(device), precision.name, *_threads(device), *_processes(parts)])),
        *(_plan_rows(stack, model) or [("stack", "no technique")]),
        ("run", str(folder)),
    ]
    return rows + [
        ("note", note)
        for note in [
            *data.notes,
            *_batch_notes(parts),
            *_emulation_notes(precision, device),
            *_compilation_notes(config.trainer, device),
            *_optimizer_notes(parts),
            *_process_notes(parts),
        ]
    ]


def _memory(parts: Parts) -> str:
    """What a process holds beside activations, in fp32: weights, an average, and what training adds."""
    from tfx.training.optimizers import orthogonalised

    trainer, model = parts.config.trainer, parts.model
    weights = sum(parameter.numel() for parameter in model.parameters())
    if trainer.budget.is_zero:
        return f"{size(4 * weights)} of weights"
    moments = 2 * weights
    if parts.config.optimizer.name == "muon":  # which has one for its matrices
        moments -= sum(matrix.numel() for matrix in orthogonalised(model))
    count = _process_count(parts) if trainer.parallel == "fsdp" else 1
    held = 2 * weights + moments + (weights if trainer.averaging.kind != "none" else 0)
    divided = f", divided by {count} processes" if count > 1 else ""
    return f"{size(4 * held // count)} with gradients and optimizer, without activations{divided}"


def _optimizer(parts: Parts) -> str:
    """Its name, and the rate that a width decides."""
    from tfx.training.optimizers import matrix_rate, unit_matrices

    config, width = parts.config.optimizer, parts.model.architecture.width
    if config.name != "muon":
        return config.name
    blocks = ""
    if config.matrix_block is not None and unit_matrices(parts.model):
        divided = "q, k, v, up and gate" if parts.model.architecture.is_gated else "q, k, v and up"
        blocks = f"; {divided} in blocks of {config.matrix_block}"
    return f"muon (matrices at {matrix_rate(config, width):.3g}{blocks})"


def _size(split: Split) -> str:
    """How many rows a split has; of a mixture with a stream, how many the others have."""
    from tfx.tasks.mixture import Mixture

    if split.size is not None:
        return f"{split.size:,}"
    sizes = [part.size for part in split.parts] if isinstance(split, Mixture) else []
    known = [size for size in sizes if size is not None]
    return f"{sum(known):,} and streamed" if known else "streamed"


def _threads(device: torch.device) -> list[str]:
    """On a CPU, how many threads there are, and how they wait for one another."""
    import torch

    if device.type != "cpu":
        return []
    count = torch.get_num_threads()
    return ["1 thread"] if count == 1 else [f"{count} threads", *filter(None, [how_they_wait()])]


def _emulation_notes(precision: Precision, device: torch.device) -> list[str]:
    """Says if the number format that is asked for is much slower here than fp32."""
    import torch

    from tfx.model.device import multiplies_bf16

    if precision.products != torch.bfloat16 or multiplies_bf16(device):
        return []
    return [
        f"trainer.precision={precision.name}: this {device.type} has no bfloat16 products, and emulates them, which is "
        "many times slower than fp32: use trainer.precision=auto"
    ]


def _batch_notes(parts: Parts) -> list[str]:
    """Says if not one training row is as short as a batch, which holds one all the same, or if processes get none."""
    dataset, split, context = parts.config.dataset, parts.data.splits["train"], parts.model.architecture.context
    if dataset.batch_tokens == AUTO:
        return []
    count, shortest = _process_count(parts), split.shortest(context)
    if shortest is None or shortest <= dataset.batch_size:
        rows = None if count == 1 else split.most_rows(dataset.batch_size, context)
        if rows is None or rows >= count:
            return []
        return [
            f"dataset.batch_tokens={dataset.batch_tokens}: the mean batch holds {counted(rows, 'example')} at most, "
            f"fewer than the {count} processes: some of these are often idle"
        ]
    note = (
        f"dataset.batch_tokens={dataset.batch_tokens}: no training example fits (the shortest takes "
        f"{counted(shortest, 'token')}), so each batch holds one, and a step has more tokens than that"
    )
    return [note if count == 1 else f"{note}; only one of {count} processes works at a time"]


def _optimizer_notes(parts: Parts) -> list[str]:
    """Which of Muon's own settings do nothing."""
    from tfx.training.optimizers import unit_matrices

    optimizer, usual = parts.config.optimizer, OptimizerConfig()
    if optimizer.name == "muon":
        block = optimizer.matrix_block
        most = max(map(len, unit_matrices(parts.model)), default=0)
        if block is None or block < most:
            return []
        which = f"has more than {most} rows" if most else "is left: each is a product of two"
        return [f"optimizer.matrix_block={block} has no effect: no matrix that it divides {which}"]
    names = ("momentum", "matrix_lr", "matrix_block")
    own, others = ({name: getattr(config, name) for name in names} for config in (optimizer, usual))
    return _idle("optimizer", own, others, "optimizer=muon")


def _compilation_notes(trainer: TrainerConfig, device: torch.device) -> list[str]:
    """What a GPU's model is not compiled for."""
    from tfx.model.compilation import missing_for_compiling

    if trainer.compile != "auto" or device.type != "cuda" or not (missing := missing_for_compiling(device)):
        return []
    return [f"the model is not compiled, which trains slower: torch needs {missing} for that"]


def _idle(group: str, values: Mapping[str, Any], usual: Mapping[str, Any], needed: str) -> list[str]:
    """The settings that differ from the usual ones, and have no effect without what they need."""
    return [
        f"{group}.{name}={json.dumps(value)} has no effect: it is for {needed}"
        for name, value in values.items()
        if value != usual[name]
    ]


def _process_notes(parts: Parts) -> list[str]:
    """What is unlikely to be meant by the number of processes."""
    trainer = parts.config.trainer
    count = _process_count(parts)
    notes = []
    if trainer.parallel == "local" and count == 1:
        notes.append("trainer.parallel=local is for several processes, and there is one: name trainer.devices=N")
    notes += _local_notes(trainer, count)
    if parts.device.type == "cpu" and trainer.devices > cores():
        notes.append(f"{count} processes share {counted(cores(), 'core')}: fewer processes would be no slower")
    return notes


def _local_notes(trainer: TrainerConfig, count: int) -> list[str]:
    """Which settings of local steps do nothing, and how often processes meet where that is not by these."""
    if trainer.parallel != "local":
        return _idle("trainer.local", asdict(trainer.local), asdict(LocalConfig()), "trainer.parallel=local")
    if count == 1 or not trainer.budget.steps:
        return []
    between = max(1, math.ceil(trainer.budget.steps * trainer.validate_every - 1e-9))
    if trainer.local.steps <= between:
        return []
    return [
        f"trainer.local.steps={trainer.local.steps} is not reached: the processes meet before each validation, after "
        f"at most {counted(between, 'step')} (trainer.validate_every={trainer.validate_every:g})"
    ]


def _process_count(parts: Parts) -> int:
    return max(parts.group.size, parts.config.trainer.devices)


def _processes(parts: Parts) -> list[str]:
    """How many processes there are or will be, and what they share."""
    trainer = parts.config.trainer
    count = _process_count(parts)
    if count == 1 and trainer.parallel != "local":
        return []
    return [f"{count} {'process' if count == 1 else 'processes'} ({trainer.parallel})"]


def zeros_given_up(parts: Parts) -> str | None:
    """Says that training would fill the zeros of a pruned model; None if there are few, or if something keeps them."""
    from tfx.techniques.kept_zeros import zero_share

    config, model, stack = parts.config, parts.model, parts.stack
    if config.init_from is None or config.trainer.budget.is_zero:
        return None
    share = zero_share(model)
    if share < _MANY_ZEROS or any(technique.keeps_zeros(share) for technique in stack.order["mask"]):
        return None
    zeros = f"{share:.0%} of the weights of init_from={config.init_from} are zero"
    if stack.order["mask"]:
        return f"{zeros}, and pruning keeps fewer: training fills the rest; trainer.keep_zeros=true keeps them zero"
    return (
        f"{zeros}, and training fills them: the file will be as large as that of a dense model; "
        "trainer.keep_zeros=true keeps them zero"
    )


def _plan_rows(stack: Stack, model: Transformer) -> list[tuple[str, str]]:
    acts = [("stack", f"{row['phase']} {row['hook']}: {row['technique']}, {row['when']}") for row in stack.plan()]
    return acts + stack.plan_for(model)
