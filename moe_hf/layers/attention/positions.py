"""Rotary position embedding: turns queries and keys by angles that grow with the position.

Shapes: B batch, H heads, S positions, C = head width.
"""

from typing import NamedTuple

import torch
from torch import nn


class Rotation(NamedTuple):
    """Cosines and sines of each position's angles, each (B, S, C)."""

    cos_BSC: torch.Tensor
    sin_BSC: torch.Tensor


class RotaryEmbedding(nn.Module):
    """Angles of the positions (Su et al. 2021, RoFormer, section 3.2.2), in halves as GPT-NeoX has them."""

    def __init__(self, head_dim: int, theta: float) -> None:
        super().__init__()
        self.head_dim = head_dim
        self.theta = theta

    def forward(self, position_ids: torch.Tensor, dtype: torch.dtype) -> Rotation:
        """The rotation of each position in `position_ids` (B, S); computed in float32, returned in `dtype`."""
        # Made here, not kept as a buffer: a buffer that is not saved is lost when a model is built on the meta device.
        exponent = torch.arange(0, self.head_dim, 2, device=position_ids.device, dtype=torch.float32) / self.head_dim
        angle = position_ids[..., None].float() * self.theta**-exponent
        angle = torch.cat([angle, angle], dim=-1)
        return Rotation(angle.cos().to(dtype), angle.sin().to(dtype))


def rotate(x_BHSC: torch.Tensor, rotation: Rotation) -> torch.Tensor:
    """`x_BHSC` turned by `rotation`; norms are kept."""
    half = x_BHSC.shape[-1] // 2
    turned = torch.cat([-x_BHSC[..., half:], x_BHSC[..., :half]], dim=-1)
    return x_BHSC * rotation.cos_BSC[:, None] + turned * rotation.sin_BSC[:, None]
