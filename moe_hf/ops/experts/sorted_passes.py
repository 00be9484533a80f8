"""Forward and backward pass of experts over rows sorted by expert, group after group of experts.

Shapes: T tokens, D width, E experts, K experts per token, N rows (visited slots, sorted by expert), n rows of one
group, r rows of one chunk, F width of one expert; I and O columns in and out
of a projection, P and Q those of any; z has F columns, or 2F where the activation is gated.
"""

from collections.abc import Sequence

import torch

from moe_hf.ops.dtypes import without_autocast
from moe_hf.ops.experts.activations import Activation, activate, activate_backward
from moe_hf.ops.experts.cpu_gemm import linear, linear_activated, linear_into
from moe_hf.ops.experts.expert_parts import (
    ExpertCall,
    Gradients,
    Keep,
    Needs,
    add_product,
    bias_of,
    room_for_gradients,
    rows_per_chunk,
    rows_per_group,
)
from moe_hf.ops.experts.expert_rows import (
    Chunk,
    ExpertRows,
    combine_rows,
    group_chunks,
    room_for_rows,
    sort_rows,
    spread_slots,
)


def forward_pass(activation: Activation, call: ExpertCall, keep: Keep | None) -> tuple[torch.Tensor, ExpertRows]:
    """The output, (T, D), and the rows; `keep`, where it is given, gets the pre-activations of group after group."""
    x_TD, expert_TK, weight_TK, stack, dtype = call
    with without_autocast(x_TD):
        rows = sort_rows(expert_TK, len(stack.up_EFD), rows_per_chunk(stack, dtype))
        token_N = rows.slot_N // expert_TK.shape[1]
        y_ND = room_for_rows(rows.slot_N, weight_TK, x_TD)
        for chunks in group_chunks(rows.chunks, rows_per_group(stack, dtype)):
            start, stop = chunks[0].start, chunks[-1].stop
            x_nD = x_TD.index_select(0, token_N[start:stop]).to(dtype)
            # No backward pass will ask for the pre-activations, so that the activation may be part of the product.
            if keep is None and len(chunks) == 1:
                expert = chunks[0].expert
                up_FD, up_bias_F = stack.up_EFD[expert].to(dtype), bias_of(stack.up_bias_EF, expert, dtype)
                h_nF = linear_activated(x_nD, up_FD, up_bias_F, activation)
            else:
                z_nF = _project(x_nD, chunks, stack.up_EFD, stack.up_bias_EF)
                h_nF = activate(z_nF, activation)
                if keep is not None:
                    keep(z_nF)
            _project_into(y_ND[start:stop], h_nF, chunks, stack.down_EDF, stack.down_bias_ED)
        return combine_rows(y_ND, rows.slot_N, weight_TK), rows


def _project(
    x_nI: torch.Tensor, chunks: Sequence[Chunk], weight_EOI: torch.Tensor, bias_EO: torch.Tensor | None = None
) -> torch.Tensor:
    """Each row through its expert's linear layer, in the dtype of the rows."""
    if len(chunks) == 1:
        expert = chunks[0].expert
        return linear(x_nI, weight_EOI[expert].to(x_nI.dtype), bias_of(bias_EO, expert, x_nI.dtype))
    out_nO = x_nI.new_empty(len(x_nI), weight_EOI.shape[1])
    _project_into(out_nO, x_nI, chunks, weight_EOI, bias_EO)
    return out_nO


def _project_into(
    out_nO: torch.Tensor,
    x_nI: torch.Tensor,
    chunks: Sequence[Chunk],
    weight_EOI: torch.Tensor,
    bias_EO: torch.Tensor | None = None,
) -> None:
    dtype = x_nI.dtype
    if len(chunks) == 1:
        expert = chunks[0].expert
        linear_into(out_nO, x_nI, weight_EOI[expert].to(dtype), bias_of(bias_EO, expert, dtype))
        return
    into_nO = out_nO if out_nO.dtype == dtype else x_nI.new_empty(out_nO.shape)
    # A group's products are short: no call more than they need, and casts for one expert at a time.
    weight_EIO, start = weight_EOI.mT, chunks[0].start
    for expert, first, last, _ in chunks:
        out_rO, x_rI = into_nO[first - start : last - start], x_nI[first - start : last - start]
        if bias_EO is None:
            torch.mm(x_rI, weight_EIO[expert].to(dtype), out=out_rO)
        else:
            torch.addmm(bias_EO[expert].to(dtype), x_rI, weight_EIO[expert].to(dtype), out=out_rO)
    if into_nO is not out_nO:
        out_nO.copy_(into_nO)


