"""Attention over short sequences while training on a CPU, forward and backward.

torch's fused kernel works head by head and pays a few microseconds for each, more than the products of a sentence take.
Here all heads of a batch go through the same few products of stacks, in the dtype of what comes in; softmax and rotary
angles are in fp32. Keys are padded to the width of the processor's vectors, below which torch's softmax is several
times slower.

Shapes: B batch, T query positions, S key positions, H heads, K head width.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

# The most queries times keys of a head up to which fp32 was faster here than in the fused kernel, and the widest head:
# where rotary angles turn q and k, which costs less here, and where nothing does.
_MOST_TURNED, _WIDEST_TURNED = 96 * 96, 128
_MOST_PLAIN, _WIDEST_PLAIN = 24 * 24, 64
# The same for bfloat16, which the fused kernel multiplies slowly, by the squared width of a head.
_MOST_REDUCED = 16
# The floats of a vector.
_LEAST_KEYS = 16

Rotary = tuple[Tensor, Tensor]


def is_short(queries: int, keys: int, head_width: int, rotary: Rotary | None, dtype: torch.dtype) -> bool:
    """Whether sequences are so short that `attend`, with its products in ``dtype``, is faster than torch's kernel."""
    if dtype == torch.bfloat16:
        return queries * keys <= _MOST_REDUCED * head_width**2
    if rotary is not None:
        return queries * keys <= _MOST_TURNED and head_width <= _WIDEST_TURNED
    return queries * keys <= _MOST_PLAIN and head_width <= _WIDEST_PLAIN


def attend(
    q_side_BTE: Tensor, kv_side_BSE: Tensor | None, heads: int, mask: Tensor | None, rotary: Rotary | None
) -> Tensor:
    """Mixed values (B, T, H K) of q, k and v that stand side by side in the last dimension.

    ``q_side`` holds all three, (B, T, 3 H K), where there is no ``kv_side``; else q, and ``kv_side`` k and v, (B, S,
    2 H K). ``mask`` is boolean, True where a key may be seen, and broadcasts to (B, 1, T, S). Rotary angles turn q, k.
    """
    hidden: Tensor = _Attend.apply(q_side_BTE, kv_side_BSE, heads, mask, rotary)
    return hidden


