"""An exported encoder alone: its hidden states are compared with ours."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from tfx.compression.checkpoint import LoadedModel
from tfx.exchange.target import Reopened, ReopenedEncoder
from tfx.run.export_check import ROWS_AT_ONCE, Comparison


@dataclass(frozen=True)
class StateComparison(Comparison):
    """Differences of the hidden states of ``tokens`` tokens."""

    tokens: int

    def words(self, where: str) -> dict[str, str]:
        return {
            "compared on": f"{self.inputs:,} of {where}, {self.tokens:,} tokens",
            "hidden states": f"differ {self._by}",
        }

    def differences(self) -> str:
        return f"hidden states {self._by}, on {self.inputs:,} texts"


@torch.inference_mode()
def compare_states(loaded: LoadedModel, theirs: Reopened, texts: Sequence[str]) -> StateComparison:
    """Runs both encoders on texts, framed by begin and end token, and cut to the context."""
    assert isinstance(theirs, ReopenedEncoder)  # the target's check refused what it cannot run
    tokenizer, context = loaded.tokenizer, loaded.model.architecture.context
    rows = [[tokenizer.bos, *ids[: context - 2], tokenizer.eos] for ids in tokenizer.encode(texts)]
    differences = []
    for start in range(0, len(rows), ROWS_AT_ONCE):
        part = rows[start : start + ROWS_AT_ONCE]
        for row, other in zip(part, theirs.hidden(part), strict=True):
            own_SD = loaded.model.encode(torch.tensor([row]), None)[0]
            differences.append((own_SD - other).abs())
    every_ND = torch.cat(differences)
    return StateComparison(len(rows), float(every_ND.max()), float(every_ND.mean()), len(every_ND))
