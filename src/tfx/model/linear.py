"""The linear layer of every block, whole or as two factors, which can compute its matrix products in bfloat16."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

# A CPU library builds a new kernel for each new number of rows, which takes longer than running it once.
# Batches differ in their rows. Rounded up to a multiple of this number, they share a few dozen kernels.
_ROW_MULTIPLE = 128
# Multiplications from which on oneDNN was faster than MKL for fp32.
_LARGE = 1 << 20
# The same where the weight is in oneDNN's own layout.
_LARGE_PACKED = 1 << 19
_HAS_ONEDNN = torch.backends.mkldnn.is_available() and hasattr(torch.ops.mkldnn, "_linear_pointwise")
_LINEAR = torch.ops.mkldnn._linear_pointwise.default if _HAS_ONEDNN else None


def reduce_rows(x_ND: Tensor, dtype: torch.dtype) -> Tensor:
    """``x`` in ``dtype``; on a CPU, rows of zeros below it round up the count, so that batches share kernels."""
    rows = x_ND.shape[0]
    padded = -(-rows // _ROW_MULTIPLE) * _ROW_MULTIPLE
    # Compiled code must not depend on the number of rows.
    if torch.compiler.is_compiling() or x_ND.device.type != "cpu" or padded == rows:
        return x_ND.to(dtype)
    out = torch.empty(padded, x_ND.shape[1], dtype=dtype)
    out[:rows] = x_ND
    out[rows:] = 0
    return out


class _ReducedLinear(torch.autograd.Function):
    """y = x W^T + b with all three matrix products in ``dtype``, and everything else in fp32.

    Autocast would also cast the activations between layers. On a CPU this costs a small model more than the
    faster products save. The backward pass reads the input in ``dtype``, in half the memory.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, dtype: torch.dtype) -> Tensor:
        rows = x.numel() // x.shape[-1]
        x_ND, weight_OD = reduce_rows(x.reshape(rows, -1), dtype), weight.to(dtype)
        y_NO = (x_ND @ weight_OD.t())[:rows].to(x.dtype)
        if bias is not None:
            y_NO += bias
        ctx.save_for_backward(x_ND, weight_OD)
        return y_NO.view(*x.shape[:-1], -1)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        x_ND, weight_OD = ctx.saved_tensors
        grad = grads[0]
        grad_NO = grad.reshape(-1, grad.shape[-1])
        reduced_NO = reduce_rows(grad_NO, x_ND.dtype)
        grad_x = grad_weight = grad_bias = None
        if ctx.needs_input_grad[0]:
            grad_x = (reduced_NO @ weight_OD)[: len(grad_NO)].to(grad.dtype).view(*grad.shape[:-1], -1)
        if ctx.needs_input_grad[1]:
            grad_weight = (reduced_NO.t() @ x_ND).to(grad.dtype)
        if ctx.needs_input_grad[2]:
            grad_bias = grad_NO.sum(0)
        return grad_x, grad_weight, grad_bias, None


# The dtype of the products of every `Linear`: what `products_in` sets.
_products = torch.float32


@contextmanager
def products_in(dtype: torch.dtype) -> Iterator[None]:
    """Inside, every `Linear` has its matrix products in ``dtype``, forwards and in blocks that run again backwards."""
    global _products
    before, _products = _products, dtype
    try:
        yield
    finally:
        _products = before


def current_products() -> torch.dtype:
    """The dtype of the products now."""
    return _products


class Linear(nn.Linear):
    """`torch.nn.Linear`, with its matrix products in another dtype inside `products_in`."""

    def forward(self, x: Tensor) -> Tensor:
        if _products != torch.float32:
            return _ReducedLinear.apply(x, self.weight, self.bias, _products)
        if not torch.compiler.is_compiling() and torch.is_inference_mode_enabled():
            return inference_product(x, self.weight, self.bias)
        return functional.linear(x, self.weight, self.bias)