class _Attend(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, q_side: Tensor, kv_side: Tensor | None, heads: int, mask: Tensor | None, rotary: Rotary | None
    ) -> Tensor:
        q, k, v = _parts(q_side, kv_side, heads)
        rows, _, queries, width = q.shape
        keys = k.shape[2]
        padded = max(keys, _LEAST_KEYS)
        exact = q.dtype if rotary is None else torch.float32
        q_BHTK, k_BHSK, v_BHSK = _laid_out(q, queries, exact), _laid_out(k, padded, exact), _laid_out(v, padded)
        if rotary is not None:
            _turn(q_BHTK, rotary, 1)
            _turn(k_BHSK[:, :, :keys], rotary, 1)
        q_BHTK, k_BHSK, scale = q_BHTK.to(q.dtype), k_BHSK.to(q.dtype), width**-0.5
        scores = _product(q_BHTK.flatten(0, 1), k_BHSK.flatten(0, 1).mT, scale).view(rows, heads, queries, padded)
        scores = scores.to(torch.float32)
        if mask is not None:
            hidden = torch.zeros(mask.shape).masked_fill_(~mask, -math.inf)
            scores[..., :keys].add_(hidden)
        if padded > keys:
            scores[..., keys:] = -math.inf
        weights_BHTS = scores.softmax(-1).to(q.dtype)
        mixed = torch.bmm(weights_BHTS.flatten(0, 1), v_BHSK.flatten(0, 1)).view_as(q_BHTK)
        ctx.save_for_backward(q_BHTK, k_BHSK, v_BHSK, weights_BHTS, *(rotary or ()))
        ctx.keys, ctx.is_own = keys, kv_side is None
        return mixed.transpose(1, 2).reshape(rows, queries, heads * width)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        q_BHTK, k_BHSK, v_BHSK, weights_BHTS, *angles = ctx.saved_tensors
        rows, heads, queries, width = q_BHTK.shape
        scale = width**-0.5
        grad_NTK = grads[0].view(rows, queries, heads, width).transpose(1, 2).reshape(-1, queries, width)
        weights_NTS = weights_BHTS.flatten(0, 1)
        grad_v_NSK = torch.bmm(weights_NTS.mT, grad_NTK)
        grad_weights_NTS = torch.bmm(grad_NTK, v_BHSK.flatten(0, 1).mT)
        grad_scores_NTS = torch._softmax_backward_data(grad_weights_NTS, weights_NTS, -1, weights_NTS.dtype)
        grad_q_NTK = _product(grad_scores_NTS, k_BHSK.flatten(0, 1), scale)
        grad_k_NSK = _product(grad_scores_NTS.mT, q_BHTK.flatten(0, 1), scale)
        keys, parts = ctx.keys, 3 if ctx.is_own else 1
        grad_q_side = grad_NTK.new_empty(rows, queries, parts * heads * width)
        grad_kv_side = None if ctx.is_own else grad_NTK.new_empty(rows, keys, 2 * heads * width)
        q, k, v = _parts(grad_q_side, grad_kv_side, heads)
        grad_q, grad_k = grad_q_NTK.view_as(q_BHTK), grad_k_NSK.view_as(k_BHSK)[:, :, :keys]
        if angles:
            grad_q, grad_k = grad_q.to(torch.float32), grad_k.to(torch.float32)
            _turn(grad_q, (angles[0], angles[1]), -1)
            _turn(grad_k, (angles[0], angles[1]), -1)
        q.copy_(grad_q)
        k.copy_(grad_k)
        v.copy_(grad_v_NSK.view_as(v_BHSK)[:, :, :keys])
        return grad_q_side, grad_kv_side, None, None, None


def _parts(q_side: Tensor, kv_side: Tensor | None, heads: int) -> tuple[Tensor, ...]:
    """Views (B, H, T or S, K) of q, k and v."""
    sides = [(q_side, 3)] if kv_side is None else [(q_side, 1), (kv_side, 2)]
    found: list[Tensor] = []
    for side, count in sides:
        found += side.view(*side.shape[:2], count, heads, -1).permute(2, 0, 3, 1, 4).unbind(0)
    return tuple(found)


def _product(a_NRC: Tensor, b_NCS: Tensor, scale: float) -> Tensor:
    """Their products times ``scale``, without a pass for it."""
    return torch.baddbmm(a_NRC.new_empty(()), a_NRC, b_NCS, beta=0, alpha=scale)


def _laid_out(x_BHSK: Tensor, length: int, dtype: torch.dtype | None = None) -> Tensor:
    """A copy in one piece, with positions of zeros up to ``length``."""
    rows, heads, own, width = x_BHSK.shape
    out = x_BHSK.new_empty(rows, heads, length, width, dtype=dtype)
    out[:, :, :own] = x_BHSK
    out[:, :, own:] = 0
    return out


def _turn(x_BHTK: Tensor, rotary: Rotary, direction: int) -> None:
    """Turns queries or keys in place by the angles of their positions, or back.

    As `tfx.model.positions.rotate`, but in passes over whole heads: those over half of one are too short to be fast.
    """
    cos_TK, sin_TK = rotary
    half = cos_TK.shape[1] // 2
    sign_K = torch.full((2 * half,), float(direction))
    sign_K[:half] = -direction
    other_BHTK = torch.empty_like(x_BHTK, memory_format=torch.contiguous_format)
    other_BHTK[..., :half] = x_BHTK[..., half:]
    other_BHTK[..., half:] = x_BHTK[..., :half]
    x_BHTK.mul_(cos_TK).addcmul_(other_BHTK, sin_TK * sign_K)
