"""Mamba's scans by the GPU kernels of the package mamba-ssm; where a kernel cannot do what is asked, by ours.

Shapes: B batch, S positions; D channels and N state size in the first version; G groups, H heads, K state size and V
head width in the second.
"""

import importlib
from typing import Any, Unpack

import torch
from torch.nn import functional as F

from moe_hf.base.optional import require
from moe_hf.ops.sequence.backends import Kernel
from moe_hf.ops.sequence.contract import Carried, call_of, zero_padding
from moe_hf.ops.sequence.selective_scan import selective_scan
from moe_hf.ops.sequence.ssd import ssd, ssd_example

# Positions whose share of an initial state is worked out at once: (B, these, D, N) numbers.
_BLOCK = 64
_CHUNK = 256


def _function(module: str, name: str) -> Any:
    package = require("mamba_ssm", "the recurrences of Mamba")
    return getattr(importlib.import_module(f"{package.__name__}.ops.{module}"), name)


def mamba_ssm_selective_scan(
    u_BSD: torch.Tensor,
    delta_BSD: torch.Tensor,
    a_DN: torch.Tensor,
    b_BSN: torch.Tensor,
    c_BSN: torch.Tensor,
    **carried: Unpack[Carried],
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """`moe_hf.ops.sequence.selective_scan.selective_scan` by `selective_scan_fn`.

    The kernel knows neither documents nor initial states, and gives its last state no gradient. Without gradients the
    initial state's share, which is linear, is added here; the other cases are left to our own scan.
    """
    initial_state, (mask_BS, starts_BS), output_final_state = call_of(**carried)
    trains = torch.is_grad_enabled()
    if starts_BS is not None or (trains and (initial_state is not None or output_final_state)):
        return selective_scan(u_BSD, delta_BSD, a_DN, b_BSN, c_BSN, **carried)
    # Steps of 0 neither decay nor write; the other two as well, for zero times what is not finite would not be zero.
    u_BSD, delta_BSD, b_BSN = zero_padding(mask_BS, u_BSD, delta_BSD, b_BSN)
    # It wants one dtype for all; step sizes would lose too much in half precision.
    u, delta, b, c = (x.float().transpose(1, 2).contiguous() for x in (u_BSD, delta_BSD, b_BSN, c_BSN))
    y, state_BDN = _function("selective_scan_interface", "selective_scan_fn")(
        u, delta, a_DN.float(), b, c, return_last_state=True
    )
    y_BSD = y.transpose(1, 2)
    if initial_state is not None:
        share_BSD, state = _share_of_initial_state(
            delta_BSD.float(), a_DN.float(), c_BSN.float(), initial_state.float()
        )
        y_BSD, state_BDN = y_BSD + share_BSD, state_BDN + state
    return y_BSD.to(u_BSD.dtype), state_BDN if output_final_state else None


def _share_of_initial_state(
    delta_BSD: torch.Tensor, a_DN: torch.Tensor, c_BSN: torch.Tensor, state_BDN: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    outputs = []
    for delta_BTD, c_BTN in zip(delta_BSD.split(_BLOCK, dim=1), c_BSN.split(_BLOCK, dim=1), strict=True):
        # Without inputs the recurrence only decays: h_t is exp(a * sum of the steps) times the first state.
        states_BTDN = torch.exp(delta_BTD.cumsum(dim=1)[..., None] * a_DN) * state_BDN[:, None]
        outputs.append((states_BTDN @ c_BTN[..., None])[..., 0])
        state_BDN = states_BTDN[:, -1]
    return torch.cat(outputs, dim=1), state_BDN


def mamba_ssm_ssd(
    u_BSHV: torch.Tensor,
    delta_BSH: torch.Tensor,
    a_H: torch.Tensor,
    b_BSGK: torch.Tensor,
    c_BSGK: torch.Tensor,
    **carried: Unpack[Carried],
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """`moe_hf.ops.sequence.ssd.ssd` by `mamba_chunk_scan_combined`, which does all that it does."""
    initial_state, (mask_BS, starts_BS), output_final_state = call_of(**carried)
    u_BSHV, delta_BSH, b_BSGK = zero_padding(mask_BS, u_BSHV, delta_BSH, b_BSGK)
    documents_BS = None if starts_BS is None else starts_BS.cumsum(dim=1).to(torch.int32)
    y_BSHV, state_BHVK = _function("triton.ssd_combined", "mamba_chunk_scan_combined")(
        u_BSHV.contiguous(),
        delta_BSH.float().contiguous(),
        a_H.float(),
        b_BSGK.contiguous(),
        c_BSGK.contiguous(),
        chunk_size=_CHUNK,
        initial_states=None if initial_state is None else initial_state.float().transpose(-1, -2).contiguous(),
        seq_idx=documents_BS,
        return_final_states=True,
    )
    dtype = torch.promote_types(u_BSHV.dtype, delta_BSH.dtype)
    return y_BSHV.to(dtype), state_BHVK.float().transpose(-1, -2) if output_final_state else None


def _selective_scan_example(device: torch.device) -> tuple[tuple[Any, ...], dict[str, Any]]:
    generator = torch.Generator("cpu").manual_seed(0)
    u, delta, b, c = (torch.randn(2, 70, 16, generator=generator, device="cpu").to(device) for _ in range(4))
    rates_DN = -torch.arange(1.0, 17, device=device).expand(16, -1).contiguous()
    return (u, F.softplus(delta - 2), rates_DN, b, c), {}


MAMBA_SSM_SELECTIVE_SCAN = Kernel(
    "mamba_ssm", "the selective scan", mamba_ssm_selective_scan, selective_scan, _selective_scan_example
)
MAMBA_SSM_SSD = Kernel("mamba_ssm", "the scan of Mamba-2", mamba_ssm_ssd, ssd, ssd_example)
