"""Products of rows with one expert's quantised weights: as they lie for few rows on a CPU, else as numbers again.

Shapes: N rows, E experts, O columns out, I columns in, G groups of columns in.
"""

from functools import cache
from typing import Any

import torch
from torch.nn import functional as F

from moe_hf.ops.experts.quantized_weights import QuantizedWeights, dequantized, quantized
from moe_hf.ops.operators import needs_gradient

# Up to so many rows PyTorch's products on codes beat turning the codes into numbers for its plain one: measured on a
# CPU with AVX-512, for 576 x 3072 weights.
FEW_ROWS = {8: 16, 4: 64}
# The 8-bit product reads rows in whole vectors, past the end of others, and faults where one begins at another byte.
_VECTOR = 32
# How far bfloat16 may leave its result from that of float32, relative to the largest.
_TOLERANCE = 2**-5


def quantized_linear(x_NI: torch.Tensor, weights: QuantizedWeights, expert: int) -> torch.Tensor:
    """`F.linear` with one expert's weights, (N, O), with a gradient for `x_NI`.

    Few rows on a CPU, of which no gradient is asked, are multiplied in bfloat16 with sums in float32, by products that
    read each code once. All others get the weights as numbers of their own dtype, which live as long as the product.

    Args:
        x_NI: rows, floating.
        weights: of the experts.
        expert: whose weights.
    """
    if needs_gradient(x_NI):
        return _DequantizedLinear.apply(x_NI, weights.codes, weights.scales, weights.rows, expert)
    if _few_rows(x_NI, weights):
        return _product(x_NI.bfloat16(), weights, expert).to(x_NI.dtype)
    return F.linear(x_NI, dequantized(weights, expert, x_NI.dtype))


def _few_rows(x_NI: torch.Tensor, weights: QuantizedWeights) -> bool:
    bits, num_rows = weights.bits, x_NI.shape[0]
    if not x_NI.is_cpu or not 0 < num_rows <= FEW_ROWS[bits] or x_NI.dtype == torch.float64:
        return False
    return weights.columns % _VECTOR == 0 and is_aligned(weights.codes) and product_runs(bits)


def is_aligned(codes: torch.Tensor) -> bool:
    """Whether the products may read these codes where they lie; those that a file was mapped to may begin anywhere."""
    return codes.data_ptr() % _VECTOR == 0


def _product(x_NI: torch.Tensor, weights: QuantizedWeights, expert: int) -> torch.Tensor:
    x_NI, codes = x_NI.contiguous(), weights.codes[expert]
    if x_NI.data_ptr() % _VECTOR:
        x_NI = x_NI.clone()
    # A model that was cast has its scales in another type, which changed none of them.
    scales = weights.scales[expert].to(torch.bfloat16)
    if weights.bits == 8:
        return torch.ops.aten._weight_int8pack_mm(x_NI, codes, scales)
    group_size = weights.columns // len(scales)
    packed = codes.view(-1, weights.columns // 2)
    return torch.ops.aten._weight_int4pack_mm_for_cpu(x_NI, packed, group_size, scales)[:, : weights.rows]


@cache
def product_runs(bits: int) -> bool:
    """Whether this PyTorch multiplies by codes on this CPU, and reads them as they are stored.

    The order in which the 4-bit product reads follows the CPU's vectors: without AVX-512 it is another.
    """
    generator = torch.Generator().manual_seed(0)
    weights = quantized(torch.randn(1, 64, 64, generator=generator), bits, None if bits == 8 else 32)
    x_NI = torch.randn(2, 64, generator=generator).bfloat16()
    expected = x_NI.float() @ dequantized(weights, 0, torch.float32).t()
    try:
        found = _product(x_NI, weights, 0).float()
    # An operator that is absent, or not built for this CPU.
    except (AttributeError, NotImplementedError, RuntimeError):
        return False
    return bool((found - expected).abs().max() <= _TOLERANCE * expected.abs().max())


class _DequantizedLinear(torch.autograd.Function):
    """A product that keeps the codes for the backward pass, not the numbers made of them."""

    @staticmethod
    def forward(
        ctx: Any, x_NI: torch.Tensor, codes: torch.Tensor, scales: torch.Tensor, rows: int, expert: int
    ) -> torch.Tensor:
        ctx.save_for_backward(codes, scales)
        ctx.rows, ctx.expert = rows, expert
        return F.linear(x_NI, dequantized(QuantizedWeights(codes, scales, rows), expert, x_NI.dtype))

    @staticmethod
    def backward(ctx: Any, dout_NO: torch.Tensor) -> tuple[Any, ...]:
        codes, scales = ctx.saved_tensors
        weight_OI = dequantized(QuantizedWeights(codes, scales, ctx.rows), ctx.expert, dout_NO.dtype)
        return dout_NO @ weight_OI, None, None, None, None
