"""Another library that runs a model while it decodes, set as `Transformer.engine`.

Shapes: B sources, S source positions.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any, ClassVar

from torch import Tensor

from tfx.config.schema import EvaluationConfig

Ids = Sequence[int]


class Engine(ABC):
    """A library with a converted model."""

    name: ClassVar[str]

    @classmethod
    def check(cls, config: EvaluationConfig) -> None:
        """Raises `UserError` for settings of decoding that it cannot follow."""
        return

    def notes(self, config: EvaluationConfig) -> list[str]:
        """In which way it decodes otherwise than the model itself."""
        return []


class StepEngine(Engine):
    """One that computes steps, among which the search is ours."""

    @abstractmethod
    def decoder(self, sources: Sequence[Ids] | None, hypotheses: int) -> Any:
        """What `tfx.model.decoding.Decoder` offers to a search, for sources or for texts to continue."""


class WholeEngine(Engine):
    """One that decodes by itself, without probabilities and with one output for each input."""

    @abstractmethod
    def translate(self, sources: Sequence[Ids], limits: Sequence[int], config: EvaluationConfig) -> list[list[int]]:
        """Outputs of an encoder-decoder without the end token, which sources have, at most ``limits`` long."""

    @abstractmethod
    def continue_texts(self, prompts: Sequence[Ids], new_tokens: int) -> list[list[int]]:
        """What a language model finds likeliest at each step: up to the end token, or ``new_tokens`` of them."""


def without_padding(source_BS: Tensor, source_mask_BS: Tensor | None) -> list[list[int]]:
    """The real tokens of each source."""
    if source_mask_BS is None:
        return source_BS.tolist()
    return [row[mask].tolist() for row, mask in zip(source_BS, source_mask_BS, strict=True)]
