"""Experts whose weights lie in memory as oneDNN wants them: a second copy, for CPUs, without gradients.

Shapes: T tokens, D width, E experts, K experts per token, F width of one expert (2F up where gated).
"""

from typing import NamedTuple

import torch

from moe_hf.base.errors import ConfigError
from moe_hf.ops.experts.activations import Activation
from moe_hf.ops.experts.cpu_gemm import onednn_available, pointwise
from moe_hf.ops.experts.expert_parts import ExpertStack, bias_of, rows_per_chunk
from moe_hf.ops.experts.expert_rows import combine_rows, room_for_rows, sort_rows


class PackedStack(NamedTuple):
    """The weights of an `ExpertStack`, one opaque tensor for each expert; the biases are the stack's own."""

    up_E: list[torch.Tensor]
    down_E: list[torch.Tensor]
    up_bias_EF: torch.Tensor | None
    down_bias_ED: torch.Tensor | None
    rows_per_chunk: int


def pack_stack(stack: ExpertStack) -> PackedStack:
    """A second copy of the weights in oneDNN's order, which spares each call the reordering.

    Raises:
        ConfigError: the weights are not on a CPU, not float32 or bfloat16, or oneDNN is absent, turned off or without
            their dtype on this CPU.
    """
    device, dtype = stack.up_EFD.device.type, stack.up_EFD.dtype
    if device != "cpu" or dtype not in (torch.float32, torch.bfloat16):
        raise ConfigError(f"only float32 and bfloat16 weights on a CPU can be packed, got {dtype} on {device!r}")
    if not onednn_available(dtype):
        raise ConfigError(
            f"packing needs a PyTorch that multiplies {dtype} with oneDNN on this CPU, and "
            "torch.backends.mkldnn.enabled; use plain weights"
        )
    with torch.no_grad():
        up_E, down_E = ([_packed(part) for part in stacked] for stacked in (stack.up_EFD, stack.down_EDF))
    return PackedStack(up_E, down_E, stack.up_bias_EF, stack.down_bias_ED, rows_per_chunk(stack, dtype))


def _packed(weight_OI: torch.Tensor) -> torch.Tensor:
    return torch.ops.mkldnn._reorder_linear_weight(weight_OI.detach().contiguous())


@torch.no_grad()
def packed_experts(
    x_TD: torch.Tensor, expert_TK: torch.Tensor, weight_TK: torch.Tensor, stack: PackedStack, activation: Activation
) -> torch.Tensor:
    """`reference_experts` without gradients, (T, D); `x_TD` has the dtype of the weights."""
    rows = sort_rows(expert_TK, len(stack.up_E), stack.rows_per_chunk)
    token_N = rows.slot_N // expert_TK.shape[1]
    y_ND = room_for_rows(rows.slot_N, weight_TK, x_TD)
    for expert, start, stop, _ in rows.chunks:
        x_nD = x_TD.index_select(0, token_N[start:stop])
        up_bias_F, down_bias_D = (bias_of(bias, expert, x_TD.dtype) for bias in (stack.up_bias_EF, stack.down_bias_ED))
        h_nF = pointwise(x_nD, stack.up_E[expert], up_bias_F, activation)
        y_ND[start:stop] = pointwise(h_nF, stack.down_E[expert], down_bias_D)
    return combine_rows(y_ND, rows.slot_N, weight_TK)
