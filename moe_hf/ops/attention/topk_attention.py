"""Attention in which each query attends to the k keys with the largest logits only, exactly.

Shapes: B batch, H query heads, G key heads (H is a multiple), S queries, N keys, C head width, V width of the values.
"""

from typing import Any

import torch

from moe_hf.base.errors import ConfigError
from moe_hf.ops.attention.topk_passes import TopkInputs, TopkOptions, backward_pass, forward_pass
from moe_hf.ops.attention.topk_selection import require_top_k
from moe_hf.ops.dtypes import float32_or_more


def reference_topk_attention(
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
) -> tuple[torch.Tensor, torch.Tensor]:
    """`topk_sparse_attention` in the plain: the output (B, H, S, V) and the weights (B, H, S, N), all at once.

    Gupta et al. 2021, "Memory-efficient Transformers via Top-k Attention", eq. 2: a softmax over the k largest logits
    of each row, the others as if they were minus infinity. Arguments as there.
    """
    inputs, options = _prepare(
        query_BHSC, key_BGNC, value_BGNV, top_k, mask, causal, query_start, window, scale, softcap, sink_H, dropout
    )
    query, key, value = inputs[:3]
    groups = query.shape[1] // key.shape[1]
    logit_BHSN = query @ key.repeat_interleave(groups, dim=1).transpose(2, 3) * options.scale
    # The cap keeps the order, which rounding after it would not; only a float mask is added to capped logits.
    order_BHSN = logit_BHSN
    if options.softcap:
        logit_BHSN = options.softcap * torch.tanh(logit_BHSN / options.softcap)
    visible_BHSN = torch.ones_like(logit_BHSN, dtype=torch.bool)
    place_S1 = options.query_start + torch.arange(query.shape[2], device=query.device)[:, None]
    key_N = torch.arange(key.shape[2], device=query.device)
    if options.causal:
        visible_BHSN = visible_BHSN & (key_N <= place_S1)
    if options.window:
        visible_BHSN = visible_BHSN & (key_N > place_S1 - options.window)
    if mask is not None and mask.dtype == torch.bool:
        visible_BHSN = visible_BHSN & mask
    elif mask is not None:
        visible_BHSN = visible_BHSN & (mask > torch.finfo(mask.dtype).min / 2)
        order_BHSN = logit_BHSN = logit_BHSN + mask
    logit_BHSN = logit_BHSN.masked_fill(~visible_BHSN, -torch.inf)

    if options.top_k < 1:
        kept_BHS1 = (visible_BHSN.sum(dim=-1, keepdim=True).double() * options.top_k - 1e-6).ceil().clamp(min=1)
    else:
        kept_BHS1 = torch.full_like(logit_BHSN[..., :1], options.top_k)
    order_BHSN = order_BHSN.masked_fill(~visible_BHSN, -torch.inf)
    rank_BHSN = order_BHSN.argsort(dim=-1, descending=True).argsort(dim=-1)
    logit_BHSN = logit_BHSN.masked_fill(rank_BHSN >= kept_BHS1, -torch.inf)
    if sink_H is not None:
        sink_BHS1 = sink_H.to(logit_BHSN.dtype)[None, :, None, None].expand_as(logit_BHSN[..., :1])
        weight_BHSN = torch.cat([logit_BHSN, sink_BHS1], dim=-1).softmax(dim=-1)[..., :-1]
    else:
        # A row that sees nothing gets zeros instead of the softmax's NaN, whose gradient would be NaN as well.
        blind_BHS1 = ~visible_BHSN.any(dim=-1, keepdim=True)
        weight_BHSN = logit_BHSN.masked_fill(blind_BHS1, 0.0).softmax(dim=-1).masked_fill(blind_BHS1, 0.0)
    weight_BHSN = torch.nn.functional.dropout(weight_BHSN, options.dropout)
    out_BHSV = weight_BHSN @ value.repeat_interleave(groups, dim=1)
    return out_BHSV.to(value_BGNV.dtype), weight_BHSN.to(value_BGNV.dtype)


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
    inputs, options = _prepare(
        query_BHSC, key_BGNC, value_BGNV, top_k, mask, causal, query_start, window, scale, softcap, sink_H, dropout
    )
    trains = torch.is_grad_enabled() and any(x is not None and x.requires_grad for x in inputs)
    if trains or torch.compiler.is_compiling():
        out_BHSV = _topk_attention(*inputs, *options)
    else:
        out_BHSV = forward_pass(inputs, options)
    return out_BHSV.to(value_BGNV.dtype)


