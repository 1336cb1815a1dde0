"""The head of a classifier after an inner block, by which a text may leave early (Xin 2020, arXiv 2004.12993)."""

from __future__ import annotations

from torch import Tensor, nn

from tfx.model.architecture import Architecture
from tfx.model.layers import make_norm
from tfx.model.pooling import make_pooling


class ExitHead(nn.Module):
    """Norm, pooling and layer for labels, as the model has them after its last block."""

    def __init__(self, architecture: Architecture, dropout: float) -> None:
        super().__init__()
        self.norm = make_norm(architecture) if architecture.norm_position == "pre" else nn.Identity()
        self.pooling = make_pooling(architecture, dropout)
        self.output = nn.Linear(architecture.width, architecture.output_count)

    def pooled(self, states_BSD: Tensor, mask_BS: Tensor | None) -> Tensor:
        """The state of each text (B, D); ``mask`` is True on real tokens, None if all are real."""
        return self.pooling(self.norm(states_BSD), mask_BS)

    def forward(self, states_BSD: Tensor, mask_BS: Tensor | None) -> Tensor:
        """Logits (B, C)."""
        return self.output(self.pooled(states_BSD, mask_BS))
