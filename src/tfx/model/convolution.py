"""A convolution before the first block of an encoder: each position also reads the tokens beside it, in their order.

Shapes: B batch, S source positions, D model width, N neighbours.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from tfx.model.architecture import Architecture
from tfx.model.layers import FeedForward

# The width of the hidden layer, in widths of the model: that of a block may be pruned.
HIDDEN = 2


class Convolution(nn.Module):
    """Adds a feed-forward layer on each position's neighbours and itself (Mohamed 2019, arXiv 1904.11660).

    With few texts attention alone hardly learns which words stand together, and pairs of words decide many labels.
    """

    def __init__(self, architecture: Architecture, dropout: float) -> None:
        super().__init__()
        self.size = architecture.convolution
        self.ffn = FeedForward(
            architecture.width,
            HIDDEN * architecture.width,
            activation=architecture.activation,
            bias=architecture.bias,
            dropout=dropout,
            inputs=self.size * architecture.width,
        )

    def forward(self, x_BSD: Tensor, mask_BS: Tensor | None) -> Tensor:
        """Returns (B, S, D); ``mask`` is True on real tokens, None if all are real. Padding counts as zeros."""
        real_BSD = x_BSD if mask_BS is None else x_BSD * mask_BS.unsqueeze(-1).to(x_BSD.dtype)
        beside = self.size // 2
        length = x_BSD.shape[1]
        padded_BLD = functional.pad(real_BSD, (0, 0, beside, beside))
        near_BSN = torch.cat([padded_BLD[:, start : start + length] for start in range(self.size)], -1)
        hidden: Tensor = self.ffn(near_BSN)
        return x_BSD + hidden
