"""The Triton twin of moe_hf.ops.experts.reference: scatter-gather GEMMs over slots sorted by expert, differentiable.

Only indices are sorted: rows of x are gathered inside the tiles (Tan et al. 2024, ScatterMoE), no row is padded or
copied, and nothing waits for the device. For the backward pass x, z and indices are kept, K*U numbers per token.

Shapes: T tokens, K experts per token, N = T*K slots, D width, E experts, F width of one expert, U columns of its up
projection (F, or 2F where gated), G = E + 1 offsets.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch

from moe_hf.base.errors import ConfigError
from moe_hf.ops.experts.activations import ACTIVATIONS, GATES, Activation
from moe_hf.ops.experts.expert_parts import ExpertStack
from moe_hf.ops.experts.triton.gradients import hidden_gradients, routing_weight_gradient, weight_gradient
from moe_hf.ops.experts.triton.grouped_gemm import ExpertRows, combine_slots, rows_gemm, up_gemm
from moe_hf.ops.experts.triton.sorting import SortedSlots, sort_by_expert
from moe_hf.ops.experts.triton.tiles import INTERPRETED, Tiles
from moe_hf.ops.operators import needs_gradient, opaque

_DTYPES = (torch.float32, torch.bfloat16, torch.float16)


def triton_experts(
    x_TD: torch.Tensor,
    expert_TK: torch.Tensor,
    weight_TK: torch.Tensor,
    stack: ExpertStack,
    activation: Activation,
    tiles: Tiles | None = None,
) -> torch.Tensor:
    """For each expert, its tokens through its FFN, weighted and added up: `reference_experts` on an NVIDIA GPU.

    Sums are in float32 and always in the same order, so runs with the same tiles repeat bit by bit. float32 is
    multiplied exactly unless torch may use TF32. Under autocast x and the stack are cast as a linear layer's would be.
    The first call of each coarse shape times tile sizes (`moe_hf.ops.experts.triton.tiles`). No second derivative.

    Args:
        x_TD: tokens; float32, bfloat16 or float16.
        expert_TK: experts of each token, in [0, E]; E marks a slot to skip, which costs nothing and gets no gradient.
        weight_TK: how much each of them counts, in any floating type.
        stack: the experts, in the type of `x_TD`; any strides.
        activation: between the two projections.
        tiles: cuts all GEMMs alike; None asks for the fastest.

    Returns:
        (T, D) in the dtype of `x_TD`.

    Raises:
        ConfigError: a type, a device or an activation that the kernels do not have.
    """
    dtype = x_TD.dtype
    x_TD, stack = _autocast(x_TD, stack)
    _check(x_TD, expert_TK, stack, activation)
    keep_z = needs_gradient(x_TD, weight_TK, *stack)
    out_TD, _, _, _ = _experts(_Inputs(x_TD, weight_TK, stack), expert_TK, activation, keep_z, list(tiles or ()))
    return out_TD.to(dtype)


def _autocast(x_TD: torch.Tensor, stack: ExpertStack) -> tuple[torch.Tensor, ExpertStack]:
    device = x_TD.device.type
    if not torch.is_autocast_enabled(device):
        return x_TD, stack
    dtype = torch.get_autocast_dtype(device)
    up_EUD, down_EDF, *biases = stack
    up_bias_EU, down_bias_ED = (None if bias is None else bias.to(dtype) for bias in biases)
    return x_TD.to(dtype), ExpertStack(up_EUD.to(dtype), down_EDF.to(dtype), up_bias_EU, down_bias_ED)


def _check(x_TD: torch.Tensor, expert_TK: torch.Tensor, stack: ExpertStack, activation: Activation) -> None:
    if x_TD.dtype not in _DTYPES or any(part is not None and part.dtype != x_TD.dtype for part in stack):
        types = [str(part.dtype) for part in stack if part is not None]
        raise ConfigError(
            f"the Triton experts compute in float32, bfloat16 or float16, x and the stack in the same; x is "
            f"{x_TD.dtype}, the stack {', '.join(types)}: cast them, or choose another experts backend"
        )
    if x_TD.device.type != "cuda" and not INTERPRETED:
        raise ConfigError(
            f"the Triton experts need an NVIDIA GPU, x is on {x_TD.device}; choose another experts backend there"
        )
    if activation.name not in ACTIVATIONS or activation.gate not in GATES:
        raise ConfigError(
            f"{activation} is not an activation that the Triton experts have; names are {', '.join(ACTIVATIONS)}, "
            f"gates {', '.join(GATES)}"
        )


class _Inputs(NamedTuple):
    x_TD: torch.Tensor
    weight_TK: torch.Tensor
    stack: ExpertStack


def _forward(
    inputs: _Inputs, expert_TK: torch.Tensor, activation: Activation, keep_z: bool, tiles: Sequence[int]
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """The output, and what the backward pass needs: z_NU (empty unless `keep_z`), order_N and offset_G."""
    x_TD, weight_TK, (up_EUD, down_EDF, up_bias_EU, down_bias_ED) = inputs
    num_experts, slots_per_token = len(up_EUD), expert_TK.shape[1]
    slots = sort_by_expert(expert_TK, num_experts)
    # A grid without programs cannot be launched.
    if expert_TK.numel() == 0:
        return x_TD.new_zeros(x_TD.shape), x_TD.new_empty(0, up_EUD.shape[1]), slots.order_N, slots.offset_G
    cut = Tiles(*tiles) if tiles else None
    out_TD = x_TD.new_empty(x_TD.shape)
    # Triton launches on the current device, whichever the tensors are on.
    with torch.cuda.device_of(x_TD):
        expert_TK, weight_TK = expert_TK.contiguous(), weight_TK.contiguous()
        rows = ExpertRows(slots, slots_per_token)
        z_NU, h_NF = up_gemm(rows, x_TD, up_EUD, up_bias_EU, activation, keep_z, cut)
        y_ND = rows_gemm(rows, h_NF, down_EDF.mT, down_bias_ED, weight_TK, cut)
        combine_slots(y_ND, expert_TK, num_experts, out_TD)
    return out_TD, z_NU, slots.order_N, slots.offset_G


def _forward_shapes(
    inputs: _Inputs, expert_TK: torch.Tensor, keep_z: bool
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    x_TD, up_EUD = inputs.x_TD, inputs.stack.up_EFD
    order_N = expert_TK.new_empty(expert_TK.numel(), dtype=torch.int32)
    z_NU = x_TD.new_empty(expert_TK.numel() if keep_z else 0, up_EUD.shape[1])
    return x_TD.new_empty(x_TD.shape), z_NU, order_N, order_N.new_empty(len(up_EUD) + 1)


class _Kept(NamedTuple):
    z_NU: torch.Tensor
    order_N: torch.Tensor
    offset_G: torch.Tensor


def _backward(
    dout_TD: torch.Tensor,
    inputs: _Inputs,
    expert_TK: torch.Tensor,
    kept: _Kept,
    activation: Activation,
    needs: Sequence[bool],
    tiles: Sequence[int],
) -> list[torch.Tensor]:
    """Gradients for the inputs; an empty tensor for each that is not needed."""
    x_TD, weight_TK, (up_EUD, down_EDF, _, down_bias_ED) = inputs
    z_NU, order_N, offset_G = kept
    gradients = _gradients_like(inputs, needs)
    if expert_TK.numel() == 0:
        return [gradient.zero_() for gradient in gradients]
    assert len(z_NU) == expert_TK.numel(), "the forward pass was told that no gradient would be asked for"
    cut = Tiles(*tiles) if tiles else None
    num_experts = len(up_EUD)
    # `needs` has the same order.
    dx_TD, dweight_TK, dup_EUD, ddown_EDF, dup_bias_EU, ddown_bias_ED = gradients
    with torch.cuda.device_of(x_TD):
        expert_TK, weight_TK, dout_TD = expert_TK.contiguous(), weight_TK.contiguous(), dout_TD.contiguous()
        rows = ExpertRows(SortedSlots(order_N, offset_G.diff(), offset_G), expert_TK.shape[1])
        dz_NU, weighted_h_NF, parts_NJ = hidden_gradients(rows, dout_TD, down_EDF, weight_TK, z_NU, activation, cut)
        if needs[1]:
            routing_weight_gradient(parts_NJ, dout_TD, expert_TK, down_bias_ED, num_experts, dweight_TK)
        if needs[3] or needs[5]:
            weight_gradient(rows, dout_TD, weighted_h_NF, "p", ddown_EDF, ddown_bias_ED, weight_TK, cut)
        # N * F numbers, which nothing below reads.
        del weighted_h_NF
        if needs[2] or needs[4]:
            weight_gradient(rows, dz_NU, x_TD, "q", dup_EUD, dup_bias_EU, None, cut)
        if needs[0]:
            combine_slots(rows_gemm(rows, dz_NU, up_EUD, None, None, cut), expert_TK, num_experts, dx_TD)
    return gradients


def _gradients_like(inputs: _Inputs, needs: Sequence[bool]) -> list[torch.Tensor]:
    """Uninitialised tensors like the inputs; matrices keep their strides, so that a transposed stack stays one."""
    spare = inputs.x_TD
    x_TD, weight_TK, *stack = (
        tensor if need and tensor is not None else spare.new_empty(0)
        for tensor, need in zip((*inputs[:2], *inputs.stack), needs, strict=True)
    )
    return [x_TD.new_empty(x_TD.shape), weight_TK.new_empty(weight_TK.shape), *map(torch.empty_like, stack)]


_experts = opaque(
    "triton_experts",
    _forward,
    _forward_shapes,
    _backward,
    _gradients_like,
    returns=("out_TD", *_Kept._fields),
    gradients=("x_TD", "weight_TK", *ExpertStack._fields),
)
