"""What may change between a saved state and the run that goes on from it."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import asdict
from typing import Any

from tfx.config.schema import Root
from tfx.errors import UserError
from tfx.record.environment import flat

# Settings that may change: nothing done so far depends on them. Data may have moved; its fingerprint is checked.
SAFE = (
    "trainer.budget.",
    "trainer.save.",
    "trainer.instability.",
    "trainer.log_every",
    "trainer.profile",
    "trainer.devices",
    "tracking.",
    "dataset.path",
    "dataset.tokenizer.path",
    "name",
    "tags",
    "max_quality_drop",
    "on_quality_drop",
)
# A setting of one corpus of several.
_ENTRY = re.compile(r"^dataset\.mix\.\d+\.(?=path$)")


def is_safe(key: str) -> bool:
    """Whether a setting may change in a resumed run."""
    return _ENTRY.sub("dataset.", key).startswith(SAFE)


def kept_settings(config: Root) -> dict[str, Any]:
    """The settings that a saved state goes with, under their dotted names, as plain values."""
    found = json.loads(json.dumps(flat(asdict(config))))
    for number, entry in enumerate(found.pop("dataset.mix", None) or ()):
        found |= flat(entry, f"dataset.mix.{number}.")
    return {key: value for key, value in found.items() if not is_safe(key)}


def changed_settings(before: Mapping[str, Any], config: Root) -> Iterator[str]:
    """What to say of settings that are not those of the saved state, as where someone edited the run's config.

    Raises `UserError` for one of the model, which the state's weights would not fit.
    """
    for key, value in kept_settings(config).items():
        if key not in before or before[key] == value:
            continue
        told = f"{key} is {json.dumps(value)}, and was {json.dumps(before[key])} when the state was saved"
        if key.startswith("model."):
            raise UserError(f"{told}: put it back in the run's config.yaml")
        yield f"{told}: the run goes on with it, and not to the bits of one that never stopped"
