"""The block of every family: attention, cross-attention and feed-forward, each with its norm."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

from tfx.model.architecture import GATED, Architecture, BlockShape
from tfx.model.attention import Attention, Bias
from tfx.model.dropout import Dropout
from tfx.model.linear import Linear, between, factor_layer


def make_norm(architecture: Architecture) -> nn.Module:
    """LayerNorm (Ba 2016) or RMSNorm (Zhang 2019) over the model width."""
    if architecture.norm == "rmsnorm":
        return nn.RMSNorm(architecture.width, eps=architecture.epsilon)
    return nn.LayerNorm(architecture.width, eps=architecture.epsilon, bias=architecture.bias)


_ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "relu": torch.relu,
    "relu2": lambda x: functional.relu(x).square(),
    "gelu": functional.gelu,
    "gelu_tanh": partial(functional.gelu, approximate="tanh"),
    "silu": functional.silu,
}


class FeedForward(nn.Module):
    """Two linear layers around an activation; ``swiglu`` and ``geglu`` add a third as a gate (Shazeer 2020)."""

    def __init__(
        self, width: int, ffn: int, *, activation: str, bias: bool, dropout: float, inputs: int | None = None
    ) -> None:
        """``inputs`` is the width of what it reads, if that is not what it returns."""
        super().__init__()
        self.activation = _ACTIVATIONS[GATED.get(activation, activation)]
        self.up = Linear(inputs or width, ffn, bias=bias)
        self.gate = Linear(inputs or width, ffn, bias=bias) if activation in GATED else None
        self.down = Linear(ffn, width, bias=bias)
        self.dropout = Dropout(dropout)

    def forward(self, x_BTD: Tensor) -> Tensor:
        hidden = between(x_BTD, self.up, self.down)
        if self.gate is not None:
            hidden = self.activation(between(x_BTD, self.gate, self.down)) * hidden
        else:
            hidden = self.activation(hidden)
        return self.down(self.dropout(hidden))


class Block(nn.Module):
    """One residual block, with cross-attention if its shape has cross heads.

    ``pre``: x + f(norm(x)) (Xiong 2020, arXiv 2002.04745); ``post``: norm(x + f(x)) (Vaswani 2017).
    """

    def __init__(
        self,
        architecture: Architecture,
        shape: BlockShape,
        *,
        dropout: float,
        attention_dropout: float,
        ffn_dropout: float,
    ) -> None:
        super().__init__()
        self.pre = architecture.norm_position == "pre"

        def biased(own: bool | None) -> bool:
            return architecture.bias if own is None else own

        def attention(heads: int, kv_heads: int, *, alibi: bool = False, buckets: int = 0) -> Attention:
            return Attention(
                architecture.width,
                heads,
                kv_heads,
                architecture.head_width,
                bias=biased(architecture.attention_bias),
                qk_norm=architecture.qk_norm,
                dropout=attention_dropout,
                alibi=alibi,
                buckets=buckets,
            )

        self.attention = attention(
            shape.heads,
            shape.kv_heads,
            alibi=architecture.positions == "alibi",
            buckets=architecture.relative_buckets if architecture.positions == "relative" else 0,
        )
        self.attention_norm = make_norm(architecture)
        self.cross = attention(shape.cross_heads, shape.cross_kv_heads) if shape.cross_heads else None
        self.cross_norm = make_norm(architecture) if shape.cross_heads else None
        self.ffn = FeedForward(
            architecture.width,
            shape.ffn,
            activation=architecture.activation,
            bias=biased(architecture.ffn_bias),
            dropout=ffn_dropout,
        )
        self.ffn_norm = make_norm(architecture)
        self.dropout = Dropout(dropout)
        for name, rank in shape.ranks:
            factor_layer(self, name, rank)

    def attended(self, x_BTD: Tensor) -> Tensor:
        """What self-attention reads (B, T, D) of what enters the block."""
        return self.attention_norm(x_BTD) if self.pre else x_BTD

    def forward(
        self,
        x_BTD: Tensor,
        bias: Bias,
        memory_BSD: Tensor | None = None,
        memory_bias: Bias | None = None,
        rotary: tuple[Tensor, Tensor] | None = None,
    ) -> Tensor:
        """Returns (B, T, D)."""
        if self.pre:
            x_BTD = self.dropout.add(x_BTD, self.attention(self.attention_norm(x_BTD), None, bias, rotary))
            if self.cross is not None and self.cross_norm is not None:
                assert memory_bias is not None
                mixed = self.cross(self.cross_norm(x_BTD), memory_BSD, memory_bias)
                x_BTD = self.dropout.add(x_BTD, mixed)
            return self.dropout.add(x_BTD, self.ffn(self.ffn_norm(x_BTD)))
        x_BTD = self.attention_norm(self.dropout.add(x_BTD, self.attention(x_BTD, None, bias, rotary)))
        if self.cross is not None and self.cross_norm is not None:
            assert memory_bias is not None
            mixed = self.cross(x_BTD, memory_BSD, memory_bias)
            x_BTD = self.cross_norm(self.dropout.add(x_BTD, mixed))
        return self.ffn_norm(self.dropout.add(x_BTD, self.ffn(x_BTD)))


class BlockStack(nn.Module):
    """A sequence of blocks, gone through ``passes`` times, with the final norm that pre-norm needs.

    So block i of n is layer i, n + i, 2n + i, ...: "cycle" of Takase & Kiyono 2021 (arXiv 2104.06022); with one block
    it is that of a Universal Transformer (Dehghani 2019, arXiv 1807.03819) without its embedding of depth.
    In training, ``layer_dropout`` skips whole blocks (LayerDrop, Fan 2020, arXiv 1909.11556), and
    ``checkpointing`` recomputes activations in the backward pass (Chen 2016, arXiv 1604.06174).
    """

    def __init__(
        self,
        architecture: Architecture,
        shapes: tuple[BlockShape, ...],
        *,
        layer_dropout: float,
        **dropouts: float,
    ) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(Block(architecture, shape, **dropouts) for shape in shapes)
        self.norm = make_norm(architecture) if architecture.norm_position == "pre" else nn.Identity()
        self.passes = architecture.passes
        self.layer_dropout = layer_dropout
        self.checkpointing = False

    @property
    def layers(self) -> list[Block]:
        """The block of each layer, in the order in which they run."""
        blocks: list[Block] = list(self.blocks)  # type: ignore[arg-type]
        return blocks * self.passes

    def forward(
        self,
        x_BTD: Tensor,
        bias: Bias,
        memory_BSD: Tensor | None = None,
        memory_bias: Bias | None = None,
        rotary: tuple[Tensor, Tensor] | None = None,
        states: list[Tensor] | None = None,
    ) -> Tensor:
        """Returns (B, T, D); ``states`` gets what enters each layer, and what leaves the last one."""
        for block in self.layers:
            if states is not None:
                states.append(x_BTD)
            skips = None
            if self.training and self.layer_dropout:
                skips = self._draw(x_BTD.device)
                if skips is True:
                    continue
            arguments = (x_BTD, bias, memory_BSD, memory_bias, rotary)
            if self.training and self.checkpointing:
                y_BTD = checkpoint(block, *arguments, use_reentrant=False)
            else:
                y_BTD = block(*arguments)
            x_BTD = torch.where(skips, x_BTD, y_BTD) if torch.is_tensor(skips) else y_BTD
        if states is not None:
            states.append(x_BTD)
        return self.norm(x_BTD)

    def _draw(self, device: torch.device) -> bool | Tensor:
        """Whether to skip a block. Compiled code must not depend on it: there it is a tensor, and the block runs."""
        if torch.compiler.is_compiling():
            return torch.rand((), device=device) < self.layer_dropout
        return bool(torch.rand(()).item() < self.layer_dropout)
