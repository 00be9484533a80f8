"""Attention's own short causal depthwise convolution, by which queries, keys and values see their last few inputs.

Shapes: B batch, S positions, D width, W taps, P = W - 1 earlier inputs.
"""

import torch
from torch import nn
from transformers import initialization as init

from moe_hf.layers.caches.states import states_of
from moe_hf.layers.init import DrawsOwnWeights
from moe_hf.layers.inputs import PLAIN, LayerInputs
from moe_hf.ops.sequence.short_conv import short_conv


class ShortConv(nn.Module, DrawsOwnWeights):
    """Adds to each token a per-channel blend of the last tokens: `x[t] + sum over lags of w[lag] * x[t - lag]`.

    Attention of one layer cannot copy "what followed this word"; shifted keys let it (Fu et al. 2023, H3; So et al.
    2021, Primer). Lags reach neither over the start of a document nor into padding. Weights of 0 are the identity.
    """

    def __init__(self, width: int, taps: int, layer_idx: int) -> None:
        super().__init__()
        self.taps = taps
        self.layer_idx = layer_idx
        # (D, W); the last column is the token itself, as in nn.Conv1d.
        self.weight = nn.Parameter(torch.zeros(width, taps))

    def draw_weights(self, std: float, residual_std: float) -> None:
        """Away from 0: with keys that see the token before from the start, copying is learnt several times sooner."""
        init.uniform_(self.weight, -0.5, 0.5)

    def forward(self, x_BSD: torch.Tensor, inputs: LayerInputs = PLAIN) -> torch.Tensor:
        """The blended sequence, same shape.

        Args:
            x_BSD: the sequence.
            inputs: of the layer; its cache holds the last W - 1 tokens between calls.

        Raises:
            ConfigError: the cache was made without the model's configuration and holds keys and values alone.
        """
        states = states_of(inputs.cache, self.layer_idx)
        past = None if states is None else states.read("short_conv")
        blend_BSD, last = short_conv(x_BSD, self.weight, initial_state=past, **inputs.layout)
        if states is not None:
            states.write("short_conv", last)
        return x_BSD + blend_BSD
