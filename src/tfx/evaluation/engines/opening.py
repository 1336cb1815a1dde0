"""The engine that a config names: its library is there, it can decode so, and the model is converted for it once."""

from __future__ import annotations

from pathlib import Path

from tfx.compression.checkpoint import LoadedModel, load
from tfx.config.schema import EvaluationConfig
from tfx.errors import UserError
from tfx.evaluation.engines.ctranslate2 import CTranslate2Engine
from tfx.exchange.run_onnx import OnnxModel
from tfx.exchange.target import Target, fitted
from tfx.exchange.targets import TARGETS
from tfx.model.engine import Engine
from tfx.record.cache import cached
from tfx.record.directory import writable_cache
from tfx.record.files import sha256

_ENGINES: dict[str, type[CTranslate2Engine | OnnxModel]] = {
    engine.name: engine for engine in (CTranslate2Engine, OnnxModel)
}
_VERSION = 1


def open_engine(loaded: LoadedModel, config: EvaluationConfig) -> Engine | None:
    """What decodes with this config: None is the model itself.

    The converted model lies in the cache under the hash of the model's file and what it was converted to. Raises
    `UserError` for a library that is not installed, or a model or settings that it has no place for.
    """
    if config.engine == "torch":
        return None
    setting = f"evaluation.engine={config.engine}"
    if loaded.model.architecture.outputs is not None:
        raise UserError(f"{setting} decodes text, and a classifier writes none: leave it out")
    target = TARGETS[config.engine]
    target.require(setting)
    if config.engine_numbers not in target.kinds:
        raise UserError(
            f"{setting} has no weights in {config.engine_numbers}: set evaluation.engine_numbers to one of "
            f"{', '.join(target.kinds)}"
        )
    if loaded.model.embedding.weight.device.type != "cpu":
        raise UserError(f"{setting} runs on the CPU: add --device cpu")
    target.check(loaded.model.architecture)
    engine = _ENGINES[target.name]
    engine.check(config)
    key = f"{sha256(loaded.path)[:32]}-{target.name}-{config.engine_numbers}-{_VERSION}"
    return cached(
        writable_cache("engines") / key,
        lambda folder: engine(folder, loaded),
        lambda folder: _convert(loaded.path, target, config.engine_numbers, folder),
    )


def _convert(path: Path, target: Target, kind: str, folder: Path) -> None:
    # Anew: layers on int8 kernels have no plain weights.
    target.write(fitted(load(path, kernels=False), target), folder, kind)
