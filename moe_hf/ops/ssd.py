"""The scan of Mamba-2 (Dao and Gu 2024, section 2): `scalar_decay` with step sizes, as Mamba's papers write it.

Shapes: B rows, S positions, G groups, H heads, a multiple of G, K state size, V head width.
"""

import torch

from moe_hf.ops.scalar_decay import scalar_decay, scalar_decay_step


def ssd(
    u_BSHV: torch.Tensor,
    delta_BSH: torch.Tensor,
    a_H: torch.Tensor,
    b_BSGK: torch.Tensor,
    c_BSGK: torch.Tensor,
    *,
    initial_state: torch.Tensor | None = None,
    mask_BS: torch.Tensor | None = None,
    starts_BS: torch.Tensor | None = None,
    output_final_state: bool = True,
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """`y_t = C_t h_t` with `h_t = exp(delta_t a) h_(t-1) + B_t (delta_t u_t)^T` in each head, and the last state.

    Args:
        u_BSHV: the input.
        delta_BSH: step sizes, >= 0.
        a_H: rates, <= 0.
        b_BSGK: how the input enters the state.
        c_BSGK: how the state is read.
        initial_state: as in `scalar_decay`, (B, H, K, V).
        mask_BS: as there.
        starts_BS: as there.
        output_final_state: as there.

    Returns:
        As in `scalar_decay`; the output has the dtype of the product of input and steps.
    """
    return scalar_decay(
        c_BSGK,
        b_BSGK,
        u_BSHV * delta_BSH[..., None],
        delta_BSH * a_H,
        initial_state=initial_state,
        mask_BS=mask_BS,
        starts_BS=starts_BS,
        output_final_state=output_final_state,
    )


def ssd_step(
    u_BHV: torch.Tensor,
    delta_BH: torch.Tensor,
    a_H: torch.Tensor,
    b_BGK: torch.Tensor,
    c_BGK: torch.Tensor,
    *,
    initial_state: torch.Tensor,
    mask_B: torch.Tensor | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """One position of `ssd`, for decoding: (B, H, V), and the new state."""
    return scalar_decay_step(
        c_BGK, b_BGK, u_BHV * delta_BH[..., None], delta_BH * a_H, initial_state=initial_state, mask_B=mask_B
    )
