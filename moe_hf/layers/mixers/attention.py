"""Causal multi-head attention, computed by whichever kernel transformers has for the chosen name.

Shapes: B batch, S positions of this call, D width, H query heads, G key heads (H is a multiple), C head width, N keys,
X width of all heads together.
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
    key_BGNC: torch.Tensor,
    value_BGNC: torch.Tensor,
    attention_mask: torch.Tensor | None,
    scaling: float,
    dropout: float = 0.0,
    **kwargs: Any,
) -> tuple[torch.Tensor, torch.Tensor]:
    """The readable reference (Vaswani et al. 2017, eq. 1): output (B, S, H, C) and weights (B, H, S, N)."""
    groups = query_BHSC.shape[1] // key_BGNC.shape[1]
    key_BHNC, value_BHNC = key_BGNC, value_BGNC
    if groups > 1:
        key_BHNC, value_BHNC = (x.repeat_interleave(groups, dim=1) for x in (key_BGNC, value_BGNC))
    score_BHSN = query_BHSC @ key_BHNC.transpose(-1, -2) * scaling
    if attention_mask is not None:
        score_BHSN = score_BHSN + attention_mask
    # In float32: the sum over many keys would lose small weights in half precision.
    weight_BHSN = score_BHSN.softmax(dim=-1, dtype=torch.float32).to(value_BHNC.dtype)
    weight_BHSN = nn.functional.dropout(weight_BHSN, p=dropout, training=module.training)
    return (weight_BHSN @ value_BHNC).transpose(1, 2), weight_BHSN


class CausalAttention(Mixer):
    """Attention with separate q, k, v and o projections, so that LoRA and tensor parallelism find linears.

    GPT-2's, or Llama's with keys that serve several query heads, norms of queries and keys, and a sliding window.
    """

    is_causal = True

    def __init__(self, config: MoEDecoderConfig, layer_idx: int) -> None:
        super().__init__(config, layer_idx)
        width, queries, keys = config.hidden_size, config.attention_width, config.key_value_width
        self.head_dim = config.head_dim
        # Read by transformers' attention functions.
        self.num_key_value_groups = queries // keys
        self.turns = config.rotary_layers is None or layer_idx in config.rotary_layers
        given = config.attention_multiplier
        self.scaling = self.head_dim**-0.5 if given is None else float(given)
        if config.scale_attn_by_inverse_layer_idx:
            self.scaling /= layer_idx + 1
        self.q_proj = nn.Linear(width, queries, bias=config.attention_bias)
        self.k_proj = nn.Linear(width, keys, bias=config.attention_bias)
        self.v_proj = nn.Linear(width, keys, bias=config.attention_bias)
        self.o_proj = nn.Linear(queries, width, bias=bool(config.attention_output_bias))
        self.q_norm, self.k_norm = _qk_norm(config, queries), _qk_norm(config, keys)
        self.qk_norm = config.attention_qk_norm
        # Over queries, keys and values, each channel by itself (So et al. 2021, Primer): a key that knows the token
        # before it is what copying from the context needs.
        taps = config.mixer_short_conv
        self.short_conv = ShortConv(queries + 2 * keys, taps, layer_idx) if taps else None

    @property
    def sliding_window(self) -> int | None:
        """Keys that a query sees; None for all before it. Masks and caches ask the configuration, too."""
        return self.config.window_of_layer(self.layer_idx)

    def multiply_adds(self, context: int) -> int:
        """Scores and weighted values: two per key and channel."""
        return 2 * min(context, self.sliding_window or context) * self.config.attention_width

    def forward(self, x_BSD: torch.Tensor, inputs: LayerInputs) -> MixerOutput:
        """As `Mixer.forward`; the weights are None unless the eager function ran."""
        batch, length, _ = x_BSD.shape
        projected = (self.q_proj(x_BSD), self.k_proj(x_BSD), self.v_proj(x_BSD))
        if self.short_conv is not None:
            widths = [part.shape[-1] for part in projected]
            projected = self.short_conv(torch.cat(projected, dim=-1), inputs).split(widths, dim=-1)
        query_BHSC, key_BGNC, value_BGNC = self._heads(*projected)
        if inputs.rotation is not None and self.turns:
            query_BHSC, key_BGNC = rotate(query_BHSC, inputs.rotation), rotate(key_BGNC, inputs.rotation)
        if inputs.cache is not None:
            key_BGNC, value_BGNC = inputs.cache.update(key_BGNC, value_BGNC, self.layer_idx)
        options = dict(inputs.attention_options)
        key_BGNC, value_BGNC = with_paged(key_BGNC, value_BGNC, self.layer_idx, options)
        mask = inputs.attention_mask
        window = self.sliding_window
        if window is not None:
            mask = inputs.window_mask
            options["sliding_window"] = window
        attend = ALL_ATTENTION_FUNCTIONS.get_interface(self.config._attn_implementation, eager_attention)
        out_BSHC, weight_BHSN = attend(
            self,
            query_BHSC,
            key_BGNC,
            value_BGNC,
            mask,
            dropout=self.config.attention_dropout if self.training else 0.0,
            scaling=self.scaling,
            position_ids=inputs.position_ids,
            **options,
        )
        return MixerOutput(self.o_proj(out_BSHC.reshape(batch, length, -1).contiguous()), weight_BHSN)

    def _heads(self, *projected_BSX: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Queries, keys and values, (B, heads, S, C) each, the first two normed where the configuration says so."""
        batch, length, _ = projected_BSX[0].shape
        # -1 heads: under tensor parallelism each rank's projections hold some of them only.
        heads = (batch, length, -1, self.head_dim)
        query, key, value = projected_BSX
        if self.qk_norm == "width":
            query, key = self.q_norm(query), self.k_norm(key)
        query, key, value = (part.reshape(heads) for part in (query, key, value))
        if self.qk_norm == "head":
            query, key = self.q_norm(query), self.k_norm(key)
        return query.transpose(1, 2), key.transpose(1, 2), value.transpose(1, 2)


def _qk_norm(config: MoEDecoderConfig, channels: int) -> nn.Module | None:
    if config.attention_qk_norm == "none":
        return None
    width = config.head_dim if config.attention_qk_norm == "head" else channels
    return nn.RMSNorm(width, eps=config.layer_norm_epsilon)
