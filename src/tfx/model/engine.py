"""Another library that decodes in the place of a model: `translate` and `continue_texts` ask it where there is one."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import ClassVar

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

    @abstractmethod
    def translate(
        self, sources: Sequence[Ids], limits: Sequence[int], config: EvaluationConfig, seed: int, streams: Sequence[int]
    ) -> list[list[int]]:
        """Outputs of an encoder-decoder without the end token, which sources have, at most ``limits`` long.

        ``streams`` are the numbers of the sources among all that are sampled with this seed.
        """

    @abstractmethod
    def continue_texts(
        self, prompts: Sequence[Ids], new_tokens: int, pick: Callable[[Tensor, list[int]], Tensor]
    ) -> list[list[int]]:
        """Tokens that a language model adds: up to the end token, or ``new_tokens`` of them.

        ``pick`` chooses each from logits (B, V) and the numbers of the prompts in their rows.
        """


def without_padding(source_BS: Tensor, source_mask_BS: Tensor | None) -> list[list[int]]:
    """The real tokens of each source."""
    if source_mask_BS is None:
        return source_BS.tolist()
    return [row[mask].tolist() for row, mask in zip(source_BS, source_mask_BS, strict=True)]
