"""Sparse attention for any transformers model, by `attn_implementation="topk_sparse"` or `"topk_block"`.

Shapes: B batch, H query heads, G key heads, S positions of this call, N keys, C head width.

How many keys or blocks: attributes of the model's config, `attn_topk`, `attn_topk_blocks` and `attn_block_size`, each a
number or a list with one per layer; a keyword argument of the same name in the model's forward call goes before them.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import nn
from transformers import AttentionInterface
from transformers.masking_utils import AttentionMaskInterface, causal_mask_function, sdpa_mask
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from moe_hf.base.errors import ConfigError
from moe_hf.ops.attention.block_attention import reference_block_attention, topk_block_attention
from moe_hf.ops.attention.topk_attention import reference_topk_attention, topk_sparse_attention
from moe_hf.ops.attention.visible_spans import make_spans

DEFAULT_TOPK = 64
DEFAULT_TOPK_BLOCKS = 4
DEFAULT_BLOCK_SIZE = 128


def register_sparse_attention(replace: bool = True) -> None:
    """Make "topk_sparse" and "topk_block" known to transformers, with their masks: without one there would be none.

    Args:
        replace: as in `moe_hf.layers.experts.backends.register_experts_backends`.
    """
    for name, attend, mask in (
        ("topk_sparse", topk_sparse_forward, sdpa_mask),
        ("topk_block", topk_block_forward, spans_mask),
    ):
        if replace or name not in ALL_ATTENTION_FUNCTIONS:
            AttentionInterface.register(name, attend)
            AttentionMaskInterface.register(name, mask)


class SparseOptions(NamedTuple):
    """The keyword arguments of an attention function that both kinds of sparse attention read; None where not given.

    Attributes:
        is_causal: whether the layer is; by default what it says of itself.
        sliding_window: of the layer; it is in the mask already, where there is one.
        softcap, s_aux: bound and sinks of the logits, as in Gemma 2 and gpt-oss.
        attn_topk: keys that a query keeps, a fraction of those that it sees, or one of these per layer.
        attn_topk_blocks: blocks that a query attends to, a fraction of those that it sees, or one of these per layer.
        attn_block_size: keys of a block, or a number per layer.
        output_attentions: whether to return the weights, made all at once then. A layer has to hand it down: the stock
            GPT-2 does not, so that its `attentions` are an empty tuple, as with "sdpa".
    """

    is_causal: bool | None = None
    sliding_window: int | None = None
    softcap: float | None = None
    s_aux: torch.Tensor | None = None
    attn_topk: int | float | list[int | float] | None = None
    attn_topk_blocks: int | float | list[int | float] | None = None
    attn_block_size: int | list[int] | None = None
    output_attentions: bool | None = None


def topk_sparse_forward(
    module: nn.Module,
    query_BHSC: torch.Tensor,
    key_BGNC: torch.Tensor,
    value_BGNC: torch.Tensor,
    attention_mask: torch.Tensor | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    **kwargs: Any,
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Exact top-k attention (Gupta et al. 2021) in the signature of transformers' AttentionInterface.

    Args:
        module: the attention layer; its config may hold `attn_topk`, by default 64.
        query_BHSC, key_BGNC, value_BGNC: as every attention function gets them.
        attention_mask: (B, 1 or H, S, N), bool or float; None is causal where there are several queries, which then
            stand at the first keys (a static cache has room behind them), and full for a single one.
        scaling: factor of the logits.
        dropout: probability with which a weight is dropped.
        **kwargs: those of `SparseOptions`, and what does not concern attention; what does and cannot be honoured is
            refused.

    Returns:
        The output (B, S, H, C) and the weights (B, H, S, N) or None.

    Raises:
        ConfigError: an option cannot be honoured, or has a wrong value.
    """
    given = _options("topk_sparse", kwargs)
    top_k = _setting(module, "attn_topk", given.attn_topk, DEFAULT_TOPK)
    causal = attention_mask is None and query_BHSC.shape[2] > 1 and _is_causal(module, given.is_causal)
    options = {
        "mask": attention_mask,
        "causal": causal,
        "query_start": 0,
        # A mask has the window in it already.
        "window": given.sliding_window if causal else None,
        "scale": scaling,
        "softcap": given.softcap,
        "sink_H": given.s_aux,
        "dropout": dropout,
    }
    attend = (reference_topk_attention, topk_sparse_attention)
    return _attend(attend, (query_BHSC, key_BGNC, value_BGNC, top_k), options, given.output_attentions)


