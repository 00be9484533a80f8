"""RWKV-7's delta rule by the GPU kernel of flash-linear-attention; where it cannot do what is asked, by ours.

Shapes: B batch, S positions, H heads, K key width, V value width.
"""

import importlib
from typing import Any, Unpack

import torch
from torch.nn import functional as F

from moe_hf.base.optional import require
from moe_hf.ops.sequence.backends import Kernel
from moe_hf.ops.sequence.contract import Carried, call_of, zero_padding
from moe_hf.ops.sequence.delta_rule import delta_rule


def fla_delta_rule(
    receptance_BSHK: torch.Tensor,
    log_decay_BSHK: torch.Tensor,
    key_BSHK: torch.Tensor,
    value_BSHV: torch.Tensor,
    a_BSHK: torch.Tensor,
    b_BSHK: torch.Tensor,
    **carried: Unpack[Carried],
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """`ops.sequence.delta_rule.delta_rule` by `chunk_dplr_delta_rule`; packed documents are left to our own form."""
    initial_state, (mask_BS, starts_BS), output_final_state = call_of(**carried)
    if starts_BS is not None:
        return delta_rule(receptance_BSHK, log_decay_BSHK, key_BSHK, value_BSHV, a_BSHK, b_BSHK, **carried)
    # Padding neither decays nor writes nor corrects.
    log_decay_BSHK, key_BSHK, a_BSHK = zero_padding(mask_BS, log_decay_BSHK, key_BSHK, a_BSHK)
    dtype = value_BSHV.dtype
    out_BSHV, state_BHKV = _kernel()(
        q=receptance_BSHK.to(dtype).contiguous(),
        k=key_BSHK.to(dtype).contiguous(),
        v=value_BSHV.contiguous(),
        a=a_BSHK.to(dtype).contiguous(),
        b=b_BSHK.to(dtype).contiguous(),
        gk=log_decay_BSHK.float().contiguous(),
        # Left out, it is one over the square root of K.
        scale=1.0,
        # Its states are (K, V), ours (V, K).
        initial_state=None if initial_state is None else initial_state.float().transpose(-1, -2).contiguous(),
        output_final_state=output_final_state,
    )
    return out_BSHV.to(dtype), state_BHKV.float().transpose(-1, -2) if output_final_state else None


def _kernel() -> Any:
    package = require("fla", "the recurrence of RWKV-7")
    return importlib.import_module(f"{package.__name__}.ops.generalized_delta_rule").chunk_dplr_delta_rule


def _example(device: torch.device) -> tuple[tuple[Any, ...], dict[str, Any]]:
    # Whatever the default device is.
    generator = torch.Generator("cpu").manual_seed(0)
    r, w, k, v, a, b = (torch.randn(2, 70, 2, 64, generator=generator, device="cpu").to(device) for _ in range(6))
    unit = F.normalize(a, dim=-1)
    return (r, -0.6065 * w.sigmoid(), k, v, -unit, unit * b.sigmoid()), {}


FLA_DELTA_RULE = Kernel("fla", "the recurrence of RWKV-7", fla_delta_rule, delta_rule, _example)
