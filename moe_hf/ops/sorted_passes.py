"""Forward and backward pass of experts over rows sorted by expert, one expert after another.

Shapes: T tokens, D width, E experts, K experts per token, N rows (visited slots, sorted by expert), n rows of one
chunk, F width of one expert; z has F columns, or 2F where the activation is gated.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch

from moe_hf.ops.activations import Activation, activate, activate_backward
from moe_hf.ops.cpu_gemm import linear, linear_activated
from moe_hf.ops.expert_parts import (
    StackGradients,
    add_product,
    expert_of,
    room_for_gradients,
    rows_per_chunk,
    without_autocast,
)
from moe_hf.ops.expert_rows import ExpertRows, combine_rows, room_for_rows, sort_rows
from moe_hf.ops.experts import ExpertStack


def forward_pass(
    x_TD: torch.Tensor,
    expert_TK: torch.Tensor,
    weight_TK: torch.Tensor,
    stack: ExpertStack,
    activation: Activation,
    dtype: torch.dtype,
    z_chunks: list[torch.Tensor] | None,
) -> tuple[torch.Tensor, ExpertRows]:
    """The output, (T, D), and the rows; pre-activations are appended to `z_chunks` where it is given."""
    with without_autocast(x_TD):
        rows = sort_rows(expert_TK, len(stack.up_EFD), rows_per_chunk(stack, dtype))
        token_N = rows.slot_N // expert_TK.shape[1]
        y_ND = room_for_rows(rows.slot_N, weight_TK, x_TD)
        for expert, start, stop, _ in rows.chunks:
            up_FD, down_DF, up_bias_F, down_bias_D = expert_of(stack, expert, dtype)
            x_nD = x_TD.index_select(0, token_N[start:stop]).to(dtype)
            if z_chunks is None:
                h_nF = linear_activated(x_nD, up_FD, up_bias_F, activation)
            else:
                z_chunks.append(linear(x_nD, up_FD, up_bias_F))
                h_nF = activate(z_chunks[-1], activation)
            y_ND[start:stop] = linear(h_nF, down_DF, down_bias_D)
        return combine_rows(y_ND, rows.slot_N, weight_TK), rows


class Needs(NamedTuple):
    """Which gradients are asked for; `stack` says it for the parts of an `ExpertStack`."""

    x: bool
    weight: bool
    stack: tuple[bool, ...]


def backward_pass(
    dout_TD: torch.Tensor,
    x_TD: torch.Tensor,
    weight_TK: torch.Tensor,
    stack: ExpertStack,
    rows: ExpertRows,
    z_chunks: Sequence[torch.Tensor],
    activation: Activation,
    dtype: torch.dtype,
    needs: Needs,
) -> tuple[torch.Tensor | None, torch.Tensor | None, StackGradients]:
    """The gradients of x, of the routing weights and of the stack, each where it is needed.

    All are linear in a row's routing weight, so that it is multiplied where the rows are D wide, never F.
    """
    dstack = room_for_gradients(stack, needs.stack, rows.unused)
    token_N = rows.slot_N // weight_TK.shape[1]
    weight_N1 = weight_TK.reshape(-1, 1)[rows.slot_N].to(x_TD.dtype)
    dweight_N = weight_TK.new_empty(len(token_N)) if needs.weight else None
    dx_ND = room_for_rows(rows.slot_N, weight_TK, x_TD) if needs.x else None
    with without_autocast(x_TD):
        for (expert, start, stop, is_first), z_nF in zip(rows.chunks, z_chunks, strict=True):
            token_n, weight_n1 = token_N[start:stop], weight_N1[start:stop]
            weights, gradients = expert_of(stack, expert, dtype), dstack.of(expert)
            dout_nD = dout_TD.index_select(0, token_n)
            dh_nF = linear(dout_nD.to(dtype), weights.down_EDF.t())
            h_nF, dz_nF = activate(z_nF, activation), activate_backward(dh_nF, z_nF, activation)
            if dweight_N is not None:
                dweight_N[start:stop] = _routing_gradient(dout_nD.to(dtype), dh_nF, h_nF, weights.down_bias_ED)
            dout_nD = dout_nD.mul_(weight_n1).to(dtype)
            if gradients.down_EDF is not None:
                add_product(gradients.down_EDF, dout_nD.t(), h_nF, is_first)
            if gradients.down_bias_ED is not None:
                one_1n = dout_nD.new_ones(1, stop - start)
                add_product(gradients.down_bias_ED[None], one_1n, dout_nD, is_first)
            if dx_ND is not None:
                dx_ND[start:stop] = linear(dz_nF, weights.up_EFD.t())
            if gradients.up_EFD is not None:
                x_nD = x_TD.index_select(0, token_n).mul_(weight_n1).to(dtype)
                add_product(gradients.up_EFD, dz_nF.t(), x_nD, is_first)
            if gradients.up_bias_EF is not None:
                add_product(gradients.up_bias_EF[None], weight_n1.t().to(dtype), dz_nF, is_first)
        dx_TD = None if dx_ND is None else combine_rows(dx_ND, rows.slot_N, weight_TK)
    if dweight_N is None:
        return dx_TD, None, dstack
    # Skipped slots keep a gradient of exactly zero.
    dweight_S = weight_TK.new_zeros(weight_TK.numel()).index_copy_(0, rows.slot_N, dweight_N)
    return dx_TD, dweight_S.view(weight_TK.shape), dstack


def _routing_gradient(
    dout_nD: torch.Tensor, dh_nF: torch.Tensor, h_nF: torch.Tensor, down_bias_D: torch.Tensor | None
) -> torch.Tensor:
    """<dout, h W2^T + b2> for each row, without the down projection: <dout W2, h> + <dout, b2>."""
    dweight_n = (dh_nF * h_nF).sum(dim=-1)
    return dweight_n if down_bias_D is None else dweight_n + dout_nD @ down_bias_D
