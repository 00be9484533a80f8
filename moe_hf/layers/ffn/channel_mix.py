"""RWKV's channel mixing: each token is mixed with the one before it, then goes through a feed-forward network.

Shapes: B batch, S positions of this call, D width.
"""

import torch
from torch import nn
from transformers import initialization as init

from moe_hf.config.decoder import MoEDecoderConfig
from moe_hf.layers.caches.states import states_of
from moe_hf.layers.ffn.base import FFN
from moe_hf.layers.init import DrawsOwnWeights
from moe_hf.layers.inputs import PLAIN, LayerInputs
from moe_hf.ops.sequence.short_conv import token_shift


class ChannelMix(FFN, DrawsOwnWeights):
    """A token shift ahead of a feed-forward network, so that a router sees what its experts see.

    With `mlp_token_shift="rwkv7"` (Peng et al. 2025, eq. 22) `time_mix_key` is the share of the token before; with
    "rwkv4" (Peng et al. 2023, section 3.1) it is that of the token itself, as in transformers, and the output is gated
    by a receptance, which stays in one piece however many experts there are.
    """

    def __init__(self, config: MoEDecoderConfig, layer_idx: int, inner: FFN) -> None:
        super().__init__()
        self.layer_idx = layer_idx
        self.num_layers = config.num_hidden_layers
        width = config.hidden_size
        self.inner = inner
        self.time_mix_key = nn.Parameter(torch.empty(width))
        gated = config.mlp_token_shift == "rwkv4"
        self.time_mix_receptance = nn.Parameter(torch.empty(width)) if gated else None
        self.receptance = nn.Linear(width, width, bias=False) if gated else None

    def forward(self, x_BSD: torch.Tensor, inputs: LayerInputs = PLAIN) -> torch.Tensor:
        """The transformed tokens, same shape."""
        states = states_of(inputs.cache, self.layer_idx)
        before = None if states is None else states.read("channel_mix_last")
        shifted_BSD, last = token_shift(x_BSD, initial_state=before, **inputs.layout)
        if states is not None:
            states.write("channel_mix_last", last)
        if self.receptance is None or self.time_mix_receptance is None:
            return self.inner(torch.lerp(x_BSD, shifted_BSD, self.time_mix_key), inputs)
        out_BSD = self.inner(torch.lerp(shifted_BSD, x_BSD, self.time_mix_key), inputs)
        return self.receptance(torch.lerp(shifted_BSD, x_BSD, self.time_mix_receptance)).sigmoid() * out_BSD

    def draw_weights(self, std: float, residual_std: float) -> None:
        """Mixes that differ by channel and by depth; the feed-forward network draws its own."""
        early = 1.0 - self.layer_idx / self.num_layers
        width, device = len(self.time_mix_key), self.time_mix_key.device
        ramp_D = torch.arange(width, dtype=torch.float32, device=device) / width
        if self.time_mix_receptance is None:
            init.copy_(self.time_mix_key, 1.0 - ramp_D ** (early**4))
        else:
            init.copy_(self.time_mix_key, ramp_D**early)
            init.copy_(self.time_mix_receptance, ramp_D**early)
