"""Causal attention in which each query attends to its own block of keys and to the past blocks that suit it best.

Shapes: B batch, H query heads, G key heads (H is a multiple), S queries, N keys, C head width, V width of the values; P
the block size, K blocks per query, J = N / P blocks.
"""

from collections.abc import Iterator
from typing import Any

import torch

from moe_hf.base.errors import ConfigError
from moe_hf.ops.attention.block_passes import BlockOptions, Result, Tensors, backward_pass, forward_pass, num_choices
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
from moe_hf.ops.attention.visible_spans import Document, documents, spans_of_mask
from moe_hf.ops.operators import needs_gradient, opaque


@in_own_types
def reference_block_attention(
    query_BHSC: torch.Tensor, key_BGNC: torch.Tensor, value_BGNV: torch.Tensor, top_k: int | float, **options: Any
) -> tuple[torch.Tensor, torch.Tensor]:
    """`topk_block_attention` in the plain: the output (B, H, S, V) and the weights (B, H, S, N), all at once.

    Lu et al. 2025, "MoBA: Mixture of Block Attention for Long-Context LLMs", eq. 2 to 6. Arguments as there.
    """
    inputs, query_start, asked = _prepare(query_BHSC, key_BGNC, value_BGNV, top_k, **options)
    query, key, value = inputs[:3]
    key = key.repeat_interleave(query.shape[1] // key.shape[1], dim=1)
    block_size = asked.block_size
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
        # One of them is the own block, which needs no gate.
        chosen_BHqJ = (rank_BHqJ < most_q1 - 1) & past_qJ

        place_n = torch.arange(keys, device=query.device)
        visible_BHqn = (place_n // block_size == own_q1).repeat(*query_BHqC.shape[:2], 1, 1)
        visible_BHqn[..., : complete * block_size] |= chosen_BHqJ.repeat_interleave(block_size, dim=-1)
        visible_BHqn &= place_n < count_q[:, None]
        logit_BHqn = capped(query_BHqC @ key_BHnC.transpose(2, 3) * asked.scale, asked.softcap)
        weight_BHqn = reference_weights(logit_BHqn.masked_fill(~visible_BHqn, -torch.inf), inputs.sink_H)
        weight_BHSN[rows, :, query_q[:, None], key_n] = weight_BHqn
    return weighted_values(weight_BHSN, value, asked.dropout, value_BGNV.dtype)


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
    softmax: dict[str, Any] = {"scale": scale, "softcap": softcap, "sink_H": sink_H, "dropout": dropout}
    sight: dict[str, Any] = {"block_size": block_size, "mask": mask, "query_start": query_start}
    inputs, query_start, options = _prepare(query_BHSC, key_BGNC, value_BGNV, top_k, **sight, **softmax)
    # Without a backward pass neither the sums nor the choices are kept.
    if needs_gradient(*inputs) or torch.compiler.is_compiling():
        out_BHSV = _block_attention(inputs, query_start, options)[0]
    else:
        out_BHSV = _attend(inputs, query_start, options, keep=False).out
    return out_BHSV.to(value_BGNV.dtype)


def _prepare(
    query_BHSC: torch.Tensor,
    key_BGNC: torch.Tensor,
    value_BGNV: torch.Tensor,
    top_k: int | float,
    *,
    block_size: int = 128,
    mask: torch.Tensor | None = None,
    query_start: int | None = None,
    **softmax: Any,
) -> tuple[Inputs, int, BlockOptions]:
    (batch, _, queries, _), keys = query_BHSC.shape, key_BGNC.shape[2]
    if not isinstance(block_size, int) or block_size < 1:
        raise ConfigError(f"block_size must be an integer >= 1, got {block_size!r}")
    query_start = keys - queries if query_start is None else query_start
    if mask is None and not 0 <= query_start <= keys - queries:
        raise ConfigError(
            f"{queries} queries from place {query_start} on do not stand among {keys} keys; give query_start in "
            f"[0, keys - queries]"
        )
    # Spans are int32, masks bool or float.
    if mask is not None and mask.dtype != torch.int32:
        if mask.shape[0] not in (1, batch) or mask.shape[-2:] != (queries, keys):
            raise ConfigError(f"mask must be ({batch}, 1, {queries} queries, {keys} keys), got {tuple(mask.shape)}")
        mask = spans_of_mask(mask).expand(batch, -1, -1, -1)
    inputs, asked = prepared(query_BHSC, key_BGNC, value_BGNV, top_k, mask, **softmax)
    return inputs, query_start, BlockOptions(float(top_k), block_size, *asked)


def _documents(inputs: Inputs, query_start: int) -> Iterator[Document]:
    batch, _, queries, _ = inputs.query_BHSC.shape
    if inputs.mask is not None:
        yield from documents(inputs.mask, queries)
        return
    place = torch.arange(query_start + queries, device=inputs.query_BHSC.device)
    yield Document(slice(0, batch), place[:queries], place, place[query_start:] + 1)


def _of_document(inputs: Inputs, document: Document, number: int) -> Tensors:
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
        # So far apart that the seeds of two documents' parts, counted up from here, do not meet.
        None if seed is None else seed + (number << 20),
    )


@in_own_types
def _attend(inputs: Inputs, query_start: int, options: BlockOptions, keep: bool) -> Result:
    # Of all documents, with batch and heads apart: (B, H, S, V), (B, H, S), (B, H, S, K); the last two only if kept.
    query, key, value = inputs[:3]
    kept = num_choices(options, key.shape[2])
    # Zeros, which stay where a query sees nothing: such queries are in no document.
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
                if part is result.block:
                    # A short document offers fewer blocks to choose from.
                    target = target[..., : part.shape[-1]]
                # `rows` is a slice: what is written goes through a view.
                target[document.rows][:, :, document.query_q] = chosen
    return whole


def _forward(
    inputs: Inputs, query_start: int, options: BlockOptions
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    return _attend(inputs, query_start, options, keep=True)


def _forward_shapes(inputs: Inputs, options: BlockOptions) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    query, kept = inputs.query_BHSC, num_choices(options, inputs.key_BGNC.shape[2])
    logsum, block = query.new_empty(query.shape[:3]), query.new_empty((*query.shape[:3], kept), dtype=torch.int32)
    return forward_shapes(inputs), logsum, block


@in_own_types
def _backward(
    dout: torch.Tensor, whole: Result, inputs: Inputs, query_start: int, options: BlockOptions
) -> list[torch.Tensor]:
    groups = inputs.key_BGNC.shape[1]
    dquery, dkey, dvalue, dsink_H = gradients = room_for_gradients(inputs)
    for number, document in enumerate(_documents(inputs, query_start)):
        rows, query_q, key_n, _ = document
        tensors = _of_document(inputs, document, number)
        kept = num_choices(options, len(key_n))

        out, logsum, block, dpart = (
            x_BHS[rows][:, :, query_q].unflatten(1, (groups, -1)).flatten(0, 1)
            for x_BHS in (whole.out, whole.logsum, whole.block[..., :kept], dout)
        )
        parts = backward_pass(dpart, tensors, options, Result(out, logsum, block))
        dquery[rows][:, :, query_q] = parts[0].unflatten(0, (-1, groups)).flatten(1, 2)
        dkey[rows][:, :, key_n] = parts[1].unflatten(0, (-1, groups))
        dvalue[rows][:, :, key_n] = parts[2].unflatten(0, (-1, groups))
        if parts[3] is not None:
            dsink_H += parts[3].view(-1, dquery.shape[1]).sum(dim=0)
    return gradients


# Which documents and pairs there are depends on the data.
_block_attention = opaque(
    "topk_block_attention",
    _forward,
    _forward_shapes,
    _backward,
    room_for_gradients,
    returns=Result._fields,
    gradients=DIFFERENTIABLE,
)
