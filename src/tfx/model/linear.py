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
    return _side_by_side([x_ND], dtype)


def _side_by_side(parts_ND: Sequence[Tensor], dtype: torch.dtype) -> Tensor:
    """One or several tensors of as many rows, as `reduce_rows` has them."""
    first_ND = parts_ND[0]
    rows = first_ND.shape[0]
    padded = -(-rows // _ROW_MULTIPLE) * _ROW_MULTIPLE
    # Compiled code must not depend on the number of rows.
    if torch.compiler.is_compiling() or first_ND.device.type != "cpu":
        padded = rows
    if padded == rows and len(parts_ND) == 1:
        return first_ND.to(dtype)
    out = torch.empty(padded, sum(part_ND.shape[1] for part_ND in parts_ND), dtype=dtype, device=first_ND.device)
    begin = 0
    for part_ND in parts_ND:
        end = begin + part_ND.shape[1]
        out[:rows, begin:end] = part_ND
        begin = end
    out[rows:] = 0
    return out


class _ReducedLinears(torch.autograd.Function):
    """y = x W^T + b of one layer or several, by one product in ``dtype``; its output is in ``out_dtype``.

    Takes the weight and the bias of each layer in turn; returns the output of each or, ``side_by_side``, one of all.
    The backward pass, too, has one product for the input and one for the weights.

    Autocast would also cast the activations between layers. On a CPU this costs a small model more than the
    faster products save. The backward pass reads the input in ``dtype``, in half the memory.
    """

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, dtype: torch.dtype, out_dtype: torch.dtype, side_by_side: bool, *parameters: Tensor | None
    ) -> tuple[Tensor, ...]:
        rows = x.numel() // x.shape[-1]
        weights = [weight for weight in parameters[::2] if weight is not None]
        biases: Sequence[Tensor | None] = parameters[1::2]
        ctx.widths, ctx.side_by_side = [len(weight) for weight in weights], side_by_side
        ctx.x_dtype, ctx.weight_dtype = x.dtype, weights[0].dtype
        x_ND, weight_OD = reduce_rows(x.reshape(rows, -1), dtype), _below(weights, dtype)
        y_NO = (x_ND @ weight_OD.t())[:rows]
        if side_by_side:
            given = [bias for bias in biases if bias is not None]
            parts_NP, biases = [y_NO], [torch.cat(given) if given else None]
        else:
            parts_NP = list(y_NO.split(ctx.widths, 1))
        outputs = []
        for part_NP, bias in zip(parts_NP, biases, strict=True):
            output_NP = part_NP.to(out_dtype)
            if bias is not None:
                output_NP += bias.to(out_dtype)
            outputs.append(output_NP.view(*x.shape[:-1], -1))
        ctx.save_for_backward(x_ND, weight_OD)
        return tuple(outputs)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        x_ND, weight_OD = ctx.saved_tensors
        needs_x, _, _, _, *needs = ctx.needs_input_grad
        grads_NP = [grad.reshape(-1, grad.shape[-1]) for grad in grads]
        reduced_NO = _side_by_side(grads_NP, x_ND.dtype)
        rows = len(grads_NP[0])
        grad_x = None
        if needs_x:
            grad_x = (reduced_NO @ weight_OD)[:rows].to(ctx.x_dtype).view(*grads[0].shape[:-1], -1)
        found: list[Tensor | None] = [None] * len(needs)
        if any(needs[::2]):
            found[::2] = [part_PD.to(ctx.weight_dtype) for part_PD in (reduced_NO.t() @ x_ND).split(ctx.widths)]
        if any(needs[1::2]):
            parts_NP = grads_NP[0].split(ctx.widths, 1) if ctx.side_by_side else grads_NP
            found[1::2] = [
                part_NP.sum(0, dtype=ctx.weight_dtype) if need else None
                for part_NP, need in zip(parts_NP, needs[1::2], strict=True)
            ]
        return grad_x, None, None, None, *found


def _below(weights: Sequence[Tensor], dtype: torch.dtype) -> Tensor:
    """The weights one below the other, in ``dtype``."""
    if len(weights) == 1:
        return weights[0].to(dtype)
    out_OD = torch.empty(sum(map(len, weights)), weights[0].shape[1], dtype=dtype, device=weights[0].device)
    for part_PD, weight in zip(out_OD.split([len(weight) for weight in weights]), weights, strict=True):
        part_PD.copy_(weight)
    return out_OD


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


def reduced_outputs(x: Tensor, layers: Sequence[nn.Module]) -> tuple[Tensor, ...]:
    """The output of each layer, in the dtype of its weight, by one product in the dtype that `products_in` sets."""
    outputs: tuple[Tensor, ...] = _ReducedLinears.apply(
        x, _products, layers[0].weight.dtype, False, *_parameters(layers)
    )
    return outputs


def _parameters(layers: Sequence[nn.Module]) -> list[Tensor | None]:
    return [parameter for layer in layers for parameter in (layer.weight, layer.bias)]  # type: ignore[misc]


class Linear(nn.Linear):
    """`torch.nn.Linear`, with its matrix products in another dtype inside `products_in`."""

    def forward(self, x: Tensor) -> Tensor:
        if _products != torch.float32:
            return reduced_outputs(x, [self])[0]
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
    return _LINEAR(x, weight, bias, "none", [], "")  # type: ignore[misc]


class Factored(nn.Module):
    """A linear layer whose matrix is a product, y = W2 (W1 x) + b: ``first`` is W1 (rank, inputs), ``second`` W2."""

    def __init__(self, inputs: int, outputs: int, rank: int, *, bias: bool) -> None:
        super().__init__()
        self.first = Linear(inputs, rank, bias=False)
        self.second = Linear(rank, outputs, bias=bias)

    def forward(self, x: Tensor) -> Tensor:
        return self.second(self.first(x))

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
    """The outputs of several layers of one input side by side in the last dimension, by one product.

    They are for other products to read, and stay in the dtype that `products_in` sets.
    """
    if _products != torch.float32:
        output: Tensor = _ReducedLinears.apply(x, _products, _products, True, *_parameters(layers))[0]
        return output
    bias = None if layers[0].bias is None else torch.cat([layer.bias for layer in layers])
    return functional.linear(x, torch.cat([layer.weight for layer in layers]), bias)


def outputs_of(x: Tensor, layers: Sequence[nn.Module]) -> Sequence[Tensor]:
    """The output of each of several layers of one input: by one product on a CPU where `products_in` sets its dtype.

    The input is then cast once for all of them, and has one gradient and not the sum of several, which took 4 % of a
    step at a width of 512. A compiler sees to the casts itself.
    """
    return reduced_outputs(x, layers) if _casts(x) and can_join(layers) else [layer(x) for layer in layers]


def between(x: Tensor, layer: nn.Module, reader: nn.Module) -> Tensor:
    """The output of a layer for the product of ``reader``: on a CPU in the dtype that `products_in` sets.

    So neither it nor what is computed of it is cast there and back, and half as many bytes move.
    """
    return joined(x, [layer]) if _casts(x) and can_join([layer, reader]) else layer(x)  # type: ignore[list-item]


def _casts(x: Tensor) -> bool:
    """Whether products are in another dtype than ``x``, and nothing but this module sees to the casts."""
    return _products != torch.float32 and x.device.type == "cpu" and not torch.compiler.is_compiling()


def can_join(layers: Sequence[nn.Module]) -> bool:
    """Whether nothing watches or replaces a layer, so that its own output need not exist."""
    return all(type(layer) is Linear and not (layer._forward_hooks or layer._forward_pre_hooks) for layer in layers)
