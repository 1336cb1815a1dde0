"""One output of a decoding, and the logits that all decoding starts from."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor, nn

from tfx.model.linear import inference_product
from tfx.model.transformer import Transformer


@dataclass
class Output:
    """An output without begin and end tokens, and its score: the log-probability, normalised by length in a beam."""

    tokens: list[int]
    score: float


def logits_behind(model: Transformer, hidden_ND: Tensor) -> Tensor:
    """The logits (N, V) of the next tokens, in fp32 and in memory of their own."""
    layer = model.output
    if type(layer) is not nn.Linear:  # on kernels of its own
        return model.project(hidden_ND).float()
    return inference_product(hidden_ND, layer.weight, layer.bias).float()
