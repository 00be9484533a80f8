"""The time mixing of RWKV-4 (Peng et al. 2023, section 3.1): averages of values that fade, channel by channel.

Shapes: B batch, S positions of this call, D width, I inner width.
"""

import math

import torch
from torch import nn
from transformers import initialization as init

from moe_hf.config.decoder import MoEDecoderConfig
from moe_hf.layers.inputs import LayerInputs
from moe_hf.layers.mixers.base import MixerOutput
from moe_hf.layers.mixers.rwkv import RWKVMixer, RWKVState, channel_ramp, depth_of
from moe_hf.ops.dtypes import float32_or_more
from moe_hf.ops.sequence.wkv import wkv, wkv_step


class RWKV4(RWKVMixer):
    """Equations 11 to 17 of the paper; the names of vectors are those of transformers' RwkvSelfAttention.

    `time_decay` holds the logarithm of the rate of fading.
    """

    def __init__(self, config: MoEDecoderConfig, layer_idx: int) -> None:
        super().__init__(config, layer_idx)
        width = config.hidden_size
        inner = config.rwkv_inner_width or width
        self.time_decay = nn.Parameter(torch.empty(inner))
        self.time_first = nn.Parameter(torch.empty(inner))
        self.time_mix_key = nn.Parameter(torch.empty(width))
        self.time_mix_value = nn.Parameter(torch.empty(width))
        self.time_mix_receptance = nn.Parameter(torch.empty(width))
        self.r_proj = nn.Linear(width, inner, bias=False)
        self.k_proj = nn.Linear(width, inner, bias=False)
        self.v_proj = nn.Linear(width, inner, bias=False)
        self.o_proj = nn.Linear(inner, width, bias=False)

    def multiply_adds(self, context: int) -> int:
        """Numerator and denominator, each with the present token's bonus and with its plain key."""
        return 4 * len(self.time_decay)

    def mix(
        self, x_BSD: torch.Tensor, inputs: LayerInputs, before: RWKVState, keeps_state: bool
    ) -> tuple[MixerOutput, RWKVState]:
        """As in RecurrentMixer."""
        shifted_BSD, last = self.shifted(x_BSD, inputs, before)
        key_BSI = self.k_proj(torch.lerp(shifted_BSD, x_BSD, self.time_mix_key))
        value_BSI = self.v_proj(torch.lerp(shifted_BSD, x_BSD, self.time_mix_value))
        receptance_BSI = self.r_proj(torch.lerp(shifted_BSD, x_BSD, self.time_mix_receptance)).sigmoid()
        dtype = float32_or_more(x_BSD)
        # exp keeps the rate positive, so that what was seen can only fade.
        decay_I, bonus_I = self.time_decay.to(dtype).exp(), self.time_first.to(dtype)
        if self.is_step(before.memory, x_BSD, inputs):
            parts = (decay_I, bonus_I, key_BSI[:, 0], value_BSI[:, 0])
            out_BI, memory = wkv_step(*parts, initial_state=before.memory, mask_B=inputs.mask_of_step)
            out_BSI = out_BI[:, None]
        else:
            parts = (decay_I, bonus_I, key_BSI, value_BSI)
            out_BSI, memory = self.recur(wkv, (), parts, inputs, before.memory)
        return MixerOutput(self.o_proj(receptance_BSI * out_BSI)), RWKVState(last, memory)

    def draw_weights(self, std: float, residual_std: float) -> None:
        """Rates of fading from slow to fast over the channels, mixes that grow with depth (section 3.5)."""
        late, early = depth_of(self.config, self.layer_idx)
        inner = len(self.time_decay)
        position_I = torch.arange(inner, dtype=torch.float32, device=self.time_decay.device)
        init.copy_(self.time_decay, -5 + 8 * (position_I / max(inner - 1, 1)) ** (0.7 + 1.3 * late))
        init.copy_(self.time_first, math.log(0.3) + 0.5 * ((position_I + 1) % 3 - 1))
        ramp_D = channel_ramp(self.time_mix_key)
        init.copy_(self.time_mix_key, ramp_D**early)
        init.copy_(self.time_mix_value, ramp_D**early + 0.3 * late)
        init.copy_(self.time_mix_receptance, ramp_D ** (0.5 * early))
        init.normal_(self.o_proj.weight, mean=0.0, std=residual_std)
