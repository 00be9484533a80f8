"""The name by which the installed transformers calls the state that passes between it and a model.

5.24 renamed `past_key_values`, and the `cache_params` of models with "mamba" in their name, to `cache`: the argument of
every forward and mask function, and the field of every output.
"""

from dataclasses import fields
from typing import Any

import torch
from transformers import Cache
from transformers.generation.continuous_batching import PagedAttentionCache
from transformers.modeling_outputs import MoeModelOutputWithPast

from moe_hf.base.errors import ConfigError

CACHE_NAMES = ("cache", "past_key_values")
"""What callers of any age call it; every forward of this package takes both."""

CACHE_NAME = next(name for name in CACHE_NAMES if name in {field.name for field in fields(MoeModelOutputWithPast)})
"""What the installed transformers calls it."""

MAMBA_CACHE_NAME = "cache" if CACHE_NAME == "cache" else "cache_params"
"""What it calls that of classes with "mamba" in their name."""


def named(cache: Cache | None) -> dict[str, Any]:
    """The cache as a keyword argument of transformers' functions and outputs."""
    return {CACHE_NAME: cache}


def one_cache(cache: Any, past_key_values: Any) -> Any:
    """Whichever of the two was given, or None.

    Raises:
        ConfigError: both were, and they differ.
    """
    if cache is None or cache is past_key_values:
        return past_key_values
    if past_key_values is not None:
        raise ConfigError(
            "cache and past_key_values are two names of one argument and were given two values, a "
            f"{type(cache).__name__} and a {type(past_key_values).__name__}; give one"
        )
    return cache


def as_option(cache: Any, options: dict[str, Any]) -> tuple[Cache | None, dict[str, Any]]:
    """A paged cache (continuous batching) goes to attention as the option "cache"; any other stays what it is."""
    return (None, {**options, "cache": cache}) if isinstance(cache, PagedAttentionCache) else (cache, options)


def with_paged(
    key_BHNC: torch.Tensor, value_BHNC: torch.Tensor, layer_idx: int, options: dict[str, Any]
) -> tuple[torch.Tensor, torch.Tensor]:
    """Keys and values, behind those in the paged cache among the options, which before 5.24 attention adds itself."""
    if CACHE_NAME != "cache" or options.get("cache") is None:
        return key_BHNC, value_BHNC
    return options.pop("cache").update(key_BHNC, value_BHNC, layer_idx, kwargs=options)
