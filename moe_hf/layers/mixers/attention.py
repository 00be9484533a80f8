"""Causal multi-head attention, computed by whichever kernel transformers has for the chosen name.

Shapes: B batch, S positions of this call, D width, H heads, C = D / H head width, N keys.
"""

from typing import Any

import torch
from torch import nn
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from moe_hf.config.decoder import MoEDecoderConfig
from moe_hf.layers.attention.positions import rotate
from moe_hf.layers.caches.host import with_paged
from moe_hf.layers.inputs import LayerInputs
from moe_hf.layers.mixers.base import Mixer, MixerOutput
from moe_hf.layers.short_conv import ShortConv


def eager_attention(
    module: nn.Module,
    query_BHSC: torch.Tensor,
    key_BHNC: torch.Tensor,
    value_BHNC: torch.Tensor,
    attention_mask: torch.Tensor | None,
    scaling: float,
    dropout: float = 0.0,
    **kwargs: Any,
) -> tuple[torch.Tensor, torch.Tensor]:
    """The readable reference (Vaswani et al. 2017, eq. 1): output (B, S, H, C) and weights (B, H, S, N)."""
    score_BHSN = query_BHSC @ key_BHNC.transpose(-1, -2) * scaling
    if attention_mask is not None:
        score_BHSN = score_BHSN + attention_mask
    # In float32: the sum over many keys would lose small weights in half precision.
    weight_BHSN = score_BHSN.softmax(dim=-1, dtype=torch.float32).to(value_BHNC.dtype)
    weight_BHSN = nn.functional.dropout(weight_BHSN, p=dropout, training=module.training)
    return (weight_BHSN @ value_BHNC).transpose(1, 2), weight_BHSN


class CausalAttention(Mixer):
    """GPT-2's attention with separate q, k, v and o projections, so that LoRA and tensor parallelism find linears."""

    is_causal = True

    def __init__(self, config: MoEDecoderConfig, layer_idx: int) -> None:
        super().__init__(config, layer_idx)
        width = config.hidden_size
        self.head_dim = config.head_dim
        self.scaling = self.head_dim**-0.5
        if config.scale_attn_by_inverse_layer_idx:
            self.scaling /= layer_idx + 1
        self.q_proj = nn.Linear(width, width, bias=config.attention_bias)
        self.k_proj = nn.Linear(width, width, bias=config.attention_bias)
        self.v_proj = nn.Linear(width, width, bias=config.attention_bias)
        self.o_proj = nn.Linear(width, width, bias=config.attention_bias)
        # Over queries, keys and values, each channel by itself (So et al. 2021, Primer, section 4): a key that knows
        # the token before it is what copying from the context needs.
        taps = config.mixer_short_conv
        self.short_conv = ShortConv(3 * width, taps, layer_idx) if taps else None

    def multiply_adds(self, context: int) -> int:
        """Scores and weighted values: two per key and channel."""
        return 2 * context * self.config.hidden_size

    def forward(self, x_BSD: torch.Tensor, inputs: LayerInputs) -> MixerOutput:
        """As `Mixer.forward`; the weights are None unless the eager function ran."""
        batch, length, _ = x_BSD.shape
        # -1 heads: under tensor parallelism each rank's projections hold some of them only.
        heads = (batch, length, -1, self.head_dim)
        projected = (self.q_proj(x_BSD), self.k_proj(x_BSD), self.v_proj(x_BSD))
        if self.short_conv is not None:
            projected = self.short_conv(torch.cat(projected, dim=-1), inputs).chunk(3, dim=-1)
        query_BHSC, key_BHNC, value_BHNC = (part.reshape(heads).transpose(1, 2) for part in projected)
        if inputs.rotation is not None:
            query_BHSC, key_BHNC = rotate(query_BHSC, inputs.rotation), rotate(key_BHNC, inputs.rotation)
        if inputs.cache is not None:
            key_BHNC, value_BHNC = inputs.cache.update(key_BHNC, value_BHNC, self.layer_idx)
        options = dict(inputs.attention_options)
        key_BHNC, value_BHNC = with_paged(key_BHNC, value_BHNC, self.layer_idx, options)
        attend = ALL_ATTENTION_FUNCTIONS.get_interface(self.config._attn_implementation, eager_attention)
        out_BSHC, weight_BHSN = attend(
            self,
            query_BHSC,
            key_BHNC,
            value_BHNC,
            inputs.attention_mask,
            dropout=self.config.attention_dropout if self.training else 0.0,
            scaling=self.scaling,
            position_ids=inputs.position_ids,
            **options,
        )
        return MixerOutput(self.o_proj(out_BSHC.reshape(batch, length, -1).contiguous()), weight_BHSN)
