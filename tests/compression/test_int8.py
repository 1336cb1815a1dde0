import pytest
import torch
from torch import nn

from tfx.compression.grid import Grid
from tfx.compression.int8 import Int8Linear, fits_int8, kernel_saturates, linear_int8, pad_codes, use_int8


def grid_of(weight):
    scale = weight.abs().amax(1, keepdim=True) / 127
    codes = (weight / scale).round().clamp(-127, 127) + 128
    return Grid(codes.to(torch.uint8), 8, scale=scale)


def problem(rows=5, outputs=24, inputs=40):
    generator = torch.Generator().manual_seed(rows)
    return torch.randn(rows, inputs, generator=generator), torch.randn(outputs, inputs, generator=generator)


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("shape", [(5,), (2, 3)])
def test_the_layer_multiplies_weights_on_their_grid_with_activations_of_eight_bits(bias, shape):
    """The reference rounds activations to 256 levels between their minimum and maximum, 0 among them.

    Where the processor's kernel would overflow they are 128: never are results those of an overflow.
    """
    _, weight = problem()
    x = torch.randn(*shape, 40, generator=torch.Generator().manual_seed(1))
    grid = grid_of(weight)
    offset = torch.arange(24.0) if bias else None
    low, high = min(0.0, float(x.min())), max(0.0, float(x.max()))
    most = 127 if kernel_saturates() else 255
    step = (high - low) / most
    zero = round(-low / step)
    rounded = ((x / step).round() + zero).clamp(0, most).sub(zero) * step
    expected = nn.functional.linear(rounded, grid.values(), offset)
    found = Int8Linear(grid, offset)(x)
    # A tie may round either way: one step of one activation.
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=2 * step * float(weight.abs().max()))
    assert float((found - expected).abs().mean()) < 0.1 * step * float(weight.abs().max())


@pytest.mark.parametrize(("rows", "outputs", "inputs"), [(1, 24, 40), (20, 9, 13), (40, 16, 8)])
def test_the_gpu_kernel_pads_to_sizes_that_it_supports(rows, outputs, inputs):
    x, weight = problem(rows, outputs, inputs)
    grid = grid_of(weight)
    step = x.abs().amax(1, keepdim=True) / 127
    expected = nn.functional.linear((x / step).round() * step, grid.values())
    codes = (grid.codes_RC.to(torch.int16) - 128).to(torch.int8)
    padded = pad_codes(codes)
    assert all(size % 8 == 0 for size in padded.shape)
    found = linear_int8(x, padded, grid.scale.flatten(), None)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


def test_only_layers_that_the_kernels_support_are_replaced():
    model = nn.ModuleDict({"a": nn.Linear(8, 4), "b": nn.Linear(8, 4), "c": nn.Linear(8, 4), "d": nn.Linear(8, 4)})
    codes = torch.full((4, 8), 130, dtype=torch.uint8)
    one = torch.ones(4, 1)
    grids = {
        "a.weight": Grid(codes, 8, scale=one),
        "b.weight": Grid(codes, 8, scale=torch.ones(4, 2)),
        "c.weight": Grid(codes, 8, scale=one, zero=torch.ones(4, 1, dtype=torch.uint8)),
    }
    assert [fits_int8(grid) for grid in grids.values()] == [True, False, False]
    assert use_int8(model, grids, {"d.weight": "a.weight"}) == 2
    assert [isinstance(module, Int8Linear) for module in model.values()] == [True, False, False, True]
    assert Int8Linear(grids["a.weight"], None).memory_bytes == 4 * 8 + 4 * 4
