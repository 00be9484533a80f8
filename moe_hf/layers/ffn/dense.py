"""The dense feed-forward network: up, activation, down; gated or not, with biases or without."""

import torch
from torch import nn

from moe_hf.config.decoder import MoEDecoderConfig
from moe_hf.layers.experts.activations import activation
from moe_hf.layers.ffn.base import FFN
from moe_hf.layers.inputs import PLAIN, LayerInputs


class DenseFFN(FFN):
    """Two projections with an activation between them; gated, a third one's output is activated and multiplied in."""

    def __init__(self, config: MoEDecoderConfig, layer_idx: int = 0, width: int | None = None) -> None:
        super().__init__()
        width, bias = width or config.ffn_width, config.mlp_bias
        self.gate_proj = nn.Linear(config.hidden_size, width, bias=bias) if config.mlp_gated else None
        self.up_proj = nn.Linear(config.hidden_size, width, bias=bias)
        self.down_proj = nn.Linear(width, config.hidden_size, bias=bias)
        self.act_fn = activation(config.hidden_act)

    def forward(self, x_BSD: torch.Tensor, inputs: LayerInputs = PLAIN) -> torch.Tensor:
        """The transformed tokens, same shape; nothing else is looked at."""
        if self.gate_proj is None:
            return self.down_proj(self.act_fn(self.up_proj(x_BSD)))
        return self.down_proj(self.act_fn(self.gate_proj(x_BSD)) * self.up_proj(x_BSD))
