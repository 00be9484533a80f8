"""What every feed-forward network is: (B, S, D) in, (B, S, D) out, each token by itself."""

from abc import ABC, abstractmethod
from typing import ClassVar

import torch
from torch import nn
from transformers import Cache


class FFN(nn.Module, ABC):
    """Works within a token. Built as `FFN(config, layer_idx)`.

    Attributes:
        output_projections: names of the linear layers whose result is added to the residual stream.
    """

    output_projections: ClassVar[tuple[str, ...]] = ("down_proj",)

    @abstractmethod
    def forward(
        self,
        x_BSD: torch.Tensor,
        token_ids: torch.Tensor | None = None,
        padding_mask: torch.Tensor | None = None,
        past_key_values: Cache | None = None,
        document_starts: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """The transformed tokens, same shape.

        Args:
            x_BSD: the normalised residual stream.
            token_ids: (B, S) vocabulary ids for routers that look at them; None when only embeddings were given.
            padding_mask: (B, S), nonzero at real tokens; None where all are.
            past_key_values: state of earlier calls, for experts that count what a sequence brought them.
            document_starts: (B, S), True where a new document begins, for FFNs that look at the token before.
        """