def topk_block_forward(
    module: nn.Module,
    query_BHSC: torch.Tensor,
    key_BGNC: torch.Tensor,
    value_BGNC: torch.Tensor,
    attention_mask: torch.Tensor | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    **kwargs: Any,
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Attention to chosen blocks (Lu et al. 2025, MoBA) in the signature of transformers' AttentionInterface.

    A layer with a sliding window is sparse by that already: it attends to the whole of its window.

    Args:
        module: the attention layer, which must be causal; its config may hold `attn_topk_blocks`, by default 4, and
            `attn_block_size`, by default 128.
        query_BHSC, key_BGNC, value_BGNC, scaling, dropout, **kwargs: as in `topk_sparse_forward`.
        attention_mask: as there, or the spans of a mask, from `spans_mask`.

    Returns:
        The output (B, S, H, C) and the weights (B, H, S, N) or None.

    Raises:
        ConfigError: an option cannot be honoured, or has a wrong value.
    """
    given = _options("topk_block", kwargs)
    if not _is_causal(module, given.is_causal):
        raise ConfigError(
            f'attn_implementation="topk_block" is for causal self-attention, not for {type(module).__name__} with '
            f'is_causal={given.is_causal}; use "topk_sparse", or "sdpa" for this model'
        )
    if given.sliding_window is not None:
        whole = {**kwargs, "is_causal": True, "attn_topk": key_BGNC.shape[2]}
        return topk_sparse_forward(module, query_BHSC, key_BGNC, value_BGNC, attention_mask, scaling, dropout, **whole)
    options = {
        "block_size": _setting(module, "attn_block_size", given.attn_block_size, DEFAULT_BLOCK_SIZE),
        "mask": attention_mask,
        # Without a mask several queries stand at the first keys, and a single one at the last.
        "query_start": 0 if query_BHSC.shape[2] > 1 else None,
        "scale": scaling,
        "softcap": given.softcap,
        "sink_H": given.s_aux,
        "dropout": dropout,
    }
    top_k = _setting(module, "attn_topk_blocks", given.attn_topk_blocks, DEFAULT_TOPK_BLOCKS)
    attend = (reference_block_attention, topk_block_attention)
    return _attend(attend, (query_BHSC, key_BGNC, value_BGNC, top_k), options, given.output_attentions)


def spans_mask(
    batch_size: int,
    q_length: int,
    kv_length: int,
    q_offset: int = 0,
    kv_offset: int = 0,
    mask_function: Callable[..., Any] = causal_mask_function,
    attention_mask: torch.Tensor | None = None,
    local_size: int | None = None,
    allow_is_causal_skip: bool = True,
    device: torch.device | str = "cpu",
    **kwargs: Any,
) -> torch.Tensor | None:
    """The mask of "topk_block": the spans (B, 1, 3, N) of `ops.attention.visible_spans`, never a whole (S, N) matrix.

    Layers with a window or chunks get a bool mask instead, and plain causal attention gets None.

    Args:
        batch_size, q_length, kv_length: sizes.
        q_offset, kv_offset: places of the first query and the first key in the sequence.
        mask_function: whether a query sees a key, by their indices.
        attention_mask: (B, keys), nonzero at real tokens.
        local_size: width of a window or chunk.
        allow_is_causal_skip: whether None may be returned.
        device: of the result.
        **kwargs: handed to transformers' own mask function.
    """
    shared: dict[str, Any] = {**kwargs, "kv_offset": kv_offset, "mask_function": mask_function}
    shared |= {"attention_mask": attention_mask, "device": device}
    if local_size is not None or kwargs.get("allow_is_bidirectional_skip"):
        shared |= {"local_size": local_size, "allow_is_causal_skip": allow_is_causal_skip}
        return sdpa_mask(batch_size, q_length, kv_length, q_offset, **shared)
    # A value may be looked at only where nothing is being traced.
    dense = attention_mask is None or (not torch.compiler.is_compiling() and bool(attention_mask.all()))
    if allow_is_causal_skip and dense and q_length in (1, kv_length):
        return None

    def mask_of(start: int, stop: int) -> torch.Tensor:
        part = sdpa_mask(batch_size, stop - start, kv_length, q_offset + start, allow_is_causal_skip=False, **shared)
        if part is None:
            raise ConfigError('attn_implementation="topk_block" needs a causal mask; use "sdpa" for this model')
        return part

    return make_spans(mask_of, batch_size, q_length, kv_length, device)


def _attend(
    functions: tuple[Callable[..., Any], Callable[..., Any]],
    positional: tuple[Any, ...],
    options: dict[str, Any],
    with_weights: bool | None,
) -> tuple[torch.Tensor, torch.Tensor | None]:
    reference, fast = functions
    if with_weights:
        out_BHSC, weight_BHSN = reference(*positional, **options)
        return out_BHSC.transpose(1, 2), weight_BHSN
    return fast(*positional, **options).transpose(1, 2).contiguous(), None


def _is_causal(module: nn.Module, given: bool | None) -> bool:
    # As in transformers' own functions: what does not say otherwise is causal.
    return bool(getattr(module, "is_causal", True)) if given is None else given


def _setting(module: nn.Module, name: str, given: Any, default: Any) -> Any:
    value = getattr(getattr(module, "config", None), name, None) if given is None else given
    if value is None:
        return default
    if isinstance(value, (list, tuple)):
        layer = getattr(module, "layer_idx", None)
        if layer is None or layer >= len(value):
            raise ConfigError(f"{name}={value} has no entry for layer {layer}; give one number, or one per layer")
        return value[layer]
    return value


def _options(implementation: str, given: dict[str, Any]) -> SparseOptions:
    for name, why in {"position_bias": "a bias by position", "cache": "a paged cache"}.items():
        if given.get(name) is not None:
            raise ConfigError(
                f'attn_implementation="{implementation}" does not support {why} ({name}); use "sdpa" or "eager"'
            )
    return SparseOptions(**{name: given.get(name) for name in SparseOptions._fields})
