"""Experts in pure PyTorch, group after group over the tokens sorted by expert: the form for CPUs.

Shapes: T tokens, D width, E experts, K experts per token, N rows (visited slots, sorted by expert), F width of one
expert; z has F columns, or 2F where the activation is gated.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch.autograd.function import once_differentiable

from moe_hf.ops.experts.activations import Activation
from moe_hf.ops.experts.expert_parts import compute_dtype, rows_per_chunk, rows_per_group
from moe_hf.ops.experts.expert_rows import ExpertRows, group_chunks, sort_rows
from moe_hf.ops.experts.few_tokens import few_tokens_experts
from moe_hf.ops.experts.reference import ExpertStack
from moe_hf.ops.experts.sorted_passes import Needs, backward_pass, forward_pass


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
    dtype = compute_dtype(x_TD, stack)
    inputs = (x_TD, weight_TK, *stack)
    trains = torch.is_grad_enabled() and any(tensor is not None and tensor.requires_grad for tensor in inputs)
    if torch.compiler.is_compiling():
        return _compiled(x_TD, expert_TK, weight_TK, *stack, *activation, dtype, trains)[0]
    if trains:
        return _SortedExperts.apply(x_TD, expert_TK, weight_TK, *stack, activation, dtype)
    return _without_gradients(x_TD, expert_TK, weight_TK, stack, activation, dtype)


@torch.no_grad()
def _without_gradients(
    x_TD: torch.Tensor,
    expert_TK: torch.Tensor,
    weight_TK: torch.Tensor,
    stack: ExpertStack,
    activation: Activation,
    dtype: torch.dtype,
) -> torch.Tensor:
    out_TD = few_tokens_experts(x_TD, expert_TK, weight_TK, stack, activation, dtype)
    if out_TD is None:
        out_TD, _ = forward_pass(x_TD, expert_TK, weight_TK, stack, activation, dtype, None)
    return out_TD


class _SortedExperts(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        x_TD: torch.Tensor,
        expert_TK: torch.Tensor,
        weight_TK: torch.Tensor,
        up_EFD: torch.Tensor,
        down_EDF: torch.Tensor,
        up_bias_EF: torch.Tensor | None,
        down_bias_ED: torch.Tensor | None,
        activation: Activation,
        dtype: torch.dtype,
    ) -> torch.Tensor:
        stack = ExpertStack(up_EFD, down_EDF, up_bias_EF, down_bias_ED)
        z_groups: list[torch.Tensor] = []
        out_TD, rows = forward_pass(x_TD, expert_TK, weight_TK, stack, activation, dtype, z_groups.append)
        ctx.activation, ctx.dtype = activation, dtype
        ctx.chunks, ctx.unused = rows.chunks, rows.unused
        ctx.save_for_backward(x_TD, weight_TK, *stack, rows.slot_N, *z_groups)
        return out_TD

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dout_TD: torch.Tensor) -> tuple[Any, ...]:
        x_TD, weight_TK, up_EFD, down_EDF, up_bias_EF, down_bias_ED, slot_N, *z_groups = ctx.saved_tensors
        stack = ExpertStack(up_EFD, down_EDF, up_bias_EF, down_bias_ED)
        rows = ExpertRows(slot_N, ctx.chunks, ctx.unused)
        needs_x, _, needs_weight, *needs_stack = ctx.needs_input_grad[:7]
        needs = Needs(needs_x, needs_weight, tuple(needs_stack))
        dx_TD, dweight_TK, dstack = backward_pass(
            dout_TD, x_TD, weight_TK, stack, rows, z_groups, ctx.activation, ctx.dtype, needs
        )
        return dx_TD, None, dweight_TK, *dstack, None, None


# The compiler cannot look into loops whose length the data decide: these operators are what it sees instead.
@torch.library.custom_op("moe_hf::sorted_experts", mutates_args=())
def _compiled(
    x_TD: torch.Tensor,
    expert_TK: torch.Tensor,
    weight_TK: torch.Tensor,
    up_EFD: torch.Tensor,
    down_EDF: torch.Tensor,
    up_bias_EF: torch.Tensor | None,
    down_bias_ED: torch.Tensor | None,
    name: str,
    gate: str,
    dtype: torch.dtype,
    trains: bool,
) -> tuple[torch.Tensor, torch.Tensor]:
    """The output and all pre-activations, (T * K, F), as one tensor, zero for skipped slots."""
    stack, activation = ExpertStack(up_EFD, down_EDF, up_bias_EF, down_bias_ED), Activation(name, gate)
    z_SF = x_TD.new_empty(expert_TK.numel() if trains else 0, up_EFD.shape[1], dtype=dtype)
    if not trains:
        return _without_gradients(x_TD, expert_TK, weight_TK, stack, activation, dtype), z_SF
    num_kept = 0

    def keep(z_nF: torch.Tensor) -> None:
        nonlocal num_kept
        z_SF[num_kept : num_kept + len(z_nF)] = z_nF
        num_kept += len(z_nF)

    out_TD, _ = forward_pass(x_TD, expert_TK, weight_TK, stack, activation, dtype, keep)
    z_SF[num_kept:].zero_()
    return out_TD, z_SF


@_compiled.register_fake
def _compiled_fake(
    x_TD: torch.Tensor, expert_TK: torch.Tensor, weight_TK: torch.Tensor, up_EFD: torch.Tensor, *others: Any
) -> tuple[torch.Tensor, torch.Tensor]:
    dtype, trains = others[-2:]
    return x_TD.new_empty(x_TD.shape), x_TD.new_empty(expert_TK.numel() if trains else 0, up_EFD.shape[1], dtype=dtype)


@torch.library.custom_op("moe_hf::sorted_experts_backward", mutates_args=())
def _compiled_backward(
    dout_TD: torch.Tensor,
    x_TD: torch.Tensor,
    expert_TK: torch.Tensor,
    weight_TK: torch.Tensor,
    up_EFD: torch.Tensor,
    down_EDF: torch.Tensor,
    up_bias_EF: torch.Tensor | None,
    down_bias_ED: torch.Tensor | None,
    z_SF: torch.Tensor,
    name: str,
    gate: str,
    needs: Sequence[bool],
) -> list[torch.Tensor]:
    """The gradients of x, the routing weights and the stack; an empty tensor where one is not needed."""
    stack = ExpertStack(up_EFD, down_EDF, up_bias_EF, down_bias_ED)
    rows = sort_rows(expert_TK, len(up_EFD), rows_per_chunk(stack, z_SF.dtype))
    groups = group_chunks(rows.chunks, rows_per_group(stack, z_SF.dtype))
    z_groups = [z_SF[chunks[0].start : chunks[-1].stop] for chunks in groups]
    dx_TD, dweight_TK, dstack = backward_pass(
        dout_TD,
        x_TD,
        weight_TK,
        stack,
        rows,
        z_groups,
        Activation(name, gate),
        z_SF.dtype,
        Needs(needs[0], needs[1], tuple(needs[2:])),
    )
    return [x_TD.new_empty(0) if gradient is None else gradient for gradient in (dx_TD, dweight_TK, *dstack)]


@_compiled_backward.register_fake
def _compiled_backward_fake(
    dout_TD: torch.Tensor, x_TD: torch.Tensor, expert_TK: torch.Tensor, weight_TK: torch.Tensor, *others: Any
) -> list[torch.Tensor]:
    rows = [tensor.new_empty(tensor.shape) for tensor in (x_TD, weight_TK)]
    stack = [None if part is None else torch.empty_like(part) for part in others[:4]]
    return [
        like if like is not None and need else x_TD.new_empty(0)
        for like, need in zip([*rows, *stack], others[-1], strict=True)
    ]


def _keep(ctx: Any, inputs: tuple[Any, ...], output: tuple[torch.Tensor, torch.Tensor]) -> None:
    *tensors, name, gate, _, _ = inputs
    # Without this the absent gradient of z would be made, as zeros of its size.
    ctx.set_materialize_grads(False)
    ctx.name, ctx.gate = name, gate
    ctx.save_for_backward(*tensors, output[1])


def _differentiate(ctx: Any, dout_TD: torch.Tensor | None, _: None) -> tuple[torch.Tensor | None, ...]:
    if dout_TD is None:
        return (None,) * 11
    needs = [ctx.needs_input_grad[0], *ctx.needs_input_grad[2:7]]
    gradients = _compiled_backward(dout_TD.contiguous(), *ctx.saved_tensors, ctx.name, ctx.gate, needs)
    dx_TD, *others = (gradient if need else None for gradient, need in zip(gradients, needs, strict=True))
    return dx_TD, None, *others, None, None, None, None


_compiled.register_autograd(_differentiate, setup_context=_keep)
