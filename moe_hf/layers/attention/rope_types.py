"""Frequencies of rotary positions as transformers computes them, for every `rope_type` that it knows.

Shapes: B batch, S positions, P pairs of channels that are turned.
"""

from collections.abc import Mapping
from typing import Any

import torch
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS


class _Described:
    """What transformers' functions read of a configuration."""

    def __init__(self, parameters: dict[str, Any], head_dim: int, limit: int) -> None:
        self.rope_parameters = parameters
        # The other two stand for a width that is given already.
        self.head_dim = self.hidden_size = head_dim
        self.num_attention_heads = 1
        # Where a type computes from the limit, the angles must not move when that does.
        self.max_position_embeddings: int = parameters.get("original_max_position_embeddings") or limit

    def standardize_rope_params(self) -> None:
        """Asked for by each of transformers' functions; there is nothing left to do."""


class RopeFrequencies:
    """The angle per position of each pair, and a factor of cosines and sines.

    Two types depend on the longest position of a call: "dynamic" grows the base beyond the limit, "longrope" has a
    second set of frequencies there. Here a call is judged by itself, whatever was computed before it.

    Args:
        parameters: `rope_type` and its numbers, as in transformers.
        head_dim: width of a head.
        theta: base of the frequencies.
        limit: positions that the angles are made for, where the parameters do not say.
    """

    def __init__(self, parameters: Mapping[str, Any], head_dim: int, theta: float, limit: int) -> None:
        self._described = _Described({**parameters, "rope_theta": float(theta)}, head_dim, limit)
        self.kind = str(parameters["rope_type"])
        self._limit = self._described.max_position_embeddings
        # Models are also made on the meta device, where frequencies would be lost.
        with torch.device("cpu"):
            self._short_P, self.scale = self._computed("cpu", None)
            self._long_P = self._computed("cpu", self._limit + 1)[0] if self.kind == "longrope" else self._short_P

    def __call__(self, position_ids: torch.Tensor) -> torch.Tensor:
        """(P,) in float32, on the device of the positions."""
        device = position_ids.device
        if device.type == "meta":
            return self._short_P.to(device)
        if self._short_P.device != device:
            self._short_P, self._long_P = self._short_P.to(device), self._long_P.to(device)
        if self.kind not in ("dynamic", "longrope"):
            return self._short_P
        length = position_ids.max() + 1
        if self.kind == "longrope":
            return torch.where(length > self._limit, self._long_P, self._short_P)
        return torch.where(length > self._limit, self._computed(device, length)[0], self._short_P)

    def _computed(self, device: Any, length: Any) -> tuple[torch.Tensor, float]:
        if self.kind != "default":
            return ROPE_INIT_FUNCTIONS[self.kind](self._described, device, seq_len=length)
        # transformers keeps this one in each model's own file.
        given = self._described.rope_parameters
        width = int(self._described.head_dim * (given.get("partial_rotary_factor") or 1.0))
        exponent_P = torch.arange(0, width, 2, device=device, dtype=torch.float32) / width
        return 1.0 / given["rope_theta"] ** exponent_P, 1.0
