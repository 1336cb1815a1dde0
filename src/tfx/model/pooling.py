"""How the states of an encoder become one state of the text, which a classifier projects to its labels.

Shapes: B batch, S source positions, D model width.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from tfx.model.architecture import Architecture
from tfx.model.dropout import Dropout


class Pooling(nn.Module):
    """The state of the first token (Devlin 2019), the mean or the maximum of all (Kim 2014), or Lin's (2017) mean.

    The weights of that mean come there from two layers and several heads; here from one product with each state.
    """

    def __init__(self, width: int, *, kind: str, pooler: bool, bias: bool, dropout: float) -> None:
        """``pooler``: a dense layer with tanh follows, as in BERT (Devlin 2019, arXiv 1810.04805)."""
        super().__init__()
        self.kind = kind
        self.score = nn.Linear(width, 1, bias=False) if kind == "attention" else None
        self.dense = nn.Linear(width, width, bias=bias) if pooler else None
        self.dropout = Dropout(dropout)

    def forward(self, states_BSD: Tensor, mask_BS: Tensor | None) -> Tensor:
        """Returns (B, D); ``mask`` is True on real tokens, None if all are real."""
        pooled_BD = self._pooled(states_BSD, mask_BS)
        if self.dense is not None:
            pooled_BD = torch.tanh(self.dense(pooled_BD))
        return self.dropout(pooled_BD)

    def _pooled(self, states_BSD: Tensor, mask_BS: Tensor | None) -> Tensor:
        if self.kind == "first":
            return states_BSD[:, 0]
        if self.score is not None:
            score_BS = self.score(states_BSD).squeeze(-1).float()
            if mask_BS is not None:
                score_BS = score_BS.masked_fill(~mask_BS, -torch.inf)
            return torch.einsum("bs,bsd->bd", score_BS.softmax(1).to(states_BSD.dtype), states_BSD)
        if self.kind == "max":
            if mask_BS is not None:
                states_BSD = states_BSD.masked_fill(~mask_BS.unsqueeze(-1), -torch.inf)
            return states_BSD.amax(1)
        if mask_BS is None:
            return states_BSD.mean(1)
        weight_BS1 = (mask_BS / mask_BS.sum(1, keepdim=True)).to(states_BSD.dtype).unsqueeze(-1)
        return (states_BSD * weight_BS1).sum(1)


def make_pooling(architecture: Architecture, dropout: float) -> Pooling:
    """The pooling of a classifier."""
    return Pooling(
        architecture.width,
        kind=architecture.pooling,
        pooler=architecture.pooler,
        bias=architecture.bias,
        dropout=dropout,
    )
