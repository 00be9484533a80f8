"""What every feed-forward network is: (B, S, D) in and out, each token by itself (RWKV sees the one before too)."""

from abc import ABC, abstractmethod
from typing import ClassVar

import torch
from torch import nn

from moe_hf.layers.inputs import PLAIN, LayerInputs


class FFN(nn.Module, ABC):
    """Works within a token. Built as `FFN(config, layer_idx)`.

    Attributes:
        output_projections: names of the linear layers whose result is added to the residual stream.
    """

    output_projections: ClassVar[tuple[str, ...]] = ("down_proj",)

    @abstractmethod
    def forward(self, x_BSD: torch.Tensor, inputs: LayerInputs = PLAIN) -> torch.Tensor:
        """The transformed tokens, same shape.

        Args:
            x_BSD: the normalised residual stream.
            inputs: what else there is to know about the tokens.
        """
