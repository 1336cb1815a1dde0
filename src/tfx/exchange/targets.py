"""All libraries that models are exported to."""

from __future__ import annotations

from tfx.config.schema import ModelConfig
from tfx.errors import UserError
from tfx.exchange.target import Target
from tfx.exchange.to_ctranslate2 import CTRANSLATE2
from tfx.exchange.to_gguf import GGUF
from tfx.exchange.to_onnx import ONNX
from tfx.exchange.to_safetensors import SAFETENSORS
from tfx.exchange.to_transformers import TRANSFORMERS
from tfx.model.architecture import Architecture, Outputs

TARGETS: dict[str, Target] = {target.name: target for target in (TRANSFORMERS, CTRANSLATE2, ONNX, GGUF, SAFETENSORS)}

# Of a model that has no data yet; what exports does not depend on them.
_ANY_VOCABULARY = 8000
_ANY_LABELS = Outputs("one", ("no", "yes"))


def exportable(model: ModelConfig) -> list[str]:
    """The names of the targets that have a place for models of these settings."""
    labels = _ANY_LABELS if model.family == "classification" else None
    architecture = Architecture.from_config(model, _ANY_VOCABULARY, labels)
    found = []
    for name, target in TARGETS.items():
        try:
            target.check(architecture)
        except UserError:
            continue
        found.append(name)
    return found
