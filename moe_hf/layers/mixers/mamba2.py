"""The mixer of Mamba-2 (Dao and Gu 2024): a short convolution, then a scan with one decay per head, then a gated norm.

Shapes: B batch, S positions of this call, D width of the residual stream, I inner width,
H heads of width V, G groups of heads that share B and C, K state size.
"""

import torch
from torch import nn
from torch.nn import functional as F
from transformers import initialization as init

from moe_hf.config.decoder import MoEDecoderConfig
from moe_hf.layers.inputs import LayerInputs
from moe_hf.layers.mixers.base import MixerOutput
from moe_hf.layers.mixers.mamba import MambaMixer, MambaState
from moe_hf.ops.dtypes import float32_or_more
from moe_hf.ops.sequence.fla_ssd import FLA_SSD
from moe_hf.ops.sequence.mamba_ssm_scan import MAMBA_SSM_SSD
from moe_hf.ops.sequence.ssd import ssd, ssd_step


class GatedRMSNorm(nn.Module):
    """Gate, then RMSNorm within each group of channels, in float32 (Dao and Gu 2024, section 7.1)."""

    def __init__(self, width: int, num_groups: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))
        self.num_groups, self.eps = num_groups, eps

    def forward(self, x_BSI: torch.Tensor, gate_BSI: torch.Tensor) -> torch.Tensor:
        """The gated and normalised channels, same shape, in the dtype of the gate."""
        dtype = float32_or_more(x_BSI)
        gated = (x_BSI.to(dtype) * F.silu(gate_BSI.to(dtype))).unflatten(-1, (self.num_groups, -1))
        normed = F.rms_norm(gated, gated.shape[-1:], eps=self.eps).flatten(-2)
        return self.weight * normed.to(gate_BSI.dtype)


class Mamba2(MambaMixer):
    """Figure 6 of the paper (sequential projections), with the parameters of transformers' Mamba2Mixer."""

    def __init__(self, config: MoEDecoderConfig, layer_idx: int) -> None:
        inner, self.num_heads = config.mamba_inner_width, config.mamba_num_heads
        self.num_groups = config.mamba_num_groups
        convolved = inner + 2 * self.num_groups * config.mamba_state_width
        super().__init__(config, layer_idx, num_projected=inner + convolved + self.num_heads, num_convolved=convolved)
        self.step_limit = config.mamba_time_step_limit
        self.dt_bias = nn.Parameter(torch.empty(self.num_heads))
        self.A_log = nn.Parameter(torch.empty(self.num_heads))
        self.D = nn.Parameter(torch.empty(self.num_heads))
        self.norm = GatedRMSNorm(inner, self.num_groups, config.layer_norm_epsilon)

    def mix(
        self, x_BSD: torch.Tensor, inputs: LayerInputs, before: MambaState, keeps_state: bool
    ) -> tuple[MixerOutput, MambaState]:
        """As in RecurrentMixer."""
        inner, shared = self.inner_width, self.num_groups * self.state_size
        gate_BSI, xbc, dt_BSH = self.in_proj(x_BSD).split([inner, inner + 2 * shared, self.num_heads], dim=-1)
        xbc, conv = self.convolve(xbc, inputs, before)
        u_BSI, b, c = xbc.split([inner, shared, shared], dim=-1)
        u_BSHV = u_BSI.unflatten(-1, (self.num_heads, -1))
        b_BSGK, c_BSGK = (x.unflatten(-1, (self.num_groups, -1)) for x in (b, c))
        dtype = float32_or_more(u_BSHV)
        # In float32: errors of the steps add up in the exponents, over the whole sequence.
        delta_BSH = F.softplus(dt_BSH.to(dtype) + self.dt_bias.to(dtype))
        if self.step_limit is not None:
            delta_BSH = delta_BSH.clamp(*self.step_limit)
        # Kept as a logarithm, so that a rate stays negative whatever training does to it.
        a_H = -torch.exp(self.A_log.to(dtype))
        if self.is_step(before.scan, x_BSD, inputs):
            parts = (u_BSHV[:, 0], delta_BSH[:, 0], a_H, b_BSGK[:, 0], c_BSGK[:, 0])
            y_BHV, state = ssd_step(*parts, initial_state=before.scan, mask_B=inputs.mask_of_step)
            y_BSHV = y_BHV[:, None]
        else:
            parts = (u_BSHV, delta_BSH, a_H, b_BSGK, c_BSGK)
            y_BSHV, state = self.recur(
                ssd, (MAMBA_SSM_SSD, FLA_SSD), parts, inputs, before.scan, output_final_state=keeps_state
            )
        y_BSHV = torch.addcmul(y_BSHV, u_BSHV.to(dtype), self.D[:, None].to(dtype))
        return MixerOutput(self.out_proj(self.norm(y_BSHV.flatten(-2), gate_BSI))), MambaState(conv, state)

    def draw_weights(self, std: float, residual_std: float) -> None:
        """Rates 1 to H, log-uniform step sizes, and the taps and outputs of MambaMixer."""
        super().draw_weights(std, residual_std)
        rates_H = torch.arange(1, self.num_heads + 1, dtype=torch.float32, device=self.A_log.device)
        init.copy_(self.A_log, rates_H.log())
        init.ones_(self.D)
        init.ones_(self.norm.weight)
        self.draw_step_biases(self.dt_bias)