def inference_product(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """x W^T + b without gradients, by the faster of torch's two kernels on a CPU.

    Large fp32 products go to oneDNN. Torch's own choice is MKL, which leaves the widest vectors of some processors
    unused: on an AMD EPYC of 2025 it took 2.6 times as long. For small products the call of oneDNN costs more than it
    saves.
    """
    large = x.numel() * weight.shape[0] >= _LARGE and x.dtype == weight.dtype == torch.float32
    if large and _HAS_ONEDNN and x.device.type == "cpu":
        return _onednn(x, weight, bias)
    return functional.linear(x, weight, bias)


class Product:
    """`inference_product` of rows (N, C) with a fixed weight, called thousands of times.

    With ``copies`` the weight is laid out once as the kernels read it. Otherwise each call of few rows would do so
    anew, which for oneDNN takes as long as the product. oneDNN also builds a kernel for each number of rows that it has
    not met, so rows below ``fewest`` do not go there.
    """

    def __init__(self, weight: Tensor, bias: Tensor | None, fewest: int = 1, *, copies: bool = True) -> None:
        self._weight, self._bias, self._copies = weight.detach(), bias, copies
        is_plain = weight.dtype == torch.float32 and weight.device.type == "cpu" and _HAS_ONEDNN
        large = _LARGE_PACKED if copies else _LARGE
        self._many = max(fewest, -(-large // max(1, weight.numel()))) if is_plain else sys.maxsize
        self._for_many: Tensor | None = None
        self._for_few: Tensor | None = None

    def __call__(self, x_NC: Tensor) -> Tensor:
        """Returns (N, R)."""
        if x_NC.shape[0] >= self._many:
            if self._for_many is None:
                self._for_many = self._weight
                if self._copies:
                    self._for_many = torch.ops.mkldnn._reorder_linear_weight(self._weight, x_NC.shape[0])
            return _onednn(x_NC, self._for_many, self._bias)
        if self._for_few is None:
            self._for_few = self._weight.t().contiguous() if self._copies else self._weight.t()
        if self._bias is None:
            return torch.mm(x_NC, self._for_few)
        return torch.addmm(self._bias, x_NC, self._for_few)


def _onednn(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    # No public function of torch multiplies fp32 by oneDNN.
    return _LINEAR(x, weight, bias, "none", [], "")  # type: ignore[misc, no-any-return]


class Factored(nn.Module):
    """A linear layer whose matrix is a product, y = W2 (W1 x) + b: ``first`` is W1 (rank, inputs), ``second`` W2."""

    def __init__(self, inputs: int, outputs: int, rank: int, *, bias: bool) -> None:
        super().__init__()
        self.first = Linear(inputs, rank, bias=False)
        self.second = Linear(rank, outputs, bias=bias)

    def forward(self, x: Tensor) -> Tensor:
        return self.second(self.first(x))  # type: ignore[no-any-return]

    @property
    def weight(self) -> Tensor:
        """The product of its factors, (outputs, inputs)."""
        return self.second.weight @ self.first.weight

    @property
    def bias(self) -> Tensor | None:
        """The bias of its output."""
        return self.second.bias


def factor_layer(block: nn.Module, name: str, rank: int) -> None:
    """Replaces a linear layer of a block by one of two factors, whose weights are new."""
    parent, _, child = name.rpartition(".")
    layer = block.get_submodule(name)
    assert isinstance(layer, Linear)
    factored = Factored(layer.in_features, layer.out_features, rank, bias=layer.bias is not None)
    setattr(block.get_submodule(parent), child, factored)


def joined(x: Tensor, layers: Sequence[Linear]) -> Tensor:
    """The outputs of several layers of one input side by side in the last dimension, by one product."""
    weight = torch.cat([layer.weight for layer in layers])
    bias = None if layers[0].bias is None else torch.cat([layer.bias for layer in layers])
    if _products != torch.float32:
        return _ReducedLinear.apply(x, weight, bias, _products)
    return functional.linear(x, weight, bias)


def can_join(layers: Sequence[nn.Module]) -> bool:
    """Whether nothing watches or replaces a layer, so that its own output need not exist."""
    return all(type(layer) is Linear and not (layer._forward_hooks or layer._forward_pre_hooks) for layer in layers)
