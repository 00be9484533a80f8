"""The time mixing of RWKV-7 (Peng et al. 2025, Goose, section 4): a state per head that corrects itself.

Shapes: B batch, S positions of this call, D width, H heads of C channels, R rank.
"""

import math

import torch
from torch import nn
from torch.nn import functional as F
from transformers import initialization as init

from moe_hf.base.errors import ConfigError
from moe_hf.config.decoder import MoEDecoderConfig
from moe_hf.layers.inputs import LayerInputs
from moe_hf.layers.mixers.base import MixerOutput
from moe_hf.layers.mixers.rwkv import RWKVMixer, RWKVState, channel_ramp, depth_of
from moe_hf.ops.dtypes import float32_or_more
from moe_hf.ops.sequence.delta_rule import delta_rule, delta_rule_step
from moe_hf.ops.sequence.fla_delta_rule import FLA_DELTA_RULE

# A channel keeps at least exp(-exp(-0.5)) = 0.545 of itself per token.
_FASTEST_LOG_DECAY = -math.exp(-0.5)
_MIXES = ("r", "w", "k", "v", "a", "g")
# Powers by which the share of the token before falls off over the channels, in the order of _MIXES.
_MIX_POWERS = (0.2, 0.9, 0.7, 0.7, 0.9, 0.2)


class LowRank(nn.Module):
    """Two projections through a narrow middle (R), with an activation there."""

    def __init__(self, width: int, rank: int, activation: nn.Module | None = None, bias: bool = True) -> None:
        super().__init__()
        self.down = nn.Linear(width, rank, bias=False)
        self.activation = activation
        self.up = nn.Linear(rank, width, bias=bias)

    def forward(self, x_BSD: torch.Tensor) -> torch.Tensor:
        """(B, S, D), as the input."""
        middle_BSR = self.down(x_BSD)
        return self.up(middle_BSR if self.activation is None else self.activation(middle_BSR))

    def draw(self, bias_D: torch.Tensor | None) -> None:
        """Nothing but the bias at first: the middle starts at zero, before an orthogonal projection."""
        init.zeros_(self.down.weight)
        width, rank = self.up.weight.shape
        init.orthogonal_(self.up.weight, gain=0.1 * max(1.0, (rank / width) ** 0.5))
        if bias_D is not None:
            init.copy_(self.up.bias, bias_D)


class HeadNorm(nn.GroupNorm):
    """nn.GroupNorm for tokens whose heads are laid apart, in half the time that it takes for them."""

    def forward(self, x_BSHC: torch.Tensor) -> torch.Tensor:
        """Each head normalised, all joined and scaled, (B, S, D)."""
        out = F.layer_norm(x_BSHC, x_BSHC.shape[-1:], eps=self.eps).flatten(-2)
        return torch.addcmul(self.bias, out, self.weight)


