"""The stacked weights of experts, the part and the gradients of one expert, and the dtype of the products.

Shapes: T tokens, D width, E experts, K experts per token, F width of one expert, O columns out of a projection.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch


class ExpertStack(NamedTuple):
    """The weights of E two-layer experts; any strides will do, so a transposed view is a stack as well."""

    up_EFD: torch.Tensor
    down_EDF: torch.Tensor
    up_bias_EF: torch.Tensor | None = None
    down_bias_ED: torch.Tensor | None = None


class ExpertCall(NamedTuple):
    """What `reference_experts` takes, the activation aside, and the dtype of the products."""

    x_TD: torch.Tensor
    expert_TK: torch.Tensor
    weight_TK: torch.Tensor
    stack: ExpertStack
    dtype: torch.dtype


# Temporaries above 32 MiB are handed back to the system by glibc and faulted in anew at each call.
CHUNK_BYTES = 16 * 2**20
# Experts of fewer weights, with rows of together up to so many bytes, share the steps in which they do not differ:
# their products are so short that some 10 microseconds for each step and expert would count.
GROUP_WEIGHTS = 2**18
GROUP_BYTES = 2**20


def compute_dtype(x_TD: torch.Tensor, stack: ExpertStack) -> torch.dtype:
    """The dtype of the products: autocast's where it is on for this device, else that of the weights."""
    device, dtype = x_TD.device.type, stack.up_EFD.dtype
    # Like torch's own, autocast leaves float64 alone.
    if torch.is_autocast_enabled(device) and dtype != torch.float64:
        return torch.get_autocast_dtype(device)
    return dtype


def rows_per_chunk(stack: ExpertStack, dtype: torch.dtype) -> int:
    """So many rows that the widest temporary has at most `CHUNK_BYTES`."""
    widest = max(stack.up_EFD.shape[1:])
    return max(1, CHUNK_BYTES // (widest * dtype.itemsize))


def rows_per_group(stack: ExpertStack, dtype: torch.dtype) -> int:
    """So many rows of different experts may go together; 0 where each expert goes alone."""
    if stack.up_EFD[0].numel() >= GROUP_WEIGHTS:
        return 0
    return GROUP_BYTES // (max(stack.up_EFD.shape[1:]) * dtype.itemsize)


def expert_of(stack: ExpertStack, expert: int, dtype: torch.dtype) -> ExpertStack:
    """One expert's weights, as views where `dtype` is theirs."""
    up_EFD, down_EDF, up_bias_EF, down_bias_ED = stack
    up_bias_F = None if up_bias_EF is None else up_bias_EF[expert]
    down_bias_D = None if down_bias_ED is None else down_bias_ED[expert]
    # In decoding even a cast that casts nothing is noticed.
    if up_EFD.dtype == dtype:
        return ExpertStack(up_EFD[expert], down_EDF[expert], up_bias_F, down_bias_D)
    biases = (None if bias is None else bias.to(dtype) for bias in (up_bias_F, down_bias_D))
    return ExpertStack(up_EFD[expert].to(dtype), down_EDF[expert].to(dtype), *biases)


def bias_of(bias_EO: torch.Tensor | None, expert: int, dtype: torch.dtype) -> torch.Tensor | None:
    """One expert's bias, if there are biases."""
    return None if bias_EO is None else bias_EO[expert].to(dtype)


class StackGradients(NamedTuple):
    """Gradients of an `ExpertStack`, or of one expert in it; None for a part that is absent or needs none."""

    up_EFD: torch.Tensor | None
    down_EDF: torch.Tensor | None
    up_bias_EF: torch.Tensor | None
    down_bias_ED: torch.Tensor | None

    def of(self, expert: int) -> "StackGradients":
        """One expert's gradients, as views."""
        return StackGradients(*(None if part is None else part[expert] for part in self))


class Needs(NamedTuple):
    """Which gradients are asked for.

    `stack` says it for the parts of an `ExpertStack`, `parameters` for what else learns.
    """

    x: bool
    weight: bool
    stack: tuple[bool, ...]
    parameters: tuple[bool, ...] = ()


class Gradients(NamedTuple):
    """What a backward pass gives; `parameters` are those of what learns besides the experts' weights."""

    x_TD: torch.Tensor | None
    weight_TK: torch.Tensor | None
    stack: StackGradients
    parameters: Sequence[torch.Tensor | None] = ()


# Takes what the forward pass hands over to the backward pass, one tensor after the other.
Keep = Callable[[torch.Tensor], None]


def room_for_gradients(stack: ExpertStack, needs: Sequence[bool], unused: Sequence[int]) -> StackGradients:
    """Room for the gradients that are needed, in the strides of the stack: zero for `unused` experts, else not set."""
    room = [
        torch.empty_like(part) if need and part is not None else None for part, need in zip(stack, needs, strict=True)
    ]
    for part in room:
        if part is not None:
            # The others are written whole by their first chunk: zeros there would be a pass over the stack for nothing.
            for expert in unused:
                part[expert].zero_()
    return StackGradients(*room)


def add_product(out: torch.Tensor, a: torch.Tensor, b: torch.Tensor, is_first: bool) -> None:
    """Adds a @ b to `out`, which holds nothing yet where `is_first`."""
    if out.dtype != a.dtype:
        product = a @ b
        out.copy_(product) if is_first else out.add_(product)
    elif is_first:
        torch.mm(a, b, out=out)
    else:
        out.addmm_(a, b)
