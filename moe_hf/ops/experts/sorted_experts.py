"""Experts in pure PyTorch, group after group over the tokens sorted by expert: the form for CPUs.

A few tokens without gradient, as in a decoding step, go to `few_tokens` instead, which sorts no single token.

Shapes: T tokens, D width, E experts, K experts per token, J = T * K slots, N rows (visited slots, sorted by expert), n
those of one group, F width of one expert; z has F columns, or 2F where the activation is gated.
"""

from collections.abc import Sequence
from contextlib import nullcontext
from functools import partial

import torch

from moe_hf.ops.experts.activations import Activation
from moe_hf.ops.experts.differentiated import Passes, differentiated
from moe_hf.ops.experts.expert_parts import (
    ExpertCall,
    ExpertStack,
    Needs,
    compute_dtype,
    rows_per_chunk,
    rows_per_group,
)
from moe_hf.ops.experts.expert_rows import group_chunks, sort_rows
from moe_hf.ops.experts.few_tokens import few_tokens_experts
from moe_hf.ops.experts.sorted_passes import backward_pass, forward_pass
from moe_hf.ops.operators import needs_gradient, opaque


def sorted_experts(
    x_TD: torch.Tensor, expert_TK: torch.Tensor, weight_TK: torch.Tensor, stack: ExpertStack, activation: Activation
) -> torch.Tensor:
    """`reference_experts`, fast: equal in value and in gradient, which can be taken once.

    Computes in the dtype of the weights, or of autocast where that is on. Keeps only the pre-activations for the
    backward pass (Guo et al. 2025, SonicMoE, section 3.1), and makes no temporary of the size of the stacks. Under
    torch.compile it is one opaque operator.

    Args:
        x_TD: tokens, of any strides, on any device.
        expert_TK: experts of each token, in [0, E]; E marks a slot to skip, which costs nothing and gets no gradient.
        weight_TK: how much each of them counts.
        stack: the experts, of any strides.
        activation: between the two projections.

    Returns:
        (T, D) in the dtype of `x_TD`.
    """
    call = ExpertCall(x_TD, expert_TK, weight_TK, stack, compute_dtype(x_TD, stack))
    trains = needs_gradient(x_TD, weight_TK, *stack)
    # Eager takes the node of autograd, which keeps the list of pre-activations and the sorted rows as they are: the
    # operator hands on tensors alone, so it copies the former into one and sorts the latter again on the way back.
    if torch.compiler.is_compiling():
        return _compiled(call, activation, trains)[0]
    if trains:
        return differentiated(call, Passes(partial(forward_pass, activation), partial(backward_pass, activation)))
    return _without_gradients(call, activation)


def _without_gradients(call: ExpertCall, activation: Activation) -> torch.Tensor:
    # A decoding step is already without, and notices the microseconds of entering again.
    with torch.no_grad() if torch.is_grad_enabled() else nullcontext():
        out_TD = few_tokens_experts(call, activation)
        return forward_pass(activation, call, None)[0] if out_TD is None else out_TD


def _forward(call: ExpertCall, activation: Activation, trains: bool) -> tuple[torch.Tensor, torch.Tensor]:
    """The output and all pre-activations, (J, F), as one tensor, zero for skipped slots."""
    z_JF = _forward_shapes(call, trains)[1]
    if not trains:
        return _without_gradients(call, activation), z_JF
    num_kept = 0

    def keep(z_nF: torch.Tensor) -> None:
        nonlocal num_kept
        z_JF[num_kept : num_kept + len(z_nF)] = z_nF
        num_kept += len(z_nF)

    out_TD, _ = forward_pass(activation, call, keep)
    z_JF[num_kept:].zero_()
    return out_TD, z_JF


def _forward_shapes(call: ExpertCall, trains: bool) -> tuple[torch.Tensor, torch.Tensor]:
    num_slots = call.expert_TK.numel() if trains else 0
    z_JF = call.x_TD.new_empty(num_slots, call.stack.up_EFD.shape[1], dtype=call.dtype)
    return call.x_TD.new_empty(call.x_TD.shape), z_JF


def _backward(
    dout_TD: torch.Tensor, call: ExpertCall, activation: Activation, z_JF: torch.Tensor, needs: Sequence[bool]
) -> list[torch.Tensor]:
    """The gradients of x, the routing weights and the stack; an empty tensor where one is not needed."""
    # Sorted again: an operator hands nothing but tensors from one pass to the other.
    rows = sort_rows(call.expert_TK, len(call.stack.up_EFD), rows_per_chunk(call.stack, call.dtype))
    groups = group_chunks(rows.chunks, rows_per_group(call.stack, call.dtype))
    z_groups = [z_JF[chunks[0].start : chunks[-1].stop] for chunks in groups]
    asked = Needs(needs[0], needs[1], tuple(needs[2:]))
    dx_TD, dweight_TK, dstack, _ = backward_pass(activation, dout_TD.contiguous(), call, rows, z_groups, asked)
    return [call.x_TD.new_empty(0) if gradient is None else gradient for gradient in (dx_TD, dweight_TK, *dstack)]


def _backward_shapes(call: ExpertCall, needs: Sequence[bool]) -> list[torch.Tensor]:
    rows = [tensor.new_empty(tensor.shape) for tensor in (call.x_TD, call.weight_TK)]
    stack = [None if part is None else torch.empty_like(part) for part in call.stack]
    return [
        like if like is not None and need else call.x_TD.new_empty(0)
        for like, need in zip([*rows, *stack], needs, strict=True)
    ]


# How long the loops are, the data decide.
_compiled = opaque(
    "sorted_experts",
    _forward,
    _forward_shapes,
    _backward,
    _backward_shapes,
    returns=("out_TD", "z_JF"),
    gradients=("x_TD", "weight_TK", *ExpertStack._fields),
)
