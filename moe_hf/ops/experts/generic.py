"""Experts whose activation is any function, and whose results may be normalised: sorted, and as thrifty as the known.

Shapes: T tokens, D width, E experts, K experts per token, N rows (visited slots, sorted by expert), F width of one
expert.
"""

from collections.abc import Callable, Sequence
from functools import partial

import torch

from moe_hf.ops.dtypes import without_autocast
from moe_hf.ops.experts.activations import RowFunctions
from moe_hf.ops.experts.cpu_gemm import linear
from moe_hf.ops.experts.differentiated import Passes, differentiated
from moe_hf.ops.experts.expert_parts import (
    ExpertCall,
    ExpertStack,
    Gradients,
    Keep,
    Needs,
    StackGradients,
    add_product,
    compute_dtype,
    expert_of,
    room_for_gradients,
    rows_per_chunk,
)
from moe_hf.ops.experts.expert_rows import ExpertRows, combine_rows, room_for_rows, sort_rows, spread_slots
from moe_hf.ops.operators import needs_gradient


def generic_experts(
    x_TD: torch.Tensor, expert_TK: torch.Tensor, weight_TK: torch.Tensor, stack: ExpertStack, functions: RowFunctions
) -> torch.Tensor:
    """`sorted_experts` for any activation, whose derivative is autograd's, recomputed for a few rows at a time.

    Ids from E on mark slots to skip. Returns (T, D) in the dtype of `x_TD`.
    """
    call = ExpertCall(x_TD, expert_TK, weight_TK, stack, compute_dtype(x_TD, stack))
    if needs_gradient(x_TD, weight_TK, *stack, *functions.parameters):
        return differentiated(
            call, Passes(partial(_forward, functions), partial(_backward, functions), functions.parameters)
        )
    return _forward(functions, call, None)[0]


def _forward(functions: RowFunctions, call: ExpertCall, keep: Keep | None) -> tuple[torch.Tensor, ExpertRows]:
    """The output, (T, D), and the rows; `keep`, where it is given, gets the pre-activations of chunk after chunk."""
    x_TD, expert_TK, weight_TK, stack, dtype = call
    with without_autocast(x_TD):
        rows = sort_rows(expert_TK, len(stack.up_EFD), rows_per_chunk(stack, dtype))
        token_N = rows.slot_N // expert_TK.shape[1]
        y_ND = room_for_rows(rows.slot_N, weight_TK, x_TD)
        for expert, start, stop, _ in rows.chunks:
            part = expert_of(stack, expert, dtype)
            x_nD = x_TD.index_select(0, token_N[start:stop]).to(dtype)
            z_nF = linear(x_nD, part.up_EFD, part.up_bias_EF)
            y_nD = linear(functions.activate(z_nF).to(dtype), part.down_EDF, part.down_bias_ED)
            y_ND[start:stop] = y_nD if functions.finish is None else functions.finish(y_nD)
            if keep is not None:
                keep(z_nF)
        return combine_rows(y_ND, rows.slot_N, weight_TK), rows


