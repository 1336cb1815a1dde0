"""`summary.json`: the result of a run, as one type with one reader and one writer.

A summary is read leniently: what an earlier version did not write yet gets its default.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import MISSING, Field, asdict, dataclass, field, fields
from pathlib import Path
from typing import Any, TypeVar

from tfx.errors import UserError
from tfx.record.files import read_json, write_json

# The format version of the file.
VERSION = 1
COMPLETED, INTERRUPTED, FAILED = "completed", "interrupted", "failed"
# The stages that belong to no technique.
REFERENCE, TRAINED, FILE = "reference", "trained", "file"
# A technique that begins after this share of the training time finds a model that is trained.
WHOLE_TRAINING = 0.98

Part = TypeVar("Part")


@dataclass
class Facts:
    """The facts about a run that are known whether it succeeds or fails."""

    format_version: int
    task: str
    name: str | None
    tags: list[str]
    model: str
    dataset: str
    techniques: list[str]
    plan: list[dict[str, Any]]
    seed: int
    primary_metric: str


@dataclass
class Stage:
    """The model after one stage, read back from a file: validation metrics, bytes, and the seconds that it took.

    ``latency_ms`` is the median time for one input; None if it was not measured.
    """

    name: str
    valid: dict[str, float]
    bytes: int
    parameters: int = 0
    nonzero_parameters: int = 0
    seconds: float = 0.0
    latency_ms: float | None = None


@dataclass
class FileBytes:
    """Bytes of the final file and its parts, and of the dense model as a plain fp32 file."""

    dense_fp32: int
    file: int
    weights: int
    header: int
    tokenizer: int = 0
    ratio: float = 1.0


@dataclass
class TrainingCost:
    """What a training did and cost. Tokens are those of both sides, without padding.

    ``best_by`` is the metric by which the weights after ``best_step`` are the best that a validation saw.
    ``batch_tokens`` is the size of a batch, found or named; 0: unknown, as in runs of before.
    ``compiled_graphs`` counts what torch compiled meanwhile, teachers included; 0 where nothing is compiled.
    ``teacher_*`` are the cost of the teachers: their own training, and what was made from their outputs.
    """

    steps: int = 0
    processes: int = 1
    batch_tokens: int = 0
    tokens: int = 0
    seconds: float = 0.0
    tokens_per_second: float = 0.0
    padding: float = 0.0
    flops: float = 0.0
    mfu: float | None = None
    peak_memory_bytes: int = 0
    stopped_early: bool = False
    best_step: int = 0
    best_by: str = "loss"
    final_weights: str = "last"
    skipped_steps: int = 0
    compiled_graphs: int = 0
    teacher_steps: int = 0
    teacher_seconds: float = 0.0
    teacher_tokens: int = 0
    teacher_flops: float = 0.0


@dataclass
class Speed:
    """How fast a model decodes: milliseconds per input (p50, p95), output tokens per second, bytes of weights."""

    latency_ms: dict[str, float]
    tokens_per_second: float = 0.0
    memory_bytes: int = 0


@dataclass
class Reference:
    """The dense model that results are compared with. ``train`` is the cost of its training, if known."""

    name: str
    path: str = ""
    sha256: str = ""
    valid: dict[str, float] = field(default_factory=dict)
    test: dict[str, float] = field(default_factory=dict)
    bytes: int = 0
    parameters: int = 0
    train: dict[str, float] | None = None

    def to_dict(self) -> dict[str, Any]:
        """As JSON values; without ``train`` if it is not known."""
        return {name: value for name, value in asdict(self).items() if name != "train" or value is not None}


@dataclass
class Result:
    """The result of a completed run, all of it measured on the final file, read back from disk."""

    test: dict[str, float]
    test_split: str
    valid: dict[str, float]
    signatures: dict[str, str]
    reference: Reference | None
    stages: list[Stage]
    bytes: FileBytes
    parameters: int
    train: TrainingCost
    inference: dict[str, Speed]
    data: dict[str, Any]
    quality_drops: list[str]
    evidence: dict[str, dict[str, float]]
    resumed: list[int]


@dataclass
class Summary:
    """A run's status and facts; ``result`` if it completed, ``error`` if it did not."""

    status: str
    facts: Facts
    error: str | None = None
    result: Result | None = None

    @property
    def objective(self) -> float | None:
        """The primary metric on validation data; None if the run did not complete."""
        return None if self.result is None else float(self.result.valid[self.facts.primary_metric])

    def to_dict(self) -> dict[str, Any]:
        """As JSON values, flat."""
        values: dict[str, Any] = {"status": self.status}
        if self.error is not None:
            values["error"] = self.error
        values |= asdict(self.facts)
        if self.result is not None:
            values |= asdict(self.result)
            values["reference"] = None if self.result.reference is None else self.result.reference.to_dict()
        return values

    def write(self, path: Path) -> None:
        """Writes the file completely or not at all."""
        write_json(path, self.to_dict())

    @classmethod
    def read(cls, path: Path) -> Summary:
        """The inverse of `write`; raises `UserError` if the file is missing, broken, or from a newer tfx."""
        found = read_json(path)
        if not isinstance(found, dict):
            raise UserError(f"{path} is not a summary of a run: it holds no JSON object")
        version = found.get("format_version", VERSION)
        if not isinstance(version, int) or version > VERSION:
            raise UserError(f"{path} has format version {version}, and this tfx reads up to {VERSION}: update tfx")
        try:
            return cls.from_dict(found)
        except (KeyError, TypeError, AttributeError, ValueError, OverflowError) as error:
            raise UserError(f"{path} is not a summary of a run: {type(error).__name__}: {error}") from error

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Summary:
        """From the values of the file; raises `KeyError` or `TypeError` if a required one is missing."""
        status = str(values["status"])
        # An old failed run may not name its model and data.
        lenient = {} if status == COMPLETED else {"task": "", "dataset": "", "seed": 0}
        facts = _part(Facts, _FACTS | lenient | dict(values))
        if status != COMPLETED:
            error = values.get("error")
            return cls(status, facts, None if error is None else str(error))
        reference = values.get("reference")
        result = Result(
            test=dict(values["test"]),
            test_split=str(values.get("test_split", "test")),
            valid=dict(values.get("valid") or {}),
            signatures=dict(values.get("signatures") or {}),
            reference=None if reference is None else _part(Reference, reference),
            stages=[_part(Stage, row) for row in values.get("stages") or []],
            bytes=_part(FileBytes, {"dense_fp32": 0, "weights": 0, "header": 0} | values["bytes"]),
            parameters=int(values.get("parameters") or 0),
            train=_part(TrainingCost, values["train"]),
            inference={name: _part(Speed, row) for name, row in (values.get("inference") or {}).items()},
            data=dict(values.get("data") or {}),
            quality_drops=list(values.get("quality_drops") or []),
            evidence=dict(values.get("evidence") or {}),
            resumed=list(values.get("resumed") or []),
        )
        return cls(status, facts, None, result)


_FACTS: dict[str, Any] = {
    "format_version": VERSION,
    "name": None,
    "tags": [],
    "model": "",
    "plan": [],
    "techniques": [],
    "primary_metric": "loss",
}


def _part(kind: type[Part], values: Mapping[str, Any]) -> Part:
    """A part from its values; unknown ones are ignored."""
    known: list[Field[Any]] = list(fields(kind))  # type: ignore[arg-type]
    needed = [f.name for f in known if f.default is MISSING and f.default_factory is MISSING]
    if missing := [name for name in needed if name not in values]:
        raise KeyError(f"{kind.__name__} lacks {', '.join(missing)}")
    return kind(**{f.name: values[f.name] for f in known if f.name in values})
