"""Makes what a decoder's layers are told of a call out of what its forward was given.

Shapes: B batch, S positions of this call, D width.
"""

from typing import Any, NamedTuple, cast

import torch
from transformers import Cache
from transformers.masking_utils import create_causal_mask, create_sliding_window_causal_mask
from transformers.utils.generic import is_flash_attention_requested

from moe_hf.base.errors import ConfigError
from moe_hf.config.decoder import MoEDecoderConfig
from moe_hf.layers.attention.packed_rows import (
    document_bounds,
    document_starts,
    hides_nothing,
    is_plain,
    none_if_all,
    positions_from,
    require_no_restart,
    require_unbroken,
)
from moe_hf.layers.caches.host import named
from moe_hf.layers.caches.states import hindrance_of, padding_seen, require_rows
from moe_hf.layers.inputs import LayerInputs


class Given(NamedTuple):
    """What a call of the skeleton was given: embeddings (B, S, D), and the arguments of its forward by their names."""

    inputs_embeds: torch.Tensor
    attention_mask: Any
    position_ids: torch.Tensor | None
    cache: Cache | None
    options: dict[str, Any]

    @property
    def shape(self) -> tuple[int, int]:
        """B and S."""
        return self.inputs_embeds.shape[0], self.inputs_embeds.shape[1]

    @property
    def seen(self) -> Any:
        """Positions in the cache."""
        return 0 if self.cache is None else self.cache.get_seq_length()


def layer_inputs(given: Given, config: MoEDecoderConfig, attends: bool) -> LayerInputs:
    """What all layers of the call are told; the skeleton adds what its own modules compute.

    Args:
        given: to the skeleton.
        config: of the skeleton.
        attends: whether one of its layers is attention.

    Raises:
        ConfigError: masks, positions and cache cannot be honoured together.
    """
    batch, _ = given.shape
    _refuse_masks_that_no_state_could_heed(given, config)
    require_rows(given.cache, batch)
    position_ids = positions_from(given.options, given.position_ids, given.shape)
    hindrance = hindrance_of(given.cache, attends)
    if position_ids is not None and hindrance is None and hides_nothing(given.attention_mask):
        # With a mask, transformers would not look for documents.
        given = given._replace(attention_mask=None)
    packed = position_ids is not None and given.attention_mask is None and hindrance is None
    if position_ids is not None and not packed and is_plain(given.attention_mask):
        why = hindrance or "an attention_mask that hides something"
        require_no_restart(position_ids, given.attention_mask, why)
    if position_ids is None:
        position_ids = _positions(given)
    options = given.options
    # Flash attention looks for documents in a single row by itself; of several rows it must be told.
    if packed and batch > 1 and position_ids.shape[0] == batch and is_flash_attention_requested(config):
        options = {**document_bounds(position_ids), **options}
    windowed, whole = _kinds_of_mask(config) if attends else (False, False)
    if windowed:
        require_unbroken(given.attention_mask, cast(int, config.sliding_window))
    return LayerInputs(
        attention_mask=_attention_mask(given, position_ids, packed, config) if whole else None,
        window_mask=_attention_mask(given, position_ids, packed, config, "sliding_attention") if windowed else None,
        padding_mask=_padding_mask(given),
        document_starts=document_starts(position_ids, batch) if packed else None,
        position_ids=position_ids,
        cache=given.cache,
        attention_options=options,
    )


def _kinds_of_mask(config: MoEDecoderConfig) -> tuple[bool, bool]:
    """Whether some of the layers that attend have a sliding window, and whether some have none."""
    if config.sliding_window is None:
        return False, True
    windows = [config.window_of_layer(i) for i, mixer in enumerate(config.mixer_of_layer) if mixer == "attention"]
    return any(window is not None for window in windows), None in windows


def _attention_mask(
    given: Given, position_ids: torch.Tensor, packed: bool, config: MoEDecoderConfig, kind: str = "full_attention"
) -> Any:
    if isinstance(given.attention_mask, dict):
        # generate prepares masks itself for caches that can be compiled.
        return given.attention_mask[kind]
    create_mask = create_sliding_window_causal_mask if kind == "sliding_attention" else create_causal_mask
    return create_mask(
        config=config,
        inputs_embeds=given.inputs_embeds,
        attention_mask=given.attention_mask,
        position_ids=position_ids,
        # transformers looks for packed sequences only while there is no cache.
        **named(None if packed else given.cache),
    )


def _padding_mask(given: Given) -> torch.Tensor | None:
    mask = given.attention_mask
    if mask is None or isinstance(mask, dict) or mask.ndim != 2:
        return None
    return none_if_all(mask[:, -given.shape[1] :])


def _refuse_masks_that_no_state_could_heed(given: Given, config: MoEDecoderConfig) -> None:
    mask, length, seen = given.attention_mask, given.shape[1], given.seen
    if mask is None or set(config.layer_types or []) <= {"full_attention", "sliding_attention"}:
        return
    if isinstance(mask, dict) or mask.ndim != 2:
        form = "dict" if isinstance(mask, dict) else f"shape {tuple(mask.shape)}"
        raise ConfigError(
            f"attention_mask of {form} is not allowed; where layers keep a state it must be (batch, positions), "
            "nonzero at real tokens"
        )
    # Not `in`: a compiler that knows lengths by symbols finds none of them in a tuple.
    if isinstance(seen, int) and mask.shape[1] != length and mask.shape[1] != seen + length:
        raise ConfigError(
            f"attention_mask of shape {tuple(mask.shape)} is not allowed; it must have {seen + length} columns, for "
            f"{seen} tokens in the cache and {length} new ones"
        )


def _positions(given: Given) -> torch.Tensor:
    """(B or 1, S): the number of real tokens before each, where the mask tells."""
    mask, length, seen = given.attention_mask, given.shape[1], given.seen
    if isinstance(mask, torch.Tensor) and mask.ndim == 2:
        # A length that is a tensor, as that of a static cache, may not be looked at while a compiler traces.
        looked_at = isinstance(seen, int) or not torch.compiler.is_compiling()
        if looked_at and mask.shape[1] == seen + length and none_if_all(mask) is not None:
            return (mask.ne(0).long().cumsum(dim=1)[:, -length:] - 1).clamp(min=0)
    padding_B = padding_seen(given.cache)
    before = seen if padding_B is None else seen - padding_B[:, None]
    return torch.arange(length, device=given.inputs_embeds.device)[None] + before
