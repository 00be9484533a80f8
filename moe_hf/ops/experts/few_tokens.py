"""Experts for the few tokens of a decoding step, without gradients: here overhead counts, not products.

Shapes: T tokens, D width, E experts, K experts per token, J = T * K slots, F width of one expert; N rows
(visited slots, sorted by expert), n rows of one expert; I and O columns in and out of a projection.
"""

import torch

from moe_hf.ops.dtypes import without_autocast
from moe_hf.ops.experts.activations import Activation, activate
from moe_hf.ops.experts.cpu_gemm import linear, linear_activated
from moe_hf.ops.experts.expert_parts import ExpertCall, bias_of, expert_of, rows_per_group
from moe_hf.ops.experts.expert_rows import combine_rows, room_for_rows, sort_rows

# Up to here gathering the weights of every slot is cheaper than some 50 microseconds for each expert in a loop.
GATHERED_BYTES = 2**20
# One token alone needs no rows sorted: its loop takes some 20 microseconds for each expert, where gathering takes 40
# and the copies. So many experts it always visits one after the other, and more where each has more weights than that.
LOOPED_EXPERTS = 2
LOOPED_BYTES = 2**15
# Up to here the hidden rows of all experts wait in the processor's cache while the weights stream by, first all up,
# then all down.
HIDDEN_BYTES = 2**20


def few_tokens_experts(call: ExpertCall, activation: Activation) -> torch.Tensor | None:
    """What `reference_experts` gives, (T, D), or None where the tokens are too many for a form of its own."""
    x_TD, expert_TK, _, stack, dtype = call
    num_slots = expert_TK.numel()
    if num_slots == 0 or x_TD.device.type != "cpu":
        return None
    is_one = len(x_TD) == 1
    if is_one and num_slots <= LOOPED_EXPERTS:
        return _one_token(call, activation)
    expert_bytes = stack.up_EFD[0].numel() * stack.up_EFD.element_size()
    if num_slots * expert_bytes <= GATHERED_BYTES and not (is_one and expert_bytes > LOOPED_BYTES):
        # A skipped slot has no weights to gather.
        if int(expert_TK.max()) < len(stack.up_EFD):
            return _gathered(call, activation)
    if is_one:
        return _one_token(call, activation)
    if rows_per_group(stack, dtype) == 0 and num_slots * stack.up_EFD.shape[1] * dtype.itemsize <= HIDDEN_BYTES:
        return _all_up_then_all_down(call, activation)
    return None


def _gathered(call: ExpertCall, activation: Activation) -> torch.Tensor:
    x_TD, expert_TK, weight_TK, stack, dtype = call
    with without_autocast(x_TD):
        expert_J = expert_TK.reshape(-1)
        x_JD1 = x_TD.to(dtype).repeat_interleave(expert_TK.shape[1], dim=0)[..., None]
        z_JF = _product(stack.up_EFD, expert_J, x_JD1, stack.up_bias_EF)
        y_JD = _product(stack.down_EDF, expert_J, activate(z_JF, activation)[..., None], stack.down_bias_ED)
        y_TKD = y_JD.to(x_TD.dtype).view(*expert_TK.shape, -1)
        return torch.bmm(weight_TK[:, None].to(y_TKD.dtype), y_TKD)[:, 0]


def _product(
    weight_EOI: torch.Tensor, expert_J: torch.Tensor, x_JI1: torch.Tensor, bias_EO: torch.Tensor | None
) -> torch.Tensor:
    weight_JOI = weight_EOI.index_select(0, expert_J).to(x_JI1.dtype)
    if bias_EO is None:
        return torch.bmm(weight_JOI, x_JI1)[..., 0]
    return torch.baddbmm(bias_EO.index_select(0, expert_J).to(x_JI1.dtype)[..., None], weight_JOI, x_JI1)[..., 0]


def _one_token(call: ExpertCall, activation: Activation) -> torch.Tensor:
    x_1D, expert_1K, weight_1K, stack, dtype = call
    out_1D = torch.zeros_like(x_1D)
    x_1D = x_1D.to(dtype)
    for expert, weight in zip(expert_1K[0].tolist(), weight_1K[0].tolist(), strict=True):
        if expert >= len(stack.up_EFD):
            continue
        part = expert_of(stack, expert, dtype)
        h_1F = linear_activated(x_1D, part.up_EFD, part.up_bias_EF, activation)
        out_1D.add_(linear(h_1F, part.down_EDF, part.down_bias_ED), alpha=weight)
    return out_1D


def _all_up_then_all_down(call: ExpertCall, activation: Activation) -> torch.Tensor:
    x_TD, expert_TK, weight_TK, stack, dtype = call
    with without_autocast(x_TD):
        slot_N, chunks, _ = sort_rows(expert_TK, len(stack.up_EFD), expert_TK.numel())
        x_ND = x_TD.index_select(0, slot_N // expert_TK.shape[1]).to(dtype)
        y_ND = room_for_rows(slot_N, weight_TK, x_TD)
        # Each cast, where there is one, is for one expert at a time.
        hidden = []
        for expert, start, stop, _ in chunks:
            up_FD, up_bias_F = stack.up_EFD[expert].to(dtype), bias_of(stack.up_bias_EF, expert, dtype)
            hidden.append(linear_activated(x_ND[start:stop], up_FD, up_bias_F, activation))
        for (expert, start, stop, _), h_nF in zip(chunks, hidden, strict=True):
            down_DF, down_bias_D = stack.down_EDF[expert].to(dtype), bias_of(stack.down_bias_ED, expert, dtype)
            y_ND[start:stop] = linear(h_nF, down_DF, down_bias_D)
        return combine_rows(y_ND, slot_N, weight_TK)
