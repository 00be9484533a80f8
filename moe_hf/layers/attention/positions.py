"""Rotary position embedding: turns queries and keys by angles that grow with the position.

Shapes: B batch, H heads, S positions, C = head width, or those of its channels that are turned.
"""

from typing import NamedTuple, Protocol

import torch
from torch import nn


class Rotation(NamedTuple):
    """Cosines and sines of each position's angles, each (B, S, C)."""

    cos_BSC: torch.Tensor
    sin_BSC: torch.Tensor


class Frequencies(Protocol):
    """The angle per position of each pair of channels, float32, and a factor of cosines and sines."""

    scale: float

    def __call__(self, position_ids: torch.Tensor) -> torch.Tensor:
        """For the positions of a call, on their device."""


class RotaryEmbedding(nn.Module):
    """Angles of the positions (Su et al. 2021, RoFormer, section 3.2.2), in halves as GPT-NeoX has them.

    Args:
        head_dim: C.
        theta: base of the frequencies.
        frequencies: in place of those that follow from the two.
    """

    def __init__(self, head_dim: int, theta: float, frequencies: Frequencies | None = None) -> None:
        super().__init__()
        self.head_dim = head_dim
        self.theta = theta
        self.frequencies = frequencies

    def forward(self, position_ids: torch.Tensor, dtype: torch.dtype) -> Rotation:
        """The rotation of each position in `position_ids` (B, S); computed in float32, returned in `dtype`."""
        if self.frequencies is not None:
            angle = position_ids[..., None].float() * self.frequencies(position_ids)
            angle = torch.cat([angle, angle], dim=-1)
            scale = self.frequencies.scale
            return Rotation((angle.cos() * scale).to(dtype), (angle.sin() * scale).to(dtype))
        # Made here, not kept as a buffer: a buffer that is not saved is lost when a model is built on the meta device.
        exponent = torch.arange(0, self.head_dim, 2, device=position_ids.device, dtype=torch.float32) / self.head_dim
        angle = position_ids[..., None].float() * torch.pow(self.theta, -exponent)
        angle = torch.cat([angle, angle], dim=-1)
        return Rotation(angle.cos().to(dtype), angle.sin().to(dtype))


def rotate(x_BHSC: torch.Tensor, rotation: Rotation) -> torch.Tensor:
    """`x_BHSC` turned by `rotation`; norms are kept. Channels behind those that it has angles for stay as they are."""
    turned_width = rotation.cos_BSC.shape[-1]
    if turned_width < x_BHSC.shape[-1]:
        front, rest = x_BHSC.split([turned_width, x_BHSC.shape[-1] - turned_width], dim=-1)
        return torch.cat([rotate(front, rotation), rest], dim=-1)
    half = turned_width // 2
    turned = torch.cat([-x_BHSC[..., half:], x_BHSC[..., :half]], dim=-1)
    return x_BHSC * rotation.cos_BSC[:, None] + turned * rotation.sin_BSC[:, None]
