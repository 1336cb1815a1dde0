"""A model card (Mitchell 2019, arXiv 1810.03993): what a run's own files say about its model, and nothing else."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from tfx.compression.checkpoint import LoadedModel
from tfx.config.choices import choices
from tfx.errors import UserError
from tfx.record.directory import RunDirectory
from tfx.record.files import read_json
from tfx.record.summary import Result, Summary

_UNKNOWN = "unknown"
_PIPELINES = {"lm": "text-generation", "encoder": "feature-extraction", "classification": "text-classification"}


def card(loaded: LoadedModel, run: Path | None, target: str, numbers: str, size: int, compared: str) -> str:
    """README.md with YAML front matter. ``run`` is the run directory, None for a bare model file.

    ``size`` are the bytes of the exported files, and ``compared`` says how the exported model differs from the
    run's. What the files do not say is called unknown.
    """
    summary, config, environment = _read(run)
    result = None if summary is None else summary.result
    name = "model" if summary is None else summary.facts.name or f"{summary.facts.model} on {summary.facts.dataset}"
    sections = {
        "Model": _model(loaded, target, numbers, compared),
        "Data": _data(summary, result, config),
        "Training": _training(summary, result, config.get("init_from")),
        "Quality": _quality(summary, result),
        "Size and speed": _size(size, result, environment),
        "Limits": _limits(loaded, summary, result),
    }
    front = yaml.safe_dump(_front(loaded, summary, config, target), sort_keys=False, allow_unicode=True)
    body = "\n\n".join(f"## {title}\n\n{lines}" for title, lines in sections.items())
    return f"---\n{front}---\n\n# {name}\n\n{body}\n"


def _read(run: Path | None) -> tuple[Summary | None, dict[str, Any], dict[str, Any]]:
    """The summary, config and environment of a run, as far as it has them."""
    if run is None:
        return None, {}, {}
    directory = RunDirectory(run)
    try:
        summary = directory.read_summary()
        config = yaml.safe_load(directory.config.read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"--card: {directory.path} cannot be read: {error}") from error
    return summary, config, read_json(directory.environment) if directory.environment.is_file() else {}


def _front(loaded: LoadedModel, summary: Summary | None, config: Mapping[str, Any], target: str) -> dict[str, Any]:
    techniques = [] if summary is None else summary.facts.techniques
    found: dict[str, Any] = {
        "license": _UNKNOWN,
        "library_name": target,
        "tags": ["tfx", *techniques],
    }
    # Not every encoder-decoder translates; a task of the hub's list that the run does not state would be a guess.
    if not loaded.model.architecture.is_seq2seq:
        found["pipeline_tag"] = _PIPELINES[loaded.model.architecture.family]
    hub = (config.get("dataset") or {}).get("hub")
    if hub:
        found["datasets"] = [hub]
    if summary is not None and summary.result is not None:
        found["metrics"] = list(summary.result.test)
    return found


def _rows(rows: Mapping[str, object]) -> str:
    return "\n".join(f"- {name}: {value}" for name, value in rows.items())


def _model(loaded: LoadedModel, target: str, numbers: str, compared: str) -> str:
    architecture = loaded.model.architecture
    is_compressed = any(tensor.codec.split()[0] != "dense" for tensor in loaded.tensors)
    stored = "; they are those of a compressed file, dequantized" if is_compressed else ""
    return _rows(
        {
            "family": architecture.family,
            "blocks": f"{len(architecture.encoder)} in the encoder, {len(architecture.decoder)} in the decoder",
            **({"tokens that its convolution reads": architecture.convolution} if architecture.convolution else {}),
            **({"passes through them": architecture.passes} if architecture.passes > 1 else {}),
            "width": architecture.width,
            "context": f"{architecture.context:,} tokens",
            "vocabulary": f"{architecture.vocab_size:,} tokens",
            "written for": f"{target}, weights in {numbers}{stored}",
            "compared with the original": compared,
        }
    )


def _data(summary: Summary | None, result: Result | None, config: Mapping[str, Any]) -> str:
    settings = config.get("dataset") or {}
    name = _UNKNOWN if summary is None else summary.facts.dataset
    rows: dict[str, object] = {"data set": name}
    if name in (known := choices("dataset")) and not settings.get("mix"):
        rows["about it"] = known[name]
    # No file of a run records a licence; the line about a data set may name one.
    rows["licence of the data"] = "unknown, unless the line above states it" if "about it" in rows else _UNKNOWN
    if result is not None:
        sizes = [f"{split} {result.data[split]:,}" for split in ("train", "valid", "test") if split in result.data]
        rows["examples"] = ", ".join(sizes) or _UNKNOWN
        rows |= {f"note {i}": note for i, note in enumerate(result.data.get("notes", []), 1)}
    return _rows(rows)


def _training(summary: Summary | None, result: Result | None, origin: str | None) -> str:
    if summary is None or result is None:
        return "Unknown: the model was exported from a file without its run."
    train = result.train
    rows: dict[str, object] = {} if origin is None else {"started from": Path(origin).name}
    rows |= {
        "techniques": ", ".join(summary.facts.techniques) or "none",
        "steps": f"{train.steps:,}",
        "tokens": f"{train.tokens:,}",
        "seconds": f"{train.seconds:,.0f}",
        "seed": summary.facts.seed,
    }
    if train.teacher_tokens:
        rows["teacher's tokens"] = f"{train.teacher_tokens:,}"
    if result.reference is not None:
        rows["compared with"] = result.reference.name
    return _rows(rows)


def _quality(summary: Summary | None, result: Result | None) -> str:
    if summary is None or result is None:
        return "Unknown: no run with scores was given."
    lines = ["| metric | value | signature |", "|---|---|---|"]
    lines += [f"| {name} | {value:.4g} | {_signature(result, name)} |" for name, value in result.test.items()]
    scope = f"Of the run's own file on its {result.test_split} split, one run with seed {summary.facts.seed}:"
    spread = "The spread over seeds is unknown."
    return "\n".join([scope, "", *lines, "", spread])


def _signature(result: Result, name: str) -> str:
    # A bar would end the cell.
    return result.signatures.get(name, "").replace("|", "\\|")


def _size(size: int, result: Result | None, environment: Mapping[str, Any]) -> str:
    rows: dict[str, object] = {"bytes of these files": f"{size:,}"}
    if result is None:
        return _rows(rows | {"latency": _UNKNOWN})
    rows |= {
        "parameters": f"{result.parameters:,}",
        "bytes of the run's file": f"{result.bytes.file:,} ({result.bytes.dense_fp32:,} as plain float32)",
    }
    speed = result.inference.get("file")
    if speed is None or "p50" not in speed.latency_ms:
        rows["latency"] = _UNKNOWN
    else:
        times = ", ".join(f"{name} {value:.1f} ms" for name, value in speed.latency_ms.items())
        hardware = environment.get("hardware", {})
        machine = f"{hardware.get('processor', 'an unknown processor')}, device {hardware.get('device', _UNKNOWN)}"
        rows["latency of one input in tfx"] = f"{times}, on {machine}"
    rows["latency in this format"] = "unknown: it was not measured"
    return _rows(rows)


def _limits(loaded: LoadedModel, summary: Summary | None, result: Result | None) -> str:
    found: list[str] = [f"Inputs beyond {loaded.model.architecture.context:,} tokens are outside its context."]
    if result is None or summary is None:
        found.append("Its data, quality and cost are unknown.")
    else:
        found.append(f"Scores hold for {summary.facts.dataset}; on other data they are unknown.")
        found += [f"Quality dropped: {note}" for note in result.quality_drops]
    found.append("Bias, safety and fitness for a purpose were not assessed.")
    return "\n".join(f"- {line}" for line in found)
