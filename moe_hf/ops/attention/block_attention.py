"""Causal attention in which each query attends to its own block of keys and to the past blocks that suit it best.

Shapes: B batch, H query heads, G key heads (H is a multiple), S queries, N keys, C head width, V width of the values; P
the block size, K blocks per query, J = N / P blocks.
"""

from collections.abc import Iterator
from typing import Any, NamedTuple

import torch

from moe_hf.base.errors import ConfigError
from moe_hf.ops.attention.block_passes import BlockOptions, Result, Tensors, backward_pass, forward_pass, num_choices
from moe_hf.ops.attention.topk_selection import require_top_k
from moe_hf.ops.attention.visible_spans import Document, documents, spans_of_mask
from moe_hf.ops.dtypes import float32_or_more


class _Inputs(NamedTuple):
    query_BHSC: torch.Tensor
    key_BGNC: torch.Tensor
    value_BGNV: torch.Tensor
    spans: torch.Tensor | None
    sink_H: torch.Tensor | None
    seed: torch.Tensor | None


def reference_block_attention(
    query_BHSC: torch.Tensor,
    key_BGNC: torch.Tensor,
    value_BGNV: torch.Tensor,
    top_k: int | float,
    *,
    block_size: int = 128,
    mask: torch.Tensor | None = None,
    query_start: int | None = None,
    scale: float | None = None,
    softcap: float | None = None,
    sink_H: torch.Tensor | None = None,
    dropout: float = 0.0,
) -> tuple[torch.Tensor, torch.Tensor]:
    """`topk_block_attention` in the plain: the output (B, H, S, V) and the weights (B, H, S, N), all at once.

    Lu et al. 2025, "MoBA: Mixture of Block Attention for Long-Context LLMs", eq. 2 to 6. Arguments as there.
    """
    inputs, options, query_start = _prepare(
        query_BHSC, key_BGNC, value_BGNV, top_k, block_size, mask, query_start, scale, softcap, sink_H, dropout
    )
    query, key, value = inputs[:3]
    groups = query.shape[1] // key.shape[1]
    key, value = key.repeat_interleave(groups, dim=1), value.repeat_interleave(groups, dim=1)
    weight_BHSN = query.new_zeros(*query.shape[:3], key.shape[2])
    for rows, query_q, key_n, count_q in _documents(inputs, query_start):
        query_BHqC, key_BHnC = query[rows][:, :, query_q], key[rows][:, :, key_n]
        keys = key_BHnC.shape[2]
        complete = keys // block_size
        mean_BHJC = key_BHnC[:, :, : complete * block_size].unflatten(2, (complete, block_size)).mean(dim=3)
        own_q1 = (count_q[:, None] - 1) // block_size
        past_qJ = torch.arange(complete, device=query.device) < own_q1
        gate_BHqJ = (query_BHqC @ mean_BHJC.transpose(2, 3)).masked_fill(~past_qJ, -torch.inf)
        most_q1 = ((own_q1 + 1).double() * top_k - 1e-6).ceil() if top_k < 1 else torch.full_like(own_q1, int(top_k))
        rank_BHqJ = gate_BHqJ.argsort(dim=-1, descending=True).argsort(dim=-1)
        chosen_BHqJ = (rank_BHqJ < most_q1 - 1) & past_qJ

        place_n = torch.arange(keys, device=query.device)
        visible_BHqn = (place_n // block_size == own_q1).repeat(*query_BHqC.shape[:2], 1, 1)
        visible_BHqn[..., : complete * block_size] |= chosen_BHqJ.repeat_interleave(block_size, dim=-1)
        visible_BHqn &= place_n < count_q[:, None]
        logit_BHqn = query_BHqC @ key_BHnC.transpose(2, 3) * options.scale
        if options.softcap:
            logit_BHqn = options.softcap * torch.tanh(logit_BHqn / options.softcap)
        logit_BHqn = logit_BHqn.masked_fill(~visible_BHqn, -torch.inf)
        if sink_H is not None:
            sink_BHq1 = sink_H.to(logit_BHqn.dtype)[None, :, None, None].expand_as(logit_BHqn[..., :1])
            logit_BHqn = torch.cat([logit_BHqn, sink_BHq1], dim=-1)
        weight_BHSN[rows, :, query_q[:, None], key_n] = logit_BHqn.softmax(dim=-1)[..., :keys]
    weight_BHSN = torch.nn.functional.dropout(weight_BHSN, options.dropout)
    return (weight_BHSN @ value).to(value_BGNV.dtype), weight_BHSN.to(value_BGNV.dtype)


def topk_block_attention(
    query_BHSC: torch.Tensor,
    key_BGNC: torch.Tensor,
    value_BGNV: torch.Tensor,
    top_k: int | float,
    *,
    block_size: int = 128,
    mask: torch.Tensor | None = None,
    query_start: int | None = None,
    scale: float | None = None,
    softcap: float | None = None,
    sink_H: torch.Tensor | None = None,
    dropout: float = 0.0,
) -> torch.Tensor:
    """Causal attention to `top_k` blocks of keys per query and head, (B, H, S, V) in the dtype of the values.

    The own block up to the query itself, and the past blocks whose mean key has the largest product with the query (Lu
    et al. 2025, "MoBA: Mixture of Block Attention for Long-Context LLMs"). Blocks are counted from the first key of the
    query's document, so that neither padding nor packing changes anything. Work and memory grow with S * top_k *
    block_size instead of S * N; computes in float32 (float64 where the queries are).

    Args:
        query_BHSC: queries, in the layout of torch's scaled_dot_product_attention.
        key_BGNC: keys, each head of which serves H / G query heads.
        value_BGNV: values.
        top_k: blocks that a query attends to, its own among them, an integer >= 1; or a fraction in (0, 1) of those
            that it sees a part of, rounded up.
        block_size: keys of a block.
        mask: None, which means causal; or (B, 1, S, N), bool, True at keys to see, or float, -inf or the dtype's least
            value at keys to hide; or the spans of such a mask from `ops.attention.visible_spans`, sooner read. It must
            show each query the keys of its document up to some point, padding left out.
        query_start: without a mask, the place of the first query among the keys, >= 0; None places the last query at
            the last key.
        scale: factor of the logits; None means C ** -0.5.
        softcap: bounds the logits by `softcap * tanh(logit / softcap)` (Gemma 2); None does not.
        sink_H: a logit per head that takes its share of the softmax and gives nothing (gpt-oss).
        dropout: probability in [0, 1) with which a weight is dropped.

    Raises:
        ConfigError: an argument is none of the above.
    """
    inputs, options, query_start = _prepare(
        query_BHSC, key_BGNC, value_BGNV, top_k, block_size, mask, query_start, scale, softcap, sink_H, dropout
    )
    trains = torch.is_grad_enabled() and any(x is not None and x.requires_grad for x in inputs)
    if trains or torch.compiler.is_compiling():
        out_BHSV = _block_attention(*inputs, query_start, *options)[0]
    else:
        out_BHSV = _forward(inputs, query_start, options, keep=False).out_ZHQV
    return out_BHSV.to(value_BGNV.dtype)


def _prepare(
    query_BHSC: torch.Tensor,
    key_BGNC: torch.Tensor,
    value_BGNV: torch.Tensor,
    top_k: int | float,
    block_size: int,
    mask: torch.Tensor | None,
    query_start: int | None,
    scale: float | None,
    softcap: float | None,
    sink_H: torch.Tensor | None,
    dropout: float,
) -> tuple[_Inputs, BlockOptions, int]:
    (batch, heads, queries, channels), (_, groups, keys, _) = query_BHSC.shape, key_BGNC.shape
    require_top_k(top_k)
    if not isinstance(block_size, int) or block_size < 1:
        raise ConfigError(f"block_size must be an integer >= 1, got {block_size!r}")
    if heads % groups:
        raise ConfigError(f"{heads} query heads do not divide among {groups} key heads; give a multiple")
    if not 0 <= dropout < 1:
        raise ConfigError(f"dropout must be in [0, 1), got {dropout}")
    query_start = keys - queries if query_start is None else query_start
    if mask is None and not 0 <= query_start <= keys - queries:
        raise ConfigError(
            f"{queries} queries from place {query_start} on do not stand among {keys} keys; give query_start in "
            f"[0, keys - queries]"
        )
    if mask is not None and mask.dtype != torch.int32:
        if mask.shape[0] not in (1, batch) or mask.shape[-2:] != (queries, keys):
            raise ConfigError(f"mask must be ({batch}, 1, {queries} queries, {keys} keys), got {tuple(mask.shape)}")
        mask = spans_of_mask(mask).expand(batch, -1, -1, -1)
    dtype = float32_or_more(query_BHSC)
    seed = torch.randint(1 << 62, (), dtype=torch.int64) if dropout else None
    tensors = (query_BHSC.to(dtype), key_BGNC.to(dtype).contiguous(), value_BGNV.to(dtype).contiguous())
    scale = channels**-0.5 if scale is None else scale
    options = BlockOptions(float(top_k), block_size, scale, softcap or 0.0, dropout)
    return _Inputs(*tensors, mask, sink_H, seed), options, query_start


def _documents(inputs: _Inputs, query_start: int) -> Iterator[Document]:
    batch, _, queries, _ = inputs.query_BHSC.shape
    if inputs.spans is not None:
        yield from documents(inputs.spans, queries)
        return
    place = torch.arange(query_start + queries, device=inputs.query_BHSC.device)
    yield Document(slice(0, batch), place[:queries], place, place[query_start:] + 1)


def _of_document(inputs: _Inputs, document: Document, number: int) -> Tensors:
    query, key, value, _, sink_H, seed = inputs
    rows, query_q, key_n, count_q = document
    per_head = query.shape[1] // key.shape[1]
    # Most often all queries are of one document, and its keys contiguous: nothing is copied then.
    first, stop = int(key_n[0]), int(key_n[-1]) + 1
    key, value = key[rows, :, first:stop], value[rows, :, first:stop]
    if len(key_n) < stop - first:
        key, value = key[:, :, key_n - first], value[:, :, key_n - first]
    query = query[rows] if len(query_q) == query.shape[2] else query[rows][:, :, query_q]
    if sink_H is not None:
        sink_H = sink_H.to(query.dtype).view(-1, per_head).repeat(len(query), 1)
    return Tensors(
        query.reshape(-1, per_head, *query.shape[2:]),
        key.flatten(0, 1),
        value.flatten(0, 1),
        count_q,
        sink_H,
        None if seed is None else seed + (number << 20),
    )


def _forward(inputs: _Inputs, query_start: int, options: BlockOptions, keep: bool) -> Result:
    # Of all documents, with batch and heads apart: (B, H, S, V), (B, H, S), (B, H, S, K); the last two only if kept.
    query, key, value = inputs[:3]
    kept = num_choices(options, key.shape[2])
    whole = Result(
        query.new_zeros(*query.shape[:3], value.shape[-1]),
        query.new_zeros(query.shape[:3] if keep else 0),
        query.new_zeros((*query.shape[:3], kept) if keep else 0, dtype=torch.int32),
    )
    for number, document in enumerate(_documents(inputs, query_start)):
        result = forward_pass(_of_document(inputs, document, number), options)
        for part, target in zip(result, whole, strict=True):
            if target.dim() > 1:
                chosen = part.unflatten(0, (-1, key.shape[1])).flatten(1, 2)
                if part is result.block_ZHQK:
                    target = target[..., : part.shape[-1]]
                target[document.rows][:, :, document.query_q] = chosen
    return whole


def _backward(
    dout_BHSV: torch.Tensor, inputs: _Inputs, query_start: int, options: BlockOptions, whole: Result
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    query, key, value, _, sink_H, _ = inputs
    # Of the layout that the compiler was told, whatever that of the inputs.
    dquery, dkey, dvalue = (x.new_zeros(x.shape) for x in (query, key, value))
    dsink_H = query.new_zeros(0 if sink_H is None else query.shape[1])
    for number, document in enumerate(_documents(inputs, query_start)):
        rows, query_q, key_n, _ = document
        tensors = _of_document(inputs, document, number)
        kept = num_choices(options, len(key_n))

        out, logsum, block, dout = (
            x_BHS[rows][:, :, query_q].unflatten(1, (key.shape[1], -1)).flatten(0, 1)
            for x_BHS in (whole.out_ZHQV, whole.logsum_ZHQ, whole.block_ZHQK[..., :kept], dout_BHSV)
        )
        parts = backward_pass(dout, tensors, options, Result(out, logsum, block))
        dquery[rows][:, :, query_q] = parts[0].unflatten(0, (-1, key.shape[1])).flatten(1, 2)
        dkey[rows][:, :, key_n] = parts[1].unflatten(0, (-1, key.shape[1]))
        dvalue[rows][:, :, key_n] = parts[2].unflatten(0, (-1, key.shape[1]))
        if parts[3] is not None:
            dsink_H += parts[3].view(-1, query.shape[1]).sum(dim=0)
    return dquery, dkey, dvalue, dsink_H


# Autograd and the compiler see one operator: which documents and pairs there are depends on the data.
@torch.library.custom_op("moe_hf::topk_block_attention", mutates_args=())
def _block_attention(
    query_BHSC: torch.Tensor,
    key_BGNC: torch.Tensor,
    value_BGNV: torch.Tensor,
    spans: torch.Tensor | None,
    sink_H: torch.Tensor | None,
    seed: torch.Tensor | None,
    query_start: int,
    top_k: float,
    block_size: int,
    scale: float,
    softcap: float,
    dropout: float,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    inputs = _Inputs(query_BHSC, key_BGNC, value_BGNV, spans, sink_H, seed)
    result = _forward(inputs, query_start, BlockOptions(top_k, block_size, scale, softcap, dropout), keep=True)
    return result.out_ZHQV, result.logsum_ZHQ, result.block_ZHQK


@_block_attention.register_fake
def _block_attention_fake(
    query_BHSC: torch.Tensor, key_BGNC: torch.Tensor, value_BGNV: torch.Tensor, *others: Any
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    shape = query_BHSC.shape[:3]
    kept = num_choices(BlockOptions(*others[-5:]), key_BGNC.shape[2])
    return (
        query_BHSC.new_empty(*shape, value_BGNV.shape[-1]),
        query_BHSC.new_empty(shape),
        query_BHSC.new_empty((*shape, kept), dtype=torch.int32),
    )


@torch.library.custom_op("moe_hf::topk_block_attention_backward", mutates_args=())
def _block_attention_backward(
    dout_BHSV: torch.Tensor,
    out_BHSV: torch.Tensor,
    logsum_BHS: torch.Tensor,
    block_BHSK: torch.Tensor,
    query_BHSC: torch.Tensor,
    key_BGNC: torch.Tensor,
    value_BGNV: torch.Tensor,
    spans: torch.Tensor | None,
    sink_H: torch.Tensor | None,
    seed: torch.Tensor | None,
    query_start: int,
    top_k: float,
    block_size: int,
    scale: float,
    softcap: float,
    dropout: float,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    inputs = _Inputs(query_BHSC, key_BGNC, value_BGNV, spans, sink_H, seed)
    options = BlockOptions(top_k, block_size, scale, softcap, dropout)
    return _backward(dout_BHSV, inputs, query_start, options, Result(out_BHSV, logsum_BHS, block_BHSK))


@_block_attention_backward.register_fake
def _block_attention_backward_fake(
    dout_BHSV: torch.Tensor,
    out_BHSV: torch.Tensor,
    logsum_BHS: torch.Tensor,
    block_BHSK: torch.Tensor,
    query_BHSC: torch.Tensor,
    key_BGNC: torch.Tensor,
    value_BGNV: torch.Tensor,
    spans: torch.Tensor | None,
    sink_H: torch.Tensor | None,
    *others: Any,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    query, key, value = (x.new_empty(x.shape) for x in (query_BHSC, key_BGNC, value_BGNV))
    return query, key, value, query.new_empty(0 if sink_H is None else query.shape[1])


def _keep_inputs(ctx: Any, inputs: tuple[Any, ...], output: tuple[torch.Tensor, ...]) -> None:
    ctx.save_for_backward(*output, *inputs[:6])
    ctx.options = inputs[6:]


def _differentiate(ctx: Any, dout_BHSV: torch.Tensor, *unused: Any) -> tuple[torch.Tensor | None, ...]:
    tensors = ctx.saved_tensors
    *dinputs, dsink_H = _block_attention_backward(dout_BHSV, *tensors, *ctx.options)
    sink_H = tensors[7]
    return *dinputs, None, None if sink_H is None else dsink_H.to(sink_H.dtype), None, *[None] * len(ctx.options)


_block_attention.register_autograd(_differentiate, setup_context=_keep_inputs)
