"""What every feed-forward network is: (B, S, D) in, (B, S, D) out, each token by itself."""

from abc import ABC, abstractmethod

import torch
from torch import nn


class FFN(nn.Module, ABC):
    """Works within a token."""

    @abstractmethod
    def forward(self, x_BSD: torch.Tensor, token_ids: torch.Tensor | None = None) -> torch.Tensor:
        """The transformed tokens, same shape.

        Args:
            x_BSD: the normalised residual stream.
            token_ids: (B, S) vocabulary ids for routers that look at them; None when only embeddings were given.
        """