class RWKV7(RWKVMixer):
    """Equations 3 to 21 of the paper; the names of parameters are near those of flash-linear-attention's layout."""

    def __init__(self, config: MoEDecoderConfig, layer_idx: int) -> None:
        super().__init__(config, layer_idx)
        width = config.hidden_size
        for name in _MIXES:
            self.register_parameter(f"x_{name}", nn.Parameter(torch.empty(width)))
        self.k_k = nn.Parameter(torch.empty(width))
        self.k_a = nn.Parameter(torch.empty(width))
        self.r_k = nn.Parameter(torch.empty(width))
        self.r_proj = nn.Linear(width, width, bias=False)
        self.k_proj = nn.Linear(width, width, bias=False)
        self.v_proj = nn.Linear(width, width, bias=False)
        self.o_proj = nn.Linear(width, width, bias=False)
        self.w_lora = LowRank(width, config.rwkv_rank("decay"), nn.Tanh())
        self.a_lora = LowRank(width, config.rwkv_rank("rate"))
        self.v_lora = None if self.is_first else LowRank(width, config.rwkv_rank("value"))
        self.g_lora = LowRank(width, config.rwkv_rank("gate"), nn.Sigmoid(), bias=False)
        # 64e-5 for the heads of 64 channels that the paper has.
        self.g_norm = HeadNorm(config.num_attention_heads, width, eps=config.head_dim * 1e-5)

    def multiply_adds(self, context: int) -> int:
        """Looking up, correcting, writing, fading and reading: each meets every entry of the states."""
        return 5 * self.config.hidden_size * self.config.head_dim

    def mix(
        self, x_BSD: torch.Tensor, inputs: LayerInputs, before: RWKVState, keeps_state: bool
    ) -> tuple[MixerOutput, RWKVState]:
        """As in RecurrentMixer; the first layer gives its values as well."""
        shifted_BSD, last = self.shifted(x_BSD, inputs, before)
        delta_BSD = shifted_BSD - x_BSD
        xr, xw, xk, xv, xa, xg = (torch.addcmul(x_BSD, delta_BSD, getattr(self, f"x_{name}")) for name in _MIXES)
        receptance, key, value = self.r_proj(xr), self.k_proj(xk), self.v_proj(xv)
        given_value = value
        if self.v_lora is not None:
            value = torch.lerp(value, self._first_value(inputs), self.v_lora(xv).sigmoid())
        rate = self.a_lora(xa).sigmoid()
        dtype = float32_or_more(x_BSD)
        # In float32: over a long distance the decays are multiplied up, and their rounding with them.
        log_decay = self.w_lora(xw).to(dtype).sigmoid() * _FASTEST_LOG_DECAY
        # The key as it is looked up and overwritten, of length 1, and the key as it is written.
        unit = F.normalize(self._heads(key * self.k_k).to(dtype), dim=-1).to(key.dtype)
        # k * lerp(1, rate, k_a): what is replaced faster is written more strongly, by as much as k_a says.
        key = torch.addcmul(key, key * (rate - 1), self.k_a)
        heads = [self._heads(part) for part in (receptance, log_decay, key, value)]
        out, memory = self._recurrence(inputs, before.memory, *heads, -unit, unit * self._heads(rate))
        out = self.g_norm(out)
        # What the present token says, beside what the state holds of it.
        share = self._heads(receptance * key * self.r_k).sum(-1, keepdim=True)
        out = torch.addcmul(self._heads(out), share, heads[3]).flatten(-2) * self.g_lora(xg)
        mixed = MixerOutput(self.o_proj(out), first_value=given_value if self.is_first else None)
        return mixed, RWKVState(last, memory)

    def _first_value(self, inputs: LayerInputs) -> torch.Tensor:
        if inputs.first_value is None:
            raise ConfigError(
                f"layer {self.layer_idx} of RWKV-7 got no first_value; it must be what the first RWKV layer returned "
                "beside its output: hand it on as the skeleton does"
            )
        return inputs.first_value

    def _recurrence(
        self, inputs: LayerInputs, state: torch.Tensor | None, *parts: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        if self.is_step(state, parts[0], inputs):
            now = (part[:, 0] for part in parts)
            out, memory = delta_rule_step(*now, initial_state=state, mask_B=inputs.mask_of_step)
            return out[:, None], memory
        return self.recur(delta_rule, (FLA_DELTA_RULE,), parts, inputs, state)

    def _heads(self, x_BSD: torch.Tensor) -> torch.Tensor:
        return x_BSD.unflatten(-1, (self.config.num_attention_heads, -1))

    def draw_weights(self, std: float, residual_std: float) -> None:
        """The spread of decays and of mixes over channels and layers with which the paper's models start."""
        width, heads = self.config.hidden_size, self.config.num_attention_heads
        late, early = depth_of(self.config, self.layer_idx)
        ramp_D = channel_ramp(self.k_k)
        for name, power in zip(_MIXES, _MIX_POWERS, strict=True):
            init.copy_(getattr(self, f"x_{name}"), 1.0 - ramp_D ** (power * early))
        position_D = torch.arange(width, device=ramp_D.device)
        line_D = position_D / max(width - 1, 1)
        # From -1 to 1 within each head, steeper at the ends.
        channels = width // heads
        zigzag_D = (position_D % channels - (channels - 1) / 2) / max((channels - 1) / 2, 1)
        zigzag_D = zigzag_D * zigzag_D.abs()
        decay_D = -6 + 6 * line_D ** (1 + late**0.3) + 0.5 + 2.5 * zigzag_D
        self.w_lora.draw(decay_D)
        self.a_lora.draw(-0.19 + 0.3 * zigzag_D + 0.4 * (line_D - 0.5))
        if self.v_lora is not None:
            self.v_lora.draw(0.73 - 0.4 * (line_D - 0.5))
        self.g_lora.draw(None)
        init.copy_(self.k_k, 0.71 - 0.1 * (line_D - 0.5))
        init.constant_(self.k_a, 1.02)
        init.constant_(self.r_k, -0.04)
        init.ones_(self.g_norm.weight)
        init.zeros_(self.g_norm.bias)
        init.normal_(self.o_proj.weight, mean=0.0, std=residual_std)