def _prepare(
    query_BHSC: torch.Tensor,
    key_BGNC: torch.Tensor,
    value_BGNV: torch.Tensor,
    top_k: int | float,
    mask: torch.Tensor | None,
    causal: bool,
    query_start: int | None,
    window: int | None,
    scale: float | None,
    softcap: float | None,
    sink_H: torch.Tensor | None,
    dropout: float,
) -> tuple[TopkInputs, TopkOptions]:
    (_, heads, queries, channels), (_, groups, keys, _) = query_BHSC.shape, key_BGNC.shape
    require_top_k(top_k)
    if heads % groups:
        raise ConfigError(f"{heads} query heads do not divide among {groups} key heads; give a multiple")
    if query_start is None:
        query_start = keys - queries
    if causal and query_start < 0:
        raise ConfigError(
            f"{queries} causal queries do not fit behind {keys} keys; give query_start >= 0, or causal=False"
        )
    if window is not None and window < 1:
        raise ConfigError(f"window must be None or an integer >= 1, got {window}")
    if not 0 <= dropout < 1:
        raise ConfigError(f"dropout must be in [0, 1), got {dropout}")
    if mask is not None:
        if mask.requires_grad:
            raise ConfigError(
                f"mask {tuple(mask.shape)} must not require a gradient, since none is computed; detach it, or use eager"
            )
        allowed = {0: (1, query_BHSC.shape[0]), 1: (1, heads), 2: (1, queries), 3: (keys,)}
        if mask.dim() != 4 or any(mask.shape[dim] not in sizes for dim, sizes in allowed.items()):
            raise ConfigError(f"mask must be (B or 1, H or 1, S or 1, {keys} keys), got {tuple(mask.shape)}")
    dtype = float32_or_more(query_BHSC)
    seed = torch.randint(1 << 62, (), dtype=torch.int64) if dropout else None
    tensors = (query_BHSC.to(dtype), key_BGNC.to(dtype).contiguous(), value_BGNV.to(dtype).contiguous())
    options = TopkOptions(
        float(top_k),
        causal,
        query_start,
        window or 0,
        channels**-0.5 if scale is None else scale,
        softcap or 0.0,
        dropout,
    )
    return TopkInputs(*tensors, mask, sink_H, seed), options


# Autograd and the compiler see one operator: its loop over parts would grow their graphs with the length.
@torch.library.custom_op("moe_hf::topk_attention", mutates_args=())
def _topk_attention(
    query_BHSC: torch.Tensor,
    key_BGNC: torch.Tensor,
    value_BGNV: torch.Tensor,
    mask: torch.Tensor | None,
    sink_H: torch.Tensor | None,
    seed: torch.Tensor | None,
    top_k: float,
    causal: bool,
    query_start: int,
    window: int,
    scale: float,
    softcap: float,
    dropout: float,
) -> torch.Tensor:
    options = TopkOptions(top_k, causal, query_start, window, scale, softcap, dropout)
    return forward_pass(TopkInputs(query_BHSC, key_BGNC, value_BGNV, mask, sink_H, seed), options)


@_topk_attention.register_fake
def _topk_attention_fake(
    query_BHSC: torch.Tensor, key_BGNC: torch.Tensor, value_BGNV: torch.Tensor, *others: Any
) -> torch.Tensor:
    return query_BHSC.new_empty(*query_BHSC.shape[:3], value_BGNV.shape[-1])


@torch.library.custom_op("moe_hf::topk_attention_backward", mutates_args=())
def _topk_attention_backward(
    dout_BHSV: torch.Tensor,
    query_BHSC: torch.Tensor,
    key_BGNC: torch.Tensor,
    value_BGNV: torch.Tensor,
    mask: torch.Tensor | None,
    sink_H: torch.Tensor | None,
    seed: torch.Tensor | None,
    top_k: float,
    causal: bool,
    query_start: int,
    window: int,
    scale: float,
    softcap: float,
    dropout: float,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    options = TopkOptions(top_k, causal, query_start, window, scale, softcap, dropout)
    return backward_pass(dout_BHSV, TopkInputs(query_BHSC, key_BGNC, value_BGNV, mask, sink_H, seed), options)


@_topk_attention_backward.register_fake
def _topk_attention_backward_fake(
    dout_BHSV: torch.Tensor,
    query_BHSC: torch.Tensor,
    key_BGNC: torch.Tensor,
    value_BGNV: torch.Tensor,
    mask: torch.Tensor | None,
    sink_H: torch.Tensor | None,
    *others: Any,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    query, key, value = (x.new_empty(x.shape) for x in (query_BHSC, key_BGNC, value_BGNV))
    return query, key, value, query.new_empty(0 if sink_H is None else query.shape[1])


def _keep_inputs(ctx: Any, inputs: tuple[Any, ...], output: torch.Tensor) -> None:
    ctx.save_for_backward(*inputs[:6])
    ctx.options = inputs[6:]


def _differentiate(ctx: Any, dout_BHSV: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
    tensors = ctx.saved_tensors
    *dinputs, dsink_H = _topk_attention_backward(dout_BHSV, *tensors, *ctx.options)
    sink_H = tensors[4]
    return *dinputs, None, None if sink_H is None else dsink_H.to(sink_H.dtype), None, *[None] * len(ctx.options)


_topk_attention.register_autograd(_differentiate, setup_context=_keep_inputs)
