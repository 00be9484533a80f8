"""Attention in which each query attends to the k keys with the largest logits only, exactly.

Shapes: B batch, H query heads, G key heads (H is a multiple), S queries, N keys, C head width, V width of the values.
"""

from typing import Any

import torch

from moe_hf.base.errors import ConfigError
from moe_hf.ops.attention.contract import (
    DIFFERENTIABLE,
    Inputs,
    capped,
    forward_shapes,
    in_own_types,
    prepared,
    reference_weights,
    room_for_gradients,
    weighted_values,
)
from moe_hf.ops.attention.topk_passes import TopkOptions, backward_pass, forward_pass
from moe_hf.ops.operators import needs_gradient, opaque


@in_own_types
def reference_topk_attention(
    query_BHSC: torch.Tensor, key_BGNC: torch.Tensor, value_BGNV: torch.Tensor, top_k: int | float, **options: Any
) -> tuple[torch.Tensor, torch.Tensor]:
    """`topk_sparse_attention` in the plain: the output (B, H, S, V) and the weights (B, H, S, N), all at once.

    Gupta et al. 2021, "Memory-efficient Transformers via Top-k Attention", eq. 2: a softmax over the k largest logits
    of each row, the others as if they were minus infinity. Arguments as there.
    """
    inputs, asked = _prepare(query_BHSC, key_BGNC, value_BGNV, top_k, **options)
    query, key, value, mask = inputs[:4]
    key_BHNC = key.repeat_interleave(query.shape[1] // key.shape[1], dim=1)
    logit_BHSN = query @ key_BHNC.transpose(2, 3) * asked.scale
    # The cap keeps the order, which rounding after it would not; only a float mask is added to capped logits.
    order_BHSN = logit_BHSN
    logit_BHSN = capped(logit_BHSN, asked.softcap)
    visible_BHSN = _visible(inputs, asked).expand_as(logit_BHSN)
    if mask is not None and mask.dtype != torch.bool:
        order_BHSN = logit_BHSN = logit_BHSN + mask
    if asked.top_k < 1:
        kept_BHS1 = (visible_BHSN.sum(dim=-1, keepdim=True).double() * asked.top_k - 1e-6).ceil().clamp(min=1)
    else:
        kept_BHS1 = torch.full_like(logit_BHSN[..., :1], asked.top_k)
    order_BHSN = order_BHSN.masked_fill(~visible_BHSN, -torch.inf)
    rank_BHSN = order_BHSN.argsort(dim=-1, descending=True).argsort(dim=-1)
    logit_BHSN = logit_BHSN.masked_fill(~visible_BHSN | (rank_BHSN >= kept_BHS1), -torch.inf)
    weight_BHSN = reference_weights(logit_BHSN, inputs.sink_H)
    return weighted_values(weight_BHSN, value, asked.dropout, value_BGNV.dtype)


def _visible(inputs: Inputs, options: TopkOptions) -> torch.Tensor:
    """Which keys each query may see, four dimensions that broadcast to (B, H, S, N)."""
    query, key, _, mask = inputs[:4]
    place_S1 = options.query_start + torch.arange(query.shape[2], device=query.device)[:, None]
    key_N = torch.arange(key.shape[2], device=query.device)
    visible = torch.ones(1, 1, query.shape[2], key.shape[2], dtype=torch.bool, device=query.device)
    if options.causal:
        visible = visible & (key_N <= place_S1)
    if options.window:
        visible = visible & (key_N > place_S1 - options.window)
    if mask is None:
        return visible
    return visible & (mask if mask.dtype == torch.bool else mask > torch.finfo(mask.dtype).min / 2)


def topk_sparse_attention(
    query_BHSC: torch.Tensor,
    key_BGNC: torch.Tensor,
    value_BGNV: torch.Tensor,
    top_k: int | float,
    *,
    mask: torch.Tensor | None = None,
    causal: bool = True,
    query_start: int | None = None,
    window: int | None = None,
    scale: float | None = None,
    softcap: float | None = None,
    sink_H: torch.Tensor | None = None,
    dropout: float = 0.0,
) -> torch.Tensor:
    """Attention over the `top_k` largest visible logits of each row, (B, H, S, V) in the dtype of the values.

    Exact (Gupta et al. 2021, "Memory-efficient Transformers via Top-k Attention"): with `top_k` of all keys or more it
    is scaled_dot_product_attention. Computes in float32 (float64 where the queries are), some queries at a time, so
    that no (S, N) matrix exists; the backward pass makes the weights anew. Fewer keys to attend to is not less work to
    find them: prefill takes longer than dense attention, decoding against a long cache less than half as long.

    Args:
        query_BHSC: queries, in the layout of torch's scaled_dot_product_attention.
        key_BGNC: keys, each head of which serves H / G query heads.
        value_BGNV: values.
        top_k: keys that a query keeps, an integer >= 1; or a fraction in (0, 1) of those that it sees, rounded up. Of
            equal logits any may be kept; `softcap` makes none equal, since it comes after the choice unless a float
            mask is added to capped logits.
        mask: (B or 1, H or 1, S or 1, N); bool, True at keys to see, or float, added to the logits, -inf or the dtype's
            least value at keys to hide. It gets no gradient. Holds besides `causal` and `window`.
        causal: whether a query sees no key after its own place.
        query_start: place of the first query among the keys, >= 0; None places the last query at the last key.
        window: a query sees so many keys up to its own place; None means all.
        scale: factor of the logits; None means C ** -0.5.
        softcap: bounds the logits by `softcap * tanh(logit / softcap)` (Gemma 2); None does not.
        sink_H: a logit per head that takes its share of the softmax and gives nothing (gpt-oss).
        dropout: probability in [0, 1) with which a weight is dropped.

    Raises:
        ConfigError: an argument is none of the above.

    >>> x = torch.randn(1, 2, 5, 8)
    >>> topk_sparse_attention(x, x, x, top_k=3).shape
    torch.Size([1, 2, 5, 8])
    """
    softmax: dict[str, Any] = {"scale": scale, "softcap": softcap, "sink_H": sink_H, "dropout": dropout}
    sight: dict[str, Any] = {"mask": mask, "causal": causal, "query_start": query_start, "window": window}
    inputs, options = _prepare(query_BHSC, key_BGNC, value_BGNV, top_k, **sight, **softmax)
    runs_opaque = needs_gradient(*inputs) or torch.compiler.is_compiling()
    out_BHSV = (_topk_attention if runs_opaque else forward_pass)(inputs, options)
    return out_BHSV.to(value_BGNV.dtype)


def _prepare(
    query_BHSC: torch.Tensor,
    key_BGNC: torch.Tensor,
    value_BGNV: torch.Tensor,
    top_k: int | float,
    *,
    mask: torch.Tensor | None = None,
    causal: bool = True,
    query_start: int | None = None,
    window: int | None = None,
    **softmax: Any,
) -> tuple[Inputs, TopkOptions]:
    (batch, heads, queries, _), keys = query_BHSC.shape, key_BGNC.shape[2]
    if query_start is None:
        query_start = keys - queries
    if causal and query_start < 0:
        raise ConfigError(
            f"{queries} causal queries do not fit behind {keys} keys; give query_start >= 0, or causal=False"
        )
    if window is not None and window < 1:
        raise ConfigError(f"window must be None or an integer >= 1, got {window}")
    if mask is not None:
        if mask.requires_grad:
            raise ConfigError(
                f"mask {tuple(mask.shape)} must not require a gradient, since none is computed; detach it, or use eager"
            )
        allowed = {0: (1, batch), 1: (1, heads), 2: (1, queries), 3: (keys,)}
        if mask.dim() != 4 or any(mask.shape[dim] not in sizes for dim, sizes in allowed.items()):
            raise ConfigError(f"mask must be (B or 1, H or 1, S or 1, {keys} keys), got {tuple(mask.shape)}")
    inputs, asked = prepared(query_BHSC, key_BGNC, value_BGNV, top_k, mask, **softmax)
    return inputs, TopkOptions(float(top_k), causal, query_start, window or 0, *asked)


_topk_attention = opaque(
    "topk_attention",
    forward_pass,
    forward_shapes,
    backward_pass,
    room_for_gradients,
    returns=("out_BHSV",),
    gradients=DIFFERENTIABLE,
)
