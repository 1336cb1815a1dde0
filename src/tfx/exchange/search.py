"""The outputs of a model by our own search, one by one or in batches: of ours, and of what runs inside it."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from tfx.config.schema import EvaluationConfig
from tfx.data.tokenizer import Tokenizer
from tfx.exchange.target import Ids, padded
from tfx.model.decoding import Ends, continue_text, make_picker, translate
from tfx.model.transformer import Transformer


class Search:
    """Decodes for `tfx.exchange.target.Reopened`."""

    def __init__(self, model: Transformer, ends: Ends) -> None:
        self.model, self.ends = model, ends

    def greedy(self, inputs: Sequence[Ids], limits: Sequence[int]) -> list[list[int]]:
        """One by one, so that no padding is part of a comparison."""
        config = EvaluationConfig(method="greedy")
        found: list[list[int]] = []
        for row, limit in zip(inputs, limits, strict=True):
            if self.model.architecture.is_seq2seq:
                source, limit_B = torch.tensor([list(row)]), torch.tensor([limit])
                found += translate(self.model, source, None, limit_B, self.ends, config)
            else:
                pick = make_picker(config, 0, torch.device("cpu"))
                found.append(continue_text(self.model, list(row), limit, self.ends.eos, pick))
        return found

    def beam(self, sources: Sequence[Ids], limit: int, width: int) -> list[list[int]]:
        """A batch, without a length penalty: each library has another formula for one."""
        source, mask = padded(sources, self.ends.pad)
        config = EvaluationConfig(method="beam", beam=width, length_penalty=0.0)
        return translate(self.model, source, mask.bool(), torch.full((len(sources),), limit), self.ends, config)


def ends_of(tokenizer: Tokenizer) -> Ends:
    """The tokens that frame an output."""
    return Ends(tokenizer.bos, tokenizer.eos, tokenizer.pad, tokenizer.never)
