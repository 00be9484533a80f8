"""Mamba-2's scan by the GPU kernel of flash-linear-attention.

Shapes: B rows, S positions, G groups, H heads, K state size, V head width.
"""

from typing import Unpack

import torch

from moe_hf.ops.sequence.backends import Kernel
from moe_hf.ops.sequence.contract import Carried
from moe_hf.ops.sequence.fla_scalar_decay import fla_scalar_decay
from moe_hf.ops.sequence.ssd import ssd, ssd_example


def fla_ssd(
    u_BSHV: torch.Tensor,
    delta_BSH: torch.Tensor,
    a_H: torch.Tensor,
    b_BSGK: torch.Tensor,
    c_BSGK: torch.Tensor,
    **carried: Unpack[Carried],
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """`moe_hf.ops.sequence.ssd.ssd` by `chunk_simple_gla`, in the type of `u_BSHV`.

    The kernel knows no groups: each head gets a copy of its group's keys and queries.
    """
    per_group = u_BSHV.shape[2] // b_BSGK.shape[2]
    y_BSHV, state_BHKV = fla_scalar_decay(
        c_BSGK.repeat_interleave(per_group, dim=2),
        b_BSGK.repeat_interleave(per_group, dim=2),
        (u_BSHV * delta_BSH[..., None]).to(u_BSHV.dtype),
        delta_BSH * a_H,
        **carried,
    )
    return y_BSHV.to(torch.promote_types(u_BSHV.dtype, delta_BSH.dtype)), state_BHKV


FLA_SSD = Kernel("fla", "the scan of Mamba-2", fla_ssd, ssd, ssd_example)
