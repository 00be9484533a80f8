"""The scan of Mamba-2 (Dao and Gu 2024, section 2): for sequences, `scalar_decay` with step sizes, as Mamba's
papers write it; for one position a form of its own.

Shapes: B rows, S positions, G groups, H heads, a multiple of G, K state size, V head width.
"""

from typing import Any, Unpack

import torch
from torch.nn import functional as F

from moe_hf.ops.dtypes import float32_or_more, without_autocast
from moe_hf.ops.sequence.contract import Carried, zero_padding
from moe_hf.ops.sequence.scalar_decay import scalar_decay


def ssd(
    u_BSHV: torch.Tensor,
    delta_BSH: torch.Tensor,
    a_H: torch.Tensor,
    b_BSGK: torch.Tensor,
    c_BSGK: torch.Tensor,
    **carried: Unpack[Carried],
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """`y_t = C_t h_t` with `h_t = exp(delta_t a) h_(t-1) + B_t (delta_t u_t)^T` in each head, and the last state.

    Args:
        u_BSHV: the input.
        delta_BSH: step sizes, >= 0.
        a_H: rates, <= 0.
        b_BSGK: how the input enters the state.
        c_BSGK: how the state is read.
        **carried: as in `contract.Carried`, the state (B, H, K, V).

    Returns:
        As in `scalar_decay`; the output has the dtype of the product of input and steps.
    """
    return scalar_decay(
        c_BSGK,
        b_BSGK,
        u_BSHV * delta_BSH[..., None],
        delta_BSH * a_H,
        **carried,
    )


def ssd_step(
    u_BHV: torch.Tensor,
    delta_BH: torch.Tensor,
    a_H: torch.Tensor,
    b_BGK: torch.Tensor,
    c_BGK: torch.Tensor,
    *,
    initial_state: torch.Tensor | None = None,
    mask_B: torch.Tensor | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """One position of `ssd`, for decoding: the output (B, H, V), and the state after it, (B, H, K, V).

    Large states do not stay in the processor's cache, so it passes over them as few times as it can.
    """
    # Not by `scalar_decay_step`, which is the same recurrence: it forms the product of key and value apart, as large as
    # the state, where this adds it in place. On a CPU that takes 1.3 to 1.8 times as long, and rounds otherwise.
    batch, groups, state_size = b_BGK.shape
    heads, width = u_BHV.shape[1:]
    dtype = float32_or_more(delta_BH)
    # A step size of 0 is a decay of 1.
    u_BHV, delta_BH, b_BGK = zero_padding(mask_B, u_BHV, delta_BH, b_BGK)
    decay = torch.exp(delta_BH * a_H).view(batch, groups, -1, 1, 1)
    value = (u_BHV * delta_BH[..., None]).to(dtype).view(batch, groups, -1, 1, width)
    key = b_BGK.to(dtype).view(batch, groups, 1, state_size, 1)
    query = c_BGK.to(dtype).view(batch, groups, 1, 1, state_size)
    if initial_state is None:
        state = key * value
    else:
        # By group, so that the heads of a group find its key by broadcasting.
        state = initial_state.to(dtype).view(batch, groups, -1, state_size, width) * decay
        # What is written to in place is the product just made, never what the caller gave.
        state = torch.addcmul(state, key, value) if torch.is_grad_enabled() else state.addcmul_(key, value)
    with without_autocast(u_BHV):
        out = query @ state
    return out.view(batch, heads, width), state.view(batch, heads, state_size, width)


def ssd_example(device: torch.device) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Small arguments of `ssd`, positional ones and keywords, by which a package's kernel is compared with it."""
    generator = torch.Generator("cpu").manual_seed(0)
    shapes = ((2, 70, 4, 64), (2, 70, 4), (2, 70, 2, 64), (2, 70, 2, 64), (2, 4, 64, 64))
    u, delta, b, c, state = (torch.randn(shape, generator=generator, device="cpu").to(device) for shape in shapes)
    options = {"initial_state": state, "starts_BS": torch.arange(140, device=device).view(2, 70) % 23 == 5}
    return (u, F.softplus(delta - 2), -torch.arange(1.0, 5, device=device), b, c), options
