"""Linear layers on int8 kernels: 8-bit weights, and activations rounded to 8 bits as they come.

On a CPU the kernel is the one behind `torch.ao.quantization.quantize_dynamic`: activations get one scale and zero
point a call, from their minimum and maximum. On CUDA it is `torch._int_mm`, with a symmetric scale a row. Both
lie behind functions of their own, because torch has announced that such names will move.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from tfx.compression.grid import Grid

# torch._int_mm takes more rows than this, and widths that are multiples of 8.
_LEAST_ROWS = 17


def fits_int8(grid: Grid) -> bool:
    """Whether the kernels can take a grid: 8 bits, symmetric, one scale a row or for all."""
    return (
        grid.bits == 8
        and grid.codebook is None
        and grid.zero is None
        and grid.scale is not None
        and grid.scale.shape[1] == 1
    )


class Int8Linear(nn.Module):
    """A linear layer whose weight is a grid that `fits_int8`; it is run, not trained."""

    def __init__(self, grid: Grid, bias: Tensor | None) -> None:
        super().__init__()
        assert grid.scale is not None
        self.out_features, self.in_features = grid.codes_RC.shape
        codes = (grid.codes_RC.to(torch.int16) - 128).to(torch.int8)
        scale = grid.scale.float().expand(self.out_features, 1).flatten().contiguous()
        bias = None if bias is None else bias.detach().float()
        # The bytes of the weight in memory, however the kernel keeps them.
        self.memory_bytes = codes.numel() + 4 * scale.numel() + (0 if bias is None else 4 * bias.numel())
        self._packed = _pack_cpu(codes, scale, bias) if codes.device.type == "cpu" else None
        self._plain = (codes, scale, bias) if self._packed is None else None

    def forward(self, x: Tensor) -> Tensor:
        """(..., C) to (..., R), in fp32."""
        if self._plain is not None:
            return _linear_cuda(x, *self._plain)
        return torch.ops.quantized.linear_dynamic(x.float(), self._packed, False)


def use_int8(model: nn.Module, grids: Mapping[str, Grid], tied: Mapping[str, str]) -> int:
    """Puts the linear layers whose grids fit on int8 kernels, in place; returns how many.

    ``tied`` gives the stored name of a weight that is stored under another one's (`unique_tensors`).
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


def _pack_cpu(codes_RC: Tensor, scale_R: Tensor, bias_R: Tensor | None) -> Tensor:
    zeros = torch.zeros(len(scale_R), dtype=torch.long)
    with warnings.catch_warnings():
        # Torch says that tensors of this kind will go; the kernel behind them has no successor as fast yet.
        warnings.simplefilter("ignore", UserWarning)
        weight = torch._make_per_channel_quantized_tensor(codes_RC, scale_R.double(), zeros, 0)
    return torch.ops.quantized.linear_prepack(weight, bias_R)


def _linear_cuda(x: Tensor, codes_RC: Tensor, scale_R: Tensor, bias_R: Tensor | None) -> Tensor:
    x_NC = x.reshape(-1, x.shape[-1]).float()
    rows, columns = x_NC.shape
    step_N1 = x_NC.abs().amax(1, keepdim=True).clamp(min=1e-12) / 127
    rounded = (x_NC / step_N1).round().to(torch.int8)
    # Rows and widths that the kernel takes; zeros add nothing.
    missing = -columns % 8
    rounded = nn.functional.pad(rounded, (0, missing, 0, max(0, _LEAST_ROWS - rows)))
    weight = nn.functional.pad(codes_RC, (0, missing, 0, -len(codes_RC) % 8))
    y_NR = torch._int_mm(rounded, weight.t())[:rows, : len(codes_RC)].float() * step_N1 * scale_R
    if bias_R is not None:
        y_NR = y_NR + bias_R
    return y_NR.view(*x.shape[:-1], -1)
