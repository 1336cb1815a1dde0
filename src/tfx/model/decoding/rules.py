"""What an output may not say, or must: rules on the logits of the next token.

Shapes: N hypotheses, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence
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

    def __init__(
        self,
        ends: Ends,
        config: EvaluationConfig,
        device: torch.device,
        prefixes: Sequence[Sequence[int]] | None = None,
    ) -> None:
        """``prefixes`` are the tokens that each output of the batch begins with."""
        self._eos, self._device = ends.eos, device
        self._least, self._ngram, self._penalty = config.min_length, config.no_repeat_ngram, config.repetition_penalty
        self._never = torch.tensor(ends.never, dtype=torch.long, device=device) if ends.never else None
        self._prefixes = prefixes if prefixes is not None and any(prefixes) else None

    @property
    def reads_texts(self) -> bool:
        """Whether `apply` needs the texts so far, and so waits for the device."""
        return self._ngram > 0 or self._penalty != 1.0

    def apply(
        self,
        logits_NV: Tensor,
        produced: int | Sequence[int],
        texts: Tensor | Sequence[Sequence[int]],
        numbers: Sequence[int],
    ) -> None:
        """Changes the logits of the token that follows each text.

        ``produced`` is the number of tokens of each output so far, ``texts`` holds all tokens of each text so far (not
        read unless `reads_texts`), ``numbers`` says which input of the batch each row belongs to.
        """
        counts = [produced] * len(logits_NV) if isinstance(produced, int) else produced
        if self.reads_texts:
            texts = texts.tolist() if isinstance(texts, Tensor) else texts
            if self._penalty != 1.0 and any(texts):
                self._penalise(logits_NV, texts)
            if self._ngram:
                self._forbid_repeats(logits_NV, texts)
        if self._never is not None:
            logits_NV.index_fill_(1, self._never, -torch.inf)
        if self._least and (short := [row for row, count in enumerate(counts) if count < self._least]):
            logits_NV[short, self._eos] = -torch.inf
        if self._prefixes is not None:
            self._force(logits_NV, counts, numbers)

    def _penalise(self, logits_NV: Tensor, texts: Sequence[Sequence[int]]) -> None:
        """Makes tokens that a text has less likely (Keskar 2019, arXiv 1909.05858, section 4.1)."""
        rows = [row for row, text in enumerate(texts) for _ in set(text)]
        tokens = [token for text in texts for token in set(text)]
        found = logits_NV[rows, tokens]
        logits_NV[rows, tokens] = torch.where(found > 0, found / self._penalty, found * self._penalty)

    def _forbid_repeats(self, logits_NV: Tensor, texts: Sequence[Sequence[int]]) -> None:
        """Forbids the last token of every n-gram that a text has already (Paulus 2017, arXiv 1705.04304)."""
        before = self._ngram - 1
        rows, tokens = [], []
        for row, text in enumerate(texts):
            last = list(text[len(text) - before :]) if before else []
            for start in range(len(text) - before):
                if list(text[start : start + before]) == last:
                    rows.append(row)
                    tokens.append(text[start + before])
        if rows:
            logits_NV[rows, tokens] = -torch.inf

    def _force(self, logits_NV: Tensor, counts: Sequence[int], numbers: Sequence[int]) -> None:
        """Where a prefix goes on, its next token is certain."""
        assert self._prefixes is not None
        forced = [
            (row, self._prefixes[number][count])
            for row, (number, count) in enumerate(zip(numbers, counts, strict=True))
            if count < len(self._prefixes[number])
        ]
        if forced:
            rows, tokens = (list(part) for part in zip(*forced, strict=True))
            logits_NV[rows] = -torch.inf
            logits_NV[rows, tokens] = 0.0
