"""Linear layers on int8 kernels: 8-bit weights, and activations rounded to 8 bits on the fly.

The CPU kernel is the one behind `torch.ao.quantization.quantize_dynamic`. Activations get one scale and one zero
point per call, from their minimum and maximum, in 7 bits if the processor cannot accumulate 8-bit products. The
CUDA kernel is `torch._int_mm`, with a symmetric scale per row of activations. Separate functions wrap both kernels,
because torch has announced that their names will move.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from functools import cache

import torch
from torch import Tensor, nn

from tfx.compression.grid import Grid

# torch._int_mm needs at least this many rows, and widths that are multiples of 8.
_MIN_ROWS = 17
_WIDTH_MULTIPLE = 8


def fits_int8(grid: Grid) -> bool:
    """Whether the kernels support a grid: 8 bits, symmetric, one scale per row or per tensor."""
    return (
        grid.bits == 8
        and grid.codebook is None
        and grid.zero is None
        and not grid.trellis
        and grid.scale is not None
        and grid.scale.shape[1] == 1
    )


class Int8Linear(nn.Module):
    """A linear layer whose weight is a grid that `fits_int8`; for inference only."""

    def __init__(self, grid: Grid, bias: Tensor | None) -> None:
        super().__init__()
        assert grid.scale is not None
        self.out_features, self.in_features = grid.codes_RC.shape
        codes = (grid.codes_RC.to(torch.int16) - 128).to(torch.int8)
        scale = grid.scale.float().expand(self.out_features, 1).flatten().contiguous()
        bias = None if bias is None else bias.detach().float()
        # Bytes that codes, scales and bias take in memory, whatever the kernel's own layout.
        self.memory_bytes = codes.numel() + 4 * scale.numel() + (0 if bias is None else 4 * bias.numel())
        self._packed = _pack_cpu(codes, scale, bias) if codes.device.type == "cpu" else None
        self._plain = (pad_codes(codes), scale, bias) if self._packed is None else None

    def forward(self, x: Tensor) -> Tensor:
        """Maps (..., C) to (..., R), in fp32."""
        if self._plain is not None:
            return linear_int8(x, *self._plain)
        return torch.ops.quantized.linear_dynamic(x.float(), self._packed, kernel_saturates())


def use_int8(model: nn.Module, grids: Mapping[str, Grid], tied: Mapping[str, str]) -> int:
    """Replaces the linear layers whose grids fit by layers on int8 kernels, in place; returns their number.

    ``tied`` maps the name of a tied weight to the name that it is stored under (`unique_tensors`).
    """
    found = [(name, module) for name, module in model.named_modules() if isinstance(module, nn.Linear)]
    count = 0
    for name, module in found:
        weight = f"{name}.weight"
        grid = grids.get(tied.get(weight, weight))
        if grid is None or not fits_int8(grid):
            continue
        parent, _, child = name.rpartition(".")
        replacement = Int8Linear(grid.to(module.weight.device), module.bias)
        setattr(model.get_submodule(parent), child, replacement.train(module.training))
        count += 1
    return count


@cache
def kernel_saturates() -> bool:
    """Whether the CPU kernel adds pairs of products in 16 bits, where two large ones overflow.

    It does on processors without instructions for 8-bit products (VNNI). It then needs activations of 7 bits
    (torch's ``reduce_range``), or its results are wrong. One trial per process finds out.
    """
    ones = torch.full((4, 64), 127, dtype=torch.int8)
    packed = _pack_cpu(ones, torch.ones(4), None)
    x = torch.full((1, 64), 255.0)
    x[0, 0] = 0.0
    return not torch.allclose(torch.ops.quantized.linear_dynamic(x, packed, False), x @ ones.float().t(), rtol=1e-3)


def _pack_cpu(codes_RC: Tensor, scale_R: Tensor, bias_R: Tensor | None) -> Tensor:
    zeros = torch.zeros(len(scale_R), dtype=torch.long)
    with warnings.catch_warnings():
        # Torch warns that it will remove tensors of this kind, but no other kernel is as fast yet.
        warnings.simplefilter("ignore", UserWarning)
        weight = torch._make_per_channel_quantized_tensor(codes_RC, scale_R.double(), zeros, 0)
    return torch.ops.quantized.linear_prepack(weight, bias_R)


def pad_codes(codes_RC: Tensor) -> Tensor:
    """Pads codes with zeros to widths that the CUDA kernel accepts."""
    rows, columns = codes_RC.shape
    return nn.functional.pad(codes_RC, (0, -columns % _WIDTH_MULTIPLE, 0, -rows % _WIDTH_MULTIPLE))


def linear_int8(x: Tensor, padded_RC: Tensor, scale_R: Tensor, bias_R: Tensor | None) -> Tensor:
    """Applies a linear layer by `torch._int_mm`, with codes from `pad_codes`: (..., C) to (..., R)."""
    x_NC = x.reshape(-1, x.shape[-1]).float()
    rows, columns = x_NC.shape
    step_N1 = x_NC.abs().amax(1, keepdim=True).clamp(min=1e-12) / 127
    rounded = (x_NC / step_N1).round().to(torch.int8)
    # Pad to rows and widths that the kernel accepts; zeros add nothing.
    rounded = nn.functional.pad(rounded, (0, padded_RC.shape[1] - columns, 0, max(0, _MIN_ROWS - rows)))
    y_NR = torch._int_mm(rounded, padded_RC.t())[:rows, : len(scale_R)].float() * step_N1 * scale_R
    if bias_R is not None:
        y_NR = y_NR + bias_R
    return y_NR.view(*x.shape[:-1], -1)
