"""All libraries that models are exported to."""

from __future__ import annotations

from tfx.exchange.target import Target
from tfx.exchange.to_ctranslate2 import CTRANSLATE2
from tfx.exchange.to_transformers import TRANSFORMERS

TARGETS: dict[str, Target] = {target.name: target for target in (TRANSFORMERS, CTRANSLATE2)}
