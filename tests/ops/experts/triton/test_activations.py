"""The activations inside kernels are those outside, with their slopes."""

# mypy: disable-error-code="no-untyped-def"

import pytest
import torch
import triton
import triton.language as tl

from moe_hf.ops.experts.activations import ACTIVATIONS
from moe_hf.ops.experts.triton.activations import activate_tile, activation_slope_tile


@triton.jit
def _both(z_N, h_N, slope_N, NAME: tl.constexpr, SIZE: tl.constexpr):
    index = tl.arange(0, SIZE)
    z = tl.load(z_N + index)
    tl.store(h_N + index, activate_tile(z, NAME))
    tl.store(slope_N + index, activation_slope_tile(z, NAME))


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_values_and_slopes_are_those_of_the_table(name, device):
    z = torch.linspace(-6, 6, 64, device=device)
    h, slope = torch.empty_like(z), torch.empty_like(z)
    _both[(1,)](z, h, slope, NAME=name, SIZE=64)
    torch.testing.assert_close(h, ACTIVATIONS[name].forward(z), rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(slope, ACTIVATIONS[name].backward(torch.ones_like(z), z), rtol=1e-5, atol=1e-6)
