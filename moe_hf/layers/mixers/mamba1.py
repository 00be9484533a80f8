"""The mixer of Mamba (Gu and Dao 2023): a short convolution, then a selective scan, then a gate.

Shapes: B batch, S positions of this call, D width of the residual stream, I inner width, N state size, R rank of the
step sizes.
"""

import torch
from torch import nn
from torch.nn import functional as F
from transformers import initialization as init

from moe_hf.config.decoder import MoEDecoderConfig
from moe_hf.layers.inputs import LayerInputs
from moe_hf.layers.mixers.base import MixerOutput
from moe_hf.layers.mixers.mamba import MambaMixer, MambaState
from moe_hf.ops.dtypes import float32_or_more, without_autocast
from moe_hf.ops.sequence.mamba_ssm_scan import MAMBA_SSM_SELECTIVE_SCAN
from moe_hf.ops.sequence.selective_scan import selective_scan, selective_scan_step


class Mamba1(MambaMixer):
    """Algorithm 2 and figure 3 of the paper, with the parameters of transformers' MambaMixer."""

    def __init__(self, config: MoEDecoderConfig, layer_idx: int) -> None:
        inner = config.mamba_inner_width
        super().__init__(config, layer_idx, num_projected=2 * inner, num_convolved=inner)
        self.rank = config.mamba_rank
        self.norm_eps = config.mamba_bcdt_norm_eps
        self.x_proj = nn.Linear(inner, self.rank + 2 * self.state_size, bias=False)
        self.dt_proj = nn.Linear(self.rank, inner, bias=True)
        self.A_log = nn.Parameter(torch.empty(inner, self.state_size))
        self.D = nn.Parameter(torch.empty(inner))

    def mix(
        self, x_BSD: torch.Tensor, inputs: LayerInputs, before: MambaState, keeps_state: bool
    ) -> tuple[MixerOutput, MambaState]:
        """As in RecurrentMixer."""
        u_BSI, gate_BSI = self.in_proj(x_BSD).chunk(2, dim=-1)
        u_BSI, conv = self.convolve(u_BSI, inputs, before)
        sizes = [self.rank, self.state_size, self.state_size]
        dt_BSR, b_BSN, c_BSN = torch.split_with_sizes(self.x_proj(u_BSI), sizes, dim=-1)
        # Falcon Mamba normalises these three, by norms without weights.
        if self.norm_eps is not None:
            dt_BSR, b_BSN, c_BSN = (F.rms_norm(x, x.shape[-1:], eps=self.norm_eps) for x in (dt_BSR, b_BSN, c_BSN))
        dtype = float32_or_more(u_BSI)
        if torch.is_autocast_enabled(u_BSI.device.type):
            # Without autocast, below, the layer takes its own type only.
            dt_BSR = dt_BSR.to(_weight_dtype(self.dt_proj))
        with without_autocast(u_BSI):
            # Autocast would round the steps, the softplus of a large bias and a small rest, by percents.
            delta_BSI = F.softplus(self.dt_proj(dt_BSR).to(dtype))
        # Kept as a logarithm, so that a rate stays negative whatever training does to it.
        a_IN = -torch.exp(self.A_log.to(dtype))
        if self.is_step(before.scan, x_BSD, inputs):
            parts = (u_BSI[:, 0], delta_BSI[:, 0], a_IN, b_BSN[:, 0], c_BSN[:, 0])
            y_BI, state = selective_scan_step(*parts, initial_state=before.scan, mask_B=inputs.mask_of_step)
            y_BSI = y_BI[:, None]
        else:
            parts = (u_BSI, delta_BSI, a_IN, b_BSN, c_BSN)
            y_BSI, state = self.recur(
                selective_scan, (MAMBA_SSM_SELECTIVE_SCAN,), parts, inputs, before.scan, output_final_state=keeps_state
            )
        out_BSD = self.out_proj(torch.addcmul(y_BSI, u_BSI, self.D.to(y_BSI.dtype)) * F.silu(gate_BSI))
        return MixerOutput(out_BSD), MambaState(conv, state)

    def draw_weights(self, std: float, residual_std: float) -> None:
        """Rates 1 to N in each channel (S4D-real), log-uniform step sizes, and the taps and outputs of MambaMixer."""
        super().draw_weights(std, residual_std)
        rates_N = torch.arange(1, self.state_size + 1, dtype=torch.float32, device=self.A_log.device)
        init.copy_(self.A_log, rates_N.log().expand_as(self.A_log))
        init.ones_(self.D)
        reach = self.rank**-0.5 * self.config.mamba_time_step_scale
        init.uniform_(self.dt_proj.weight, -reach, reach)
        self.draw_step_biases(self.dt_proj.bias)


def _weight_dtype(module: nn.Module) -> torch.dtype:
    # Whatever is not floating is quantised, and then another parameter says what is computed in.
    return next((p.dtype for p in module.parameters() if p.is_floating_point()), torch.float32)