def _backward(
    row_functions: RowFunctions,
    dout_TD: torch.Tensor,
    call: ExpertCall,
    rows: ExpertRows,
    z_chunks: Sequence[torch.Tensor],
    needs: Needs,
) -> Gradients:
    x_TD, _, weight_TK, stack, dtype = call
    dstack = room_for_gradients(stack, needs.stack, rows.unused)
    functions = _Differentiable(row_functions, needs.parameters)
    slot_N = rows.slot_N
    token_N = slot_N // weight_TK.shape[1]
    weight_N1 = weight_TK.reshape(-1, 1)[slot_N].to(x_TD.dtype)
    dweight_N = weight_TK.new_empty(len(slot_N))
    dx_ND = room_for_rows(slot_N, weight_TK, x_TD)
    with without_autocast(x_TD):
        for (expert, start, stop, is_first), z_nF in zip(rows.chunks, z_chunks, strict=True):
            part, dpart = expert_of(stack, expert, dtype), dstack.of(expert)
            dout_nD = dout_TD.index_select(0, token_N[start:stop])
            h_nF, dz_of = functions.activate(z_nF)
            # Computed anew: the routing weight multiplies it, and it was not kept.
            y_nD = linear(h_nF.to(dtype), part.down_EDF, part.down_bias_ED)
            y_nD, dy_of = functions.finish(y_nD)
            dweight_N[start:stop] = (dout_nD * y_nD).sum(dim=-1)
            dy_nD = dy_of((dout_nD * weight_N1[start:stop]).to(y_nD.dtype)).to(dtype)
            dz_nF = dz_of(linear(dy_nD, part.down_EDF.t()).to(h_nF.dtype)).to(dtype)
            dx_ND[start:stop] = linear(dz_nF, part.up_EFD.t())
            x_nD = x_TD.index_select(0, token_N[start:stop]).to(dtype)
            _add_gradients(dpart, x_nD, dz_nF, h_nF.to(dtype), dy_nD, is_first)
        dx_TD = combine_rows(dx_ND, slot_N, torch.ones_like(weight_TK))
    return Gradients(dx_TD, spread_slots(dweight_N, slot_N, weight_TK), dstack, functions.gradients)


def _add_gradients(
    dpart: StackGradients,
    x_nD: torch.Tensor,
    dz_nF: torch.Tensor,
    h_nF: torch.Tensor,
    dy_nD: torch.Tensor,
    is_first: bool,
) -> None:
    one_1n = x_nD.new_ones(1, len(x_nD))
    if dpart.up_EFD is not None:
        add_product(dpart.up_EFD, dz_nF.t(), x_nD, is_first)
    if dpart.down_EDF is not None:
        add_product(dpart.down_EDF, dy_nD.t(), h_nF, is_first)
    if dpart.up_bias_EF is not None:
        add_product(dpart.up_bias_EF[None], one_1n, dz_nF, is_first)
    if dpart.down_bias_ED is not None:
        add_product(dpart.down_bias_ED[None], one_1n, dy_nD, is_first)


Backward = Callable[[torch.Tensor], torch.Tensor]


class _Differentiable:
    """Row functions with their backward passes; `gradients` adds up what their parameters get."""

    def __init__(self, functions: RowFunctions, needs: tuple[bool, ...]) -> None:
        self._functions, self._needs = functions, needs
        self.gradients = [torch.zeros_like(p) if n else None for p, n in zip(functions.parameters, needs, strict=True)]

    def activate(self, z_nF: torch.Tensor) -> tuple[torch.Tensor, Backward]:
        return self._recorded(self._functions.activate, z_nF)

    def finish(self, y_nD: torch.Tensor) -> tuple[torch.Tensor, Backward]:
        if self._functions.finish is None:
            return y_nD, lambda dy_nD: dy_nD
        return self._recorded(self._functions.finish, y_nD)

    def _recorded(
        self, function: Callable[[torch.Tensor], torch.Tensor], rows: torch.Tensor
    ) -> tuple[torch.Tensor, Backward]:
        # A graph for the rows of one chunk, which goes with it; one of the whole layer would keep all rows alive.
        with torch.enable_grad():
            rows = rows.detach().requires_grad_()
            result = function(rows)
        learned = [p for p, need in zip(self._functions.parameters, self._needs, strict=True) if need]

        def backward(dresult: torch.Tensor) -> torch.Tensor:
            # Some may be unused: the parameters serve two functions.
            drows, *found = torch.autograd.grad(result, [rows, *learned], dresult, allow_unused=True)
            rooms = [room for room in self.gradients if room is not None]
            for room, gradient in zip(rooms, found, strict=True):
                if gradient is not None:
                    room.add_(gradient)
            return drows

        return result.detach(), backward