def backward_pass(
    activation: Activation,
    dout_TD: torch.Tensor,
    call: ExpertCall,
    rows: ExpertRows,
    z_groups: Sequence[torch.Tensor],
    needs: Needs,
) -> Gradients:
    """The gradients of x, of the routing weights and of the stack, each where it is needed.

    Those of x and of the stack are linear in a row's routing weight, which is multiplied where the rows are D wide,
    never F; that of the routing weight itself takes the gradient as it comes.
    """
    x_TD, _, weight_TK, stack, dtype = call
    dstack = room_for_gradients(stack, needs.stack, rows.unused)
    token_N = rows.slot_N // weight_TK.shape[1]
    weight_N1 = weight_TK.reshape(-1, 1)[rows.slot_N].to(x_TD.dtype)
    dweight_N = weight_TK.new_empty(len(token_N)) if needs.weight else None
    dx_ND = room_for_rows(rows.slot_N, weight_TK, x_TD) if needs.x else None
    groups = group_chunks(rows.chunks, rows_per_group(stack, dtype))
    with without_autocast(x_TD):
        for chunks, z_nF in zip(groups, z_groups, strict=True):
            start, stop = chunks[0].start, chunks[-1].stop
            token_n, weight_n1 = token_N[start:stop], weight_N1[start:stop]
            dout_nD = dout_TD.index_select(0, token_n)
            dh_nF = _project(dout_nD.to(dtype), chunks, stack.down_EDF.mT)
            h_nF, dz_nF = activate(z_nF, activation), activate_backward(dh_nF, z_nF, activation)
            if dweight_N is not None:
                dweight_N[start:stop] = _routing_gradient(dout_nD.to(dtype), dh_nF, h_nF, chunks, stack.down_bias_ED)
            # Only after the routing weight's own gradient, which is of rows not weighed yet. In place, on a copy.
            dout_nD = dout_nD.mul_(weight_n1).to(dtype)
            if dstack.down_EDF is not None:
                _add_products(dstack.down_EDF, dout_nD, h_nF, chunks)
            if dstack.down_bias_ED is not None:
                _add_products(dstack.down_bias_ED[:, None], dout_nD.new_ones(stop - start, 1), dout_nD, chunks)
            if dx_ND is not None:
                _project_into(dx_ND[start:stop], dz_nF, chunks, stack.up_EFD.mT)
            if dstack.up_EFD is not None:
                x_nD = x_TD.index_select(0, token_n).mul_(weight_n1).to(dtype)
                _add_products(dstack.up_EFD, dz_nF, x_nD, chunks)
            if dstack.up_bias_EF is not None:
                # The weights stand where ones would: dz is not weighed.
                _add_products(dstack.up_bias_EF[:, None], weight_n1.to(dtype), dz_nF, chunks)
        dx_TD = None if dx_ND is None else combine_rows(dx_ND, rows.slot_N, weight_TK)
    dweight_TK = None if dweight_N is None else spread_slots(dweight_N, rows.slot_N, weight_TK)
    return Gradients(dx_TD, dweight_TK, dstack)


def _routing_gradient(
    dout_nD: torch.Tensor,
    dh_nF: torch.Tensor,
    h_nF: torch.Tensor,
    chunks: Sequence[Chunk],
    down_bias_ED: torch.Tensor | None,
) -> torch.Tensor:
    """<dout, h W2^T + b2> for each row, without the down projection: <dout W2, h> + <dout, b2>."""
    dweight_n = (dh_nF * h_nF).sum(dim=-1)
    if down_bias_ED is not None:
        start = chunks[0].start
        for expert, first, last, _ in chunks:
            dout_rD = dout_nD[first - start : last - start]
            dweight_n[first - start : last - start].addmv_(dout_rD, down_bias_ED[expert].to(dout_nD.dtype))
    return dweight_n


def _add_products(gradient_EPQ: torch.Tensor, a_nP: torch.Tensor, b_nQ: torch.Tensor, chunks: Sequence[Chunk]) -> None:
    """Adds a^T b of each expert's rows to its part of the gradient, or sets it where they are its first."""
    a_Pn, start = a_nP.t(), chunks[0].start
    for expert, first, last, is_first in chunks:
        a_Pr, b_rQ = a_Pn[:, first - start : last - start], b_nQ[first - start : last - start]
        add_product(gradient_EPQ[expert], a_Pr, b_rQ, is_first)
