"""GPT-2's feed-forward network: up, activation, down."""

import torch
from torch import nn
from transformers import Cache

from moe_hf.config.decoder import MoEDecoderConfig
from moe_hf.layers.activations import activation
from moe_hf.layers.ffn.base import FFN


class DenseFFN(FFN):
    """Two biased projections with an activation between them."""

    def __init__(self, config: MoEDecoderConfig, layer_idx: int = 0, width: int | None = None) -> None:
        super().__init__()
        width = width or config.ffn_width
        self.up_proj = nn.Linear(config.hidden_size, width)
        self.down_proj = nn.Linear(width, config.hidden_size)
        self.act_fn = activation(config.hidden_act)

    def forward(
        self,
        x_BSD: torch.Tensor,
        token_ids: torch.Tensor | None = None,
        padding_mask: torch.Tensor | None = None,
        past_key_values: Cache | None = None,
    ) -> torch.Tensor:
        """The transformed tokens, same shape; nothing else is looked at."""
        return self.down_proj(self.act_fn(self.up_proj(x_BSD)))
