"""What each group of the config offers: YAMLs, and techniques of other packages. Imports neither Hydra nor torch."""

from __future__ import annotations

from importlib import resources
from importlib.resources.abc import Traversable
from itertools import takewhile

import yaml

from tfx.config.registry import entry_points, foreign_yaml, is_foreign
from tfx.config.schema import ModelConfig

GROUPS = ("model", "dataset", "technique", "optimizer", "schedule", "trainer", "evaluation", "experiment")


def choices(group: str) -> dict[str, str]:
    """The choices of a group and their descriptions: the comments that head each YAML, a line each."""
    folder = resources.files("tfx.conf").joinpath(group)
    found = {}
    if folder.is_dir():
        for file in folder.iterdir():
            if file.name.endswith(".yaml"):
                found[file.name.removesuffix(".yaml")] = _head(file)
    if group == "technique":
        for name, point in entry_points().items():
            if is_foreign(point):
                shipped = foreign_yaml(point)
                found[name] = _head(shipped) if shipped is not None else f"from {point.value}"
    return dict(sorted(found.items()))


def model_settings(name: str) -> ModelConfig:
    """The settings of a model that is shipped."""
    file = resources.files("tfx.conf").joinpath("model", f"{name}.yaml")
    return ModelConfig(**yaml.safe_load(file.read_text(encoding="utf-8")))


def _head(file: Traversable) -> str:
    # Another package's file may be broken: the error comes when it is chosen.
    text = file.read_bytes().decode("utf-8", errors="replace")
    lines = takewhile(lambda line: line.startswith("#"), text.splitlines())
    return "\n".join(line[1:].strip() for line in lines if "@package" not in line)
