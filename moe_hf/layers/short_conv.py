"""A short causal depthwise convolution that lets each channel see its last few values.

Shapes: B batch, S positions, D width, W taps.
"""

from typing import cast

import torch
from torch import nn
from transformers import Cache
from transformers.cache_utils import LinearAttentionCacheLayerMixin

from moe_hf.base.errors import ConfigError


class ShortConv(nn.Module):
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

    def forward(
        self, x_BSD: torch.Tensor, position_ids: torch.Tensor, mask_BS: torch.Tensor | None, cache: Cache | None
    ) -> torch.Tensor:
        """The blended sequence, same shape.

        Args:
            x_BSD: the sequence.
            position_ids: (B or 1, S); a lag counts only where the position is at least that large, so a position that
                restarts at 0 begins a new document.
            mask_BS: nonzero at real tokens of this call; None means that all are.
            cache: holds the last W - 1 inputs of the layer between calls.

        Raises:
            ConfigError: the cache was made without the model's configuration and holds keys and values alone.
        """
        if mask_BS is not None:
            x_BSD = x_BSD * mask_BS[..., None].to(x_BSD.dtype)
        history_BWD = self._history(x_BSD, cache)
        length = x_BSD.shape[1]
        window = torch.cat([history_BWD, x_BSD], dim=1)
        out_BSD = x_BSD
        for lag in range(self.taps):
            start = self.taps - 1 - lag
            shifted = window[:, start : start + length]
            reachable = (position_ids >= lag)[..., None].to(x_BSD.dtype)
            out_BSD = out_BSD + shifted * reachable * self.weight[:, self.taps - 1 - lag]
        return out_BSD

    def _history(self, x_BSD: torch.Tensor, cache: Cache | None) -> torch.Tensor:
        past = self.taps - 1
        zeros = x_BSD.new_zeros(x_BSD.shape[0], past, x_BSD.shape[2])
        if cache is None or past == 0:
            return zeros
        layers = cache.layers
        if self.layer_idx >= len(layers) or not isinstance(layers[self.layer_idx], LinearAttentionCacheLayerMixin):
            raise ConfigError(
                f"this {type(cache).__name__} has no place for the state of a short convolution; make it with "
                "config=model.config, or give none"
            )
        if cache.has_previous_state(self.layer_idx):
            state = cast(LinearAttentionCacheLayerMixin, layers[self.layer_idx]).conv_states[0]
            zeros = cast(torch.Tensor, state).transpose(1, 2)
        # A copy is kept: the cache updates its state in place, and the returned history must stay what it was.
        history = zeros.clone()
        recent = torch.cat([history, x_BSD], dim=1)[:, -past:]
        cache.update_conv_state(recent.transpose(1, 2).contiguous(), self.layer_idx)
        return history
