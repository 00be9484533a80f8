"""A key-value cache that also remembers how many slots of each expert a sequence has asked for.

Shapes: B batch, E experts.
"""

from collections.abc import Callable
from typing import Any

import torch
from transformers import Cache, DynamicCache

from moe_hf.base.errors import ConfigError
from moe_hf.layers.caches.rows import ChangesRows


class RoutedCache(ChangesRows, DynamicCache):
    """DynamicCache with `offered`: per sparse layer (B, E) counts, for a capacity limit outside training."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.offered: dict[int, torch.Tensor] = {}

    def change_states(self, change: Callable[[torch.Tensor], torch.Tensor]) -> None:
        """As in ChangesRows, for the counts."""
        self.offered = {layer: change(count_BE) for layer, count_BE in self.offered.items()}

    def reset(self) -> None:
        """As in Cache, counts included."""
        super().reset()
        self.offered = {}

    def crop(self, max_length: int) -> None:
        """Refuse: counts cannot be cut back.

        Raises:
            ConfigError: always.
        """
        raise ConfigError(
            f"a cache that counts experts' capacity cannot be cropped (to {max_length}); generate without assisted "
            "decoding, or set router_eval_capacity_factor=None"
        )


def require_routed_cache(cache: Cache) -> RoutedCache:
    """The cache itself.

    Raises:
        ConfigError: it cannot count what a capacity limit outside training needs.
    """
    if not isinstance(cache, RoutedCache):
        raise ConfigError(
            f"router_eval_capacity_factor needs a cache that counts, got {type(cache).__name__}; leave past_key_values "
            "and cache_implementation out, or set router_eval_capacity_factor=None"
        )
    return cache
