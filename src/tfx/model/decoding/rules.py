"""What an output may not say, or must: rules on the logits of the next token.

Shapes: N hypotheses, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from tfx.config.schema import EvaluationConfig


@dataclass(frozen=True)
class Ends:
    """Ids of the tokens that frame an output; ``never`` are those that none has."""

    bos: int
    eos: int
    pad: int
    never: tuple[int, ...] = ()


def output_limit(source_length: int, config: EvaluationConfig, context: int) -> int:
    """The longest output, in tokens, for a source of ``source_length`` tokens."""
    return max(1, min(context - 1, int(config.max_length_ratio * source_length + 10)))


class Rules:
    """The rules of a decoding: `apply` changes logits in place, before they become probabilities."""

    def __init__(self, ends: Ends, config: EvaluationConfig, device: torch.device) -> None:
        self._eos, self._config = ends.eos, config
        self._never = torch.tensor(ends.never, dtype=torch.long, device=device) if ends.never else None

    @property
    def reads_texts(self) -> bool:
        """Whether `apply` needs the texts so far, and so waits for the device."""
        return False

    def apply(self, logits_NV: Tensor, produced: Sequence[int], texts: Callable[[], list[list[int]]]) -> None:
        """``produced`` is the number of tokens of each output so far, ``texts`` gives all tokens of each text so far."""
        if self._never is not None:
            logits_NV.index_fill_(1, self._never, -torch.inf)
