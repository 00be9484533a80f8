"""Experts whose weights are stored in 8 or 4 bits: what they compute, and the reference for it.

Shapes: T tokens, D width, E experts, K experts per token, N rows (visited slots, sorted by expert), n rows of one
chunk, F width of one expert (2F columns up where it is gated).
"""

from typing import NamedTuple

import torch

from moe_hf.ops.dtypes import without_autocast
from moe_hf.ops.experts.activations import RowFunctions
from moe_hf.ops.experts.expert_parts import CHUNK_BYTES, ExpertStack, bias_of
from moe_hf.ops.experts.expert_rows import sort_rows
from moe_hf.ops.experts.generic import generic_experts
from moe_hf.ops.experts.quantized_product import quantized_linear
from moe_hf.ops.experts.quantized_weights import QuantizedWeights, dequantized


class QuantizedStack(NamedTuple):
    """An `ExpertStack` whose weights are in codes; the biases are numbers."""

    up: QuantizedWeights
    down: QuantizedWeights
    up_bias_EF: torch.Tensor | None = None
    down_bias_ED: torch.Tensor | None = None


def quantized_experts(
    x_TD: torch.Tensor, expert_TK: torch.Tensor, weight_TK: torch.Tensor, stack: QuantizedStack, functions: RowFunctions
) -> torch.Tensor:
    """What `dequantized_experts` gives, with one expert's weights as numbers at a time, or none; (T, D).

    There are gradients for the tokens, the routing weights, the biases and what `functions` learn, not for the codes.
    Without gradients, few rows of an expert on a CPU are multiplied in bfloat16: see `quantized_linear`.

    Args:
        x_TD: tokens.
        expert_TK: experts of each token, in [0, E]; from E on they mark slots to skip.
        weight_TK: how much each of them counts.
        stack: the experts.
        functions: what is done to the rows between and after the projections.
    """
    num_experts = len(stack.up.codes)
    dtype = _compute_dtype(x_TD)
    with without_autocast(x_TD):
        if len(x_TD) == 1 and not torch.is_grad_enabled():
            return _one_token(x_TD, expert_TK, weight_TK, stack, functions, dtype)
        widest = max(stack.up.rows, stack.up.columns)
        slot_N, chunks, _ = sort_rows(expert_TK, num_experts, max(1, CHUNK_BYTES // (widest * dtype.itemsize)))
        token_N = slot_N // expert_TK.shape[1]
        weight_N1 = weight_TK.reshape(-1, 1)[slot_N]
        out_TD = torch.zeros_like(x_TD)
        for expert, start, stop, _ in chunks:
            token_n = token_N[start:stop]
            y_nD = _one_expert(x_TD[token_n].to(dtype), stack, functions, expert)
            out_TD.index_add_(0, token_n, (y_nD * weight_N1[start:stop]).to(out_TD.dtype))
        return out_TD


def _one_token(
    x_1D: torch.Tensor,
    expert_1K: torch.Tensor,
    weight_1K: torch.Tensor,
    stack: QuantizedStack,
    functions: RowFunctions,
    dtype: torch.dtype,
) -> torch.Tensor:
    """A step of decoding, in which sorting the few slots would take as long as a product."""
    out_1D, x_1D = torch.zeros_like(x_1D), x_1D.to(dtype)
    for expert, weight in zip(expert_1K[0].tolist(), weight_1K[0].tolist(), strict=True):
        if expert < len(stack.up.codes):
            out_1D.add_(_one_expert(x_1D, stack, functions, expert), alpha=weight)
    return out_1D


def _one_expert(x_nD: torch.Tensor, stack: QuantizedStack, functions: RowFunctions, expert: int) -> torch.Tensor:
    z_nF = _linear(x_nD, stack.up, stack.up_bias_EF, expert)
    y_nD = _linear(functions.activate(z_nF).to(x_nD.dtype), stack.down, stack.down_bias_ED, expert)
    return y_nD if functions.finish is None else functions.finish(y_nD)


def dequantized_experts(
    x_TD: torch.Tensor, expert_TK: torch.Tensor, weight_TK: torch.Tensor, stack: QuantizedStack, functions: RowFunctions
) -> torch.Tensor:
    """The reference: all weights as numbers, and the experts that numbers have."""
    return generic_experts(x_TD, expert_TK, weight_TK, dequantized_stack(stack, _compute_dtype(x_TD)), functions)


def dequantized_stack(stack: QuantizedStack, dtype: torch.dtype) -> ExpertStack:
    """The experts with their weights as numbers."""
    up_EFD, down_EDF = (
        torch.stack([dequantized(weights, expert, dtype) for expert in range(len(weights.codes))])
        for weights in (stack.up, stack.down)
    )
    return ExpertStack(up_EFD, down_EDF, stack.up_bias_EF, stack.down_bias_ED)


def _compute_dtype(x_TD: torch.Tensor) -> torch.dtype:
    device = x_TD.device.type
    return torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else x_TD.dtype


def _linear(x_nI: torch.Tensor, weights: QuantizedWeights, bias_EO: torch.Tensor | None, expert: int) -> torch.Tensor:
    out_nO = quantized_linear(x_nI, weights, expert)
    bias_O = bias_of(bias_EO, expert, out_nO.dtype)
    return out_nO if bias_O is None else out_nO + bias_O
