"""Multi-head attention with grouped queries, QK-norm, and rotary, ALiBi or relative positions.

Shapes: B batch, T query positions, S key positions, D model width, H query heads, G key/value heads,
K head width.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from tfx.model.linear import Linear, can_join, current_products, joined, outputs_of
from tfx.model.positions import alibi_bias, alibi_slopes, rotate
from tfx.model.short_attention import attend, is_short


@dataclass
class Bias:
    """The mask and the bias that attention applies to its scores.

    ``mask`` is boolean, True where a query may see a key, and broadcasts to (B, H, T, S). ``causal`` hides
    later keys inside the kernel; it is never set together with a mask or a distance. ``distance_TS`` is the
    position of each key minus that of each query, for ALiBi; each head multiplies it by its own slope.
    ``bucket_TS`` is the bucket of that distance, for relative positions; each head adds its own bias for it.
    """

    mask: Tensor | None = None
    causal: bool = False
    distance_TS: Tensor | None = None
    bucket_TS: Tensor | None = None


class Attention(nn.Module):
    """Scaled dot-product attention (Vaswani 2017), with separate q, k, v, o projections.

    The projections are separate so that each can be pruned by head and quantized on its own. ``kv_heads``
    below ``heads`` gives grouped-query attention (Ainslie 2023, arXiv 2305.13245); ``qk_norm`` normalises
    each head's queries and keys (Henry 2020, arXiv 2010.04245). With ``alibi`` (Press 2021, arXiv
    2108.12409) the slopes are saved with the weights, so that a head keeps its slope when others are pruned.
    With ``buckets`` each head learns a bias for each bucket of distances (Raffel 2020, arXiv 1910.10683).
    """

    slopes: Tensor | None
    relative_bias: nn.Parameter | None

    def __init__(
        self,
        width: int,
        heads: int,
        kv_heads: int,
        head_width: int,
        *,
        bias: bool,
        qk_norm: bool,
        dropout: float,
        alibi: bool = False,
        buckets: int = 0,
    ) -> None:
        super().__init__()
        self.heads, self.kv_heads, self.head_width, self.dropout = heads, kv_heads, head_width, dropout
        self.q = Linear(width, heads * head_width, bias=bias)
        self.k = Linear(width, kv_heads * head_width, bias=bias)
        self.v = Linear(width, kv_heads * head_width, bias=bias)
        self.o = Linear(heads * head_width, width, bias=bias)
        self.q_norm = nn.RMSNorm(head_width, eps=1e-6) if qk_norm else None
        self.k_norm = nn.RMSNorm(head_width, eps=1e-6) if qk_norm else None
        self.register_buffer("slopes", alibi_slopes(heads) if alibi else None)
        self.register_parameter("relative_bias", nn.Parameter(torch.zeros(buckets, heads)) if buckets else None)

    def forward(
        self,
        x_BTD: Tensor,
        memory_BSD: Tensor | None,
        bias: Bias,
        rotary: tuple[Tensor, Tensor] | None = None,
    ) -> Tensor:
        """Attends from ``x`` to ``memory`` (None: to itself); returns (B, T, D)."""
        if self._is_joint(x_BTD, memory_BSD, bias, rotary):
            return self._joint(x_BTD, memory_BSD, bias, rotary)
        q_BHTK, k_BHSK, v_BHSK = self.projections(x_BTD, memory_BSD, rotary)
        out = functional.scaled_dot_product_attention(
            q_BHTK,
            k_BHSK,
            v_BHSK,
            attn_mask=self._mask(bias, q_BHTK.dtype),
            dropout_p=self.dropout if self.training else 0.0,
            is_causal=bias.causal,
        )
        return self.o(out.transpose(1, 2).flatten(2))

    def _is_joint(
        self,
        x_BTD: Tensor,
        memory_BSD: Tensor | None,
        bias: Bias,
        rotary: tuple[Tensor, Tensor] | None,
    ) -> bool:
        """Whether this is a step of a training on a CPU, of the model or of a teacher, that `attend` is made for."""
        plain = self.q_norm is None and self.slopes is None and self.relative_bias is None
        plain = plain and self.kv_heads == self.heads and not self.dropout
        in_step = self.training or current_products() != torch.float32  # as of teachers
        if not (in_step and plain and x_BTD.device.type == "cpu"):
            return False
        if x_BTD.dtype != torch.float32 or torch.compiler.is_compiling() or torch.is_autocast_enabled("cpu"):
            return False
        keys = (x_BTD if memory_BSD is None else memory_BSD).shape[1]
        layers = [self.q, self.k, self.v, self.o]
        return is_short(x_BTD.shape[1], keys, self.head_width, rotary, current_products()) and can_join(layers)

    def _joint(
        self, x_BTD: Tensor, memory_BSD: Tensor | None, bias: Bias, rotary: tuple[Tensor, Tensor] | None
    ) -> Tensor:
        mask = bias.mask
        if bias.causal:
            mask = torch.ones(x_BTD.shape[1], x_BTD.shape[1], dtype=torch.bool).tril()
        if memory_BSD is None:
            q_side_BTE, kv_side_BSE = joined(x_BTD, [self.q, self.k, self.v]), None
        else:
            q_side_BTE, kv_side_BSE = joined(x_BTD, [self.q]), joined(memory_BSD, [self.k, self.v])
        return self.o(attend(q_side_BTE, kv_side_BSE, self.heads, mask, rotary))

    def weights(
        self,
        x_BTD: Tensor,
        memory_BSD: Tensor | None,
        bias: Bias,
        rotary: tuple[Tensor, Tensor] | None = None,
    ) -> Tensor:
        """The attention weights of `forward`, (B, H, T, S), from the same kernel with the identity as values."""
        q_BHTK, k_BHSK, _ = self.projections(x_BTD, memory_BSD, rotary)
        identity_BHSS = torch.eye(k_BHSK.shape[2], dtype=q_BHTK.dtype, device=x_BTD.device).expand(
            *k_BHSK.shape[:2], -1, -1
        )
        return functional.scaled_dot_product_attention(
            q_BHTK, k_BHSK, identity_BHSS, attn_mask=self._mask(bias, q_BHTK.dtype), is_causal=bias.causal
        )

    def projections(
        self, x_BTD: Tensor, memory_BSD: Tensor | None, rotary: tuple[Tensor, Tensor] | None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Queries (B, H, T, K), keys and values (B, H, S, K) as `forward` compares and mixes them.

        Query heads that share keys and values each get them.
        """
        if memory_BSD is None:
            q_BTE, k_BSE, v_BSE = outputs_of(x_BTD, [self.q, self.k, self.v])
        else:
            q_BTE, (k_BSE, v_BSE) = self.q(x_BTD), outputs_of(memory_BSD, [self.k, self.v])
        q_BHTK = self._split(q_BTE, self.heads, self.q_norm)
        k_BGSK = self._split(k_BSE, self.kv_heads, self.k_norm)
        v_BGSK = self._split(v_BSE, self.kv_heads, None)
        if rotary is not None:
            q_BHTK, k_BGSK = rotate(q_BHTK, *rotary), rotate(k_BGSK, *rotary)
        if self.kv_heads == self.heads:
            return q_BHTK, k_BGSK, v_BGSK
        group = self.heads // self.kv_heads
        return q_BHTK, k_BGSK.repeat_interleave(group, dim=1), v_BGSK.repeat_interleave(group, dim=1)

    def _mask(self, bias: Bias, dtype: torch.dtype) -> Tensor | None:
        if bias.distance_TS is not None and self.slopes is not None:
            added = alibi_bias(self.slopes, bias.distance_TS)
        elif bias.bucket_TS is not None and self.relative_bias is not None:
            added = self.relative_bias[bias.bucket_TS].permute(2, 0, 1).unsqueeze(0)
        else:
            return bias.mask
        if bias.mask is not None:
            added = added.masked_fill(~bias.mask, -torch.inf)
        return added.to(dtype)

    def _split(self, x_BTD: Tensor, heads: int, norm: nn.Module | None) -> Tensor:
        x_BTHK = x_BTD.view(x_BTD.shape[0], x_BTD.shape[1], heads, self.head_width)
        if norm is not None:
            x_BTHK = norm(x_BTHK)
        return x_BTHK.transpose(1, 2)
