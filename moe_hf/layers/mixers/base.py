"""What every mixer is: (B, S, D) in, (B, S, D) out."""

from abc import ABC, abstractmethod
from typing import Any

import torch
from torch import nn
from transformers import Cache

from moe_hf.config.decoder import MoEDecoderConfig
from moe_hf.layers.positions import Rotation


class Mixer(nn.Module, ABC):
    """Moves information between the tokens of a sequence; subclasses say how."""

    def __init__(self, config: MoEDecoderConfig, layer_idx: int) -> None:
        super().__init__()
        self.config = config
        self.layer_idx = layer_idx

    @abstractmethod
    def forward(
        self,
        x_BSD: torch.Tensor,
        attention_mask: torch.Tensor | None,
        padding_mask: torch.Tensor | None,
        position_ids: torch.Tensor,
        rotation: Rotation | None,
        past_key_values: Cache | None,
        **kwargs: Any,
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """The mixed sequence (B, S, D), and the weights of the mixing where they are at hand.

        Args:
            x_BSD: the normalised residual stream.
            attention_mask: what the attention function in use takes: None, (B, 1, S, keys), a block mask or (B, keys).
            padding_mask: (B, S), nonzero at real tokens of this call; None means that all are.
            position_ids: (B or 1, S).
            rotation: cosines and sines of the positions; None unless positions are rotary.
            past_key_values: state of earlier calls, read and written.
            **kwargs: handed down to the attention function.
        """
