"""One node of autograd for the experts of a layer, whose two passes somebody else gives.

Shapes: T tokens, D width, E experts, K experts per token, F width of one expert.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch.autograd.function import once_differentiable

from moe_hf.ops.experts.expert_parts import ExpertCall, ExpertStack, Gradients, Keep, Needs
from moe_hf.ops.experts.expert_rows import ExpertRows


class Passes(NamedTuple):
    """How a call is computed.

    Attributes:
        forward: gives the output and its rows, and hands to the function that it gets what the way back needs.
        backward: takes the gradient of the output, the call, the rows, what was handed over, and what is asked for.
        parameters: what learns besides the experts' weights.
    """

    forward: Callable[[ExpertCall, Keep], tuple[torch.Tensor, ExpertRows]]
    backward: Callable[[torch.Tensor, ExpertCall, ExpertRows, Sequence[torch.Tensor], Needs], Gradients]
    parameters: tuple[torch.Tensor, ...] = ()


def differentiated(call: ExpertCall, passes: Passes) -> torch.Tensor:
    """The output of `passes.forward`, (T, D), whose gradient, by `passes.backward`, can be taken once."""
    *tensors, stack, dtype = call
    # Laid flat: autograd finds no tensors inside of tuples.
    return _Experts.apply(passes, dtype, *tensors, *stack, *passes.parameters)


class _Experts(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        passes: Passes,
        dtype: torch.dtype,
        x_TD: torch.Tensor,
        expert_TK: torch.Tensor,
        weight_TK: torch.Tensor,
        *learned: torch.Tensor,
    ) -> torch.Tensor:
        stack = ExpertStack(*learned[:4])
        kept: list[torch.Tensor] = []
        out_TD, rows = passes.forward(ExpertCall(x_TD, expert_TK, weight_TK, stack, dtype), kept.append)
        ctx.passes, ctx.dtype = passes, dtype
        ctx.chunks, ctx.unused = rows.chunks, rows.unused
        # What was kept as well: saved this way, it is seen by checkpointing, and writes to it are noticed.
        ctx.save_for_backward(x_TD, expert_TK, weight_TK, *stack, rows.slot_N, *kept)
        return out_TD

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dout_TD: torch.Tensor) -> tuple[Any, ...]:
        saved = ctx.saved_tensors
        x_TD, expert_TK, weight_TK = saved[:3]
        call = ExpertCall(x_TD, expert_TK, weight_TK, ExpertStack(*saved[3:7]), ctx.dtype)
        rows = ExpertRows(saved[7], ctx.chunks, ctx.unused)
        _, _, needs_x, _, needs_weight, *others = ctx.needs_input_grad
        needs = Needs(needs_x, needs_weight, tuple(others[:4]), tuple(others[4:]))
        dx_TD, dweight_TK, dstack, dparameters = ctx.passes.backward(dout_TD, call, rows, saved[8:], needs)
        return None, None, dx_TD, None, dweight_TK, *dstack, *dparameters
