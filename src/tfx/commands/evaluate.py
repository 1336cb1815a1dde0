"""`tfx evaluate RUN`: scores a run's final file, read back from disk."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from tfx.config.schema import EvaluationConfig, Root
from tfx.config.task_facts import TASKS, TaskFacts, facts_of
from tfx.errors import UserError
from tfx.record.directory import RunDirectory, model_file
from tfx.record.files import check_replaced, read_json, write_json_lines
from tfx.terminal.arguments import Arguments, told_by_options
from tfx.terminal.console import number, plain_console
from tfx.terminal.tables import Column, Sheet

if TYPE_CHECKING:
    from tfx.compression.checkpoint import LoadedModel
    from tfx.evaluation.quality import Quality
    from tfx.tasks.prepare import PreparedData

# Settings of data and evaluation that do not affect the scores of this command.
_NOT_HERE = (
    "dataset.batch_tokens",
    "dataset.batch_tokens_limit",
    "evaluation.new_tokens",
    "evaluation.decode_valid",
    "evaluation.attention_maps",
    "evaluation.latency_inputs",
)
# Settings that matter to a loss too.
_OF_EVERY_SCORE = ("evaluation.batch_tokens", "evaluation.precision")


def main(arguments: Sequence[str]) -> int:
    """Prints loss and text metrics of one split, with signatures."""
    parser = Arguments(
        "evaluate",
        "Scores a run's final file, or a model file on a data set named by overrides (dataset=…).",
    )
    parser.add_argument("path", type=Path, metavar="RUN|FILE", help="a run directory or a model file")
    parser.add_argument(
        "overrides", nargs="*", default=[], help="changes to the run's config: evaluation.beam=1, dataset=…"
    )
    parser.add_argument("--split", choices=("train", "valid", "test"), help="default: test, else valid")
    parser.add_argument("--predictions", type=Path, metavar="FILE", help="also write the predictions as JSON lines")
    parser.add_argument("--device", default="auto", help="auto (default), cpu, cuda, cuda:N or mps")
    parser.add_argument("--json", action="store_true", help="as JSON on stdout")
    options = parser.read(arguments)
    if options.predictions is not None:
        _check_writable(options.predictions)

    from tfx.compression.checkpoint import load
    from tfx.evaluation.engines.opening import open_engine
    from tfx.evaluation.metrics import check_metrics
    from tfx.evaluation.quality import measure_quality, quality_notes
    from tfx.exchange.importing import local_model
    from tfx.tasks.prepare import prepare_data

    path = local_model(options.path)
    config = config_of(path, options.overrides, options.path)
    check_metrics(config.dataset.metrics, config.dataset.task)
    with told_by_options(["trainer.device"]):
        loaded = load(path, options.device)
    architecture = loaded.model.architecture
    data = prepare_data(config.dataset, architecture.context, loaded.tokenizer, outputs=architecture.outputs)
    notes = [*data.notes, *quality_notes(data, config.dataset.metrics)]
    notes += _differences(path, options.overrides, config, loaded, data)
    for note in notes:
        print(f"note: {note}", file=sys.stderr)
    split = options.split or data.test_split
    if split not in data.splits:
        raise UserError(f"--split {split}: the data set has no such split, only {', '.join(data.splits)}")
    if split == "train" and TASKS[config.dataset.task].decodes:
        print("note: the training split is scored by its loss alone: it is not decoded", file=sys.stderr)
    loaded.model.engine = open_engine(loaded, config.evaluation)
    if loaded.model.engine is not None:
        for note in loaded.model.engine.notes(config.evaluation):
            print(f"note: {note}", file=sys.stderr)
    quality = measure_quality(
        loaded.model, data.splits[split], loaded.tokenizer, config.evaluation, config.dataset.metrics, seed=config.seed
    )
    if options.predictions is not None:
        try:
            write_json_lines(options.predictions, quality.predictions)
        except OSError as error:
            raise UserError(f"--predictions {options.predictions} cannot be written: {error.strerror}") from error
    title = f"{options.path if path != options.path else loaded.path} on {config.dataset.name}, {split}"
    facts = {"file": str(loaded.path), "dataset": config.dataset.name, "split": split}
    _print(quality, title, facts if options.json else None)
    return 0


def config_of(path: Path, overrides: Sequence[str], named: Path) -> Root:
    """That of the run, or for a model file one of the data that the overrides name.

    Errors say what the user ``named``: the file may be one that was converted from it.
    """
    from tfx.compression.checkpoint import read_header
    from tfx.config import compose

    if path.is_dir():
        return compose.change(compose.load(RunDirectory.open(path).config), overrides)
    file = model_file(path)
    if not any(word.lstrip("+").startswith("dataset=") for word in overrides):
        raise UserError(f"{named} is a model without its run: name the data to score it on, such as dataset=multi30k")
    # A model file brings its own architecture: the model group is unused, but must fit the task.
    family = read_header(file).architecture.family
    facts_of(family, named)
    try:
        return compose.compose([f"model={TASKS[family].example}", *overrides])
    except UserError as error:
        # The model is given, so the data is what does not fit.
        if not any(_composes([f"model={task.example}", *overrides]) for task in TASKS.values()):
            raise
        raise UserError(
            f"{named} holds a model of another task ({TASKS[family].what}) than the data: "
            "name other data, or their task and columns with dataset.task=…"
        ) from error


def _differences(
    path: Path, overrides: Sequence[str], config: Root, loaded: LoadedModel, data: PreparedData
) -> list[str]:
    """What is measured otherwise than the run was: other data, other decoding, and overrides that change nothing."""
    from tfx.evaluation.generation import describe_decoding

    task = TASKS[data.task]
    notes = []
    kept = RunDirectory(path).environment
    before = read_json(kept).get("fingerprints", {}) if kept.is_file() else {}
    # The same content under other file names is the same data.
    if before.get("content") != data.content and before.get("corpus") not in (None, data.corpus):
        notes.append("the data differs from that of the run, in files or settings of the data set")
    notes += _without_effect(overrides, config.evaluation, task)
    scored, used = describe_decoding(loaded.generation), describe_decoding(config.evaluation)
    if scored != used and task.decodes:
        notes.append(f"decoding by {used}; the run was scored with {scored}")
    return notes


def _print(quality: Quality, title: str, facts: dict[str, str] | None) -> None:
    """The metrics as a table, or with these facts as JSON."""
    if facts is not None:
        print(json.dumps({**facts, "metrics": quality.metrics, "signatures": quality.signatures}, indent=2))
        return
    table = Sheet(Column("metric"), Column("value", number=True), Column("signature", style="dim"), title=title)
    for name, value in quality.metrics.items():
        table.add_row(name, number(value), quality.signatures.get(name, ""))
    plain_console().print(table)


def _check_writable(path: Path) -> None:
    """Raises `UserError`, before anything is scored, for a path where no file can be written.

    Also for the predictions that a run made itself, of its test split.
    """
    check_replaced(path, "--predictions", b'"nll": ', "file of predictions")
    run = RunDirectory(path.absolute().parent)
    if run.config.is_file() and path.absolute() == run.predictions:
        raise UserError(f"--predictions {path} is the run's own record of its test split: name another file")


def _composes(overrides: Sequence[str]) -> bool:
    from tfx.config import compose

    try:
        compose.compose(overrides)
    except UserError:
        return False
    return True


def _without_effect(overrides: Sequence[str], config: EvaluationConfig, task: TaskFacts) -> list[str]:
    """Notes which overrides have no effect here, and why."""
    from tfx.evaluation.generation import ignored_settings

    ignored = ignored_settings(config)
    reasons = {name if name == "seed" else f"evaluation.{name}": why for name, why in ignored.items()}
    reasons |= dict.fromkeys(_NOT_HERE, "it concerns training, timing or `tfx generate`")
    found = []
    for word in overrides:
        key = word.lstrip("+").partition("=")[0]
        group = key.partition(".")[0]
        why = reasons.get(key, "")
        if group not in ("dataset", "evaluation", "seed"):
            why = "the model is fixed by its run"
        elif key.startswith("dataset.tokenizer."):
            why = "the model has its own tokenizer"
        elif not task.decodes and group != "dataset" and key not in _OF_EVERY_SCORE:
            why = f"{task.what} is scored by its {'labels' if task.metrics else 'loss'}"
        if why:
            found.append(f"{key} has no effect: {why}")
    return found
