"""The forward and the backward pass of exact top-k attention, one part of the queries after the other.

Shapes: B batch, H query heads, G key heads, S queries, N keys, C head width, V width of the values; Z = B * G; within
a part, R rows (its queries, for all heads of a group), n keys; k of them are kept (`ops.attention.topk_selection`).
"""

from collections.abc import Iterator
from typing import NamedTuple

import torch

from moe_hf.ops.attention.contract import Inputs, in_own_types, room_for_gradients
from moe_hf.ops.attention.topk_selection import add_weighted_rows, keep_largest, kept_products, products, weighted_keys

# Scores computed at once: they and their copies are what the passes need beyond inputs and outputs.
_SCORES_AT_ONCE = 1 << 22
_MIN_QUERIES, _MAX_QUERIES = 16, 128


class TopkOptions(NamedTuple):
    """What `topk_sparse_attention` was asked for, with the defaults filled in; flat, as torch's operators need it.

    `top_k` is a whole number unless below 1. 0 stands for no `window` and no `softcap`.
    """

    top_k: float
    causal: bool
    query_start: int
    window: int
    scale: float
    softcap: float
    dropout: float


class Part(NamedTuple):
    """Some queries of some batch rows, and the keys that they may see."""

    rows: slice
    queries: slice
    keys: slice


class Weights(NamedTuple):
    """Attention weights of one part, sparse or dense as `ops.attention.topk_selection` says.

    `dropped` is what dropout left of the weights, `drop` the factor that did so, `sink_R1` the share of the sink.
    """

    weight: torch.Tensor
    place: torch.Tensor | None
    dropped: torch.Tensor
    drop: torch.Tensor | None
    sink_R1: torch.Tensor | None


def parts(inputs: Inputs, options: TopkOptions) -> Iterator[Part]:
    """The parts of a call: they bound the memory, and leave out keys that no query of a part sees."""
    batch, heads, queries, _ = inputs.query_BHSC.shape
    keys = inputs.key_BGNC.shape[2]
    step_B = max(1, _SCORES_AT_ONCE // (heads * keys * min(queries, _MAX_QUERIES)))
    for row in range(0, batch, step_B):
        rows = slice(row, min(row + step_B, batch))
        fitting = _SCORES_AT_ONCE // ((rows.stop - row) * heads * keys)
        step_S = min(max(fitting, _MIN_QUERIES), _MAX_QUERIES)
        for first in range(0, queries, step_S):
            part = slice(first, min(first + step_S, queries))
            yield Part(rows, part, _keys_in_sight(inputs.mask, options, rows, part, keys))


def _keys_in_sight(mask: torch.Tensor | None, options: TopkOptions, rows: slice, queries: slice, keys: int) -> slice:
    first, end = 0, keys
    if options.causal:
        end = min(end, options.query_start + queries.stop)
    if options.window:
        # Never empty, since a maximum over no keys is an error.
        first = min(max(first, options.query_start + queries.start - options.window + 1), end - 1)
    # Elsewhere, waiting for the device would cost more than it saves.
    if mask is not None and mask.dtype == torch.bool and mask.device.type == "cpu":
        seen_N = _of_part(mask, rows, queries, slice(first, end)).flatten(0, 2).any(dim=0).nonzero()
        if seen_N.shape[0]:
            first, end = first + int(seen_N[0]), first + int(seen_N[-1]) + 1
    return slice(first, end)


def _of_part(mask: torch.Tensor, rows: slice, queries: slice, keys: slice) -> torch.Tensor:
    rows = rows if mask.shape[0] > 1 else slice(None)
    queries = queries if mask.shape[2] > 1 else slice(None)
    return mask[rows, :, queries, keys]


def part_rows(x_BHSC: torch.Tensor, part: Part) -> torch.Tensor:
    """The rows (R, C) of a part: key head after key head, within it query head after query head."""
    return x_BHSC[part.rows, :, part.queries].reshape(-1, x_BHSC.shape[-1])


def part_keys(x_BGNC: torch.Tensor, part: Part, index: torch.Tensor | None) -> torch.Tensor:
    """The keys or values of a part: all of them where indices choose, those in sight where weights are dense."""
    x_BGNC = x_BGNC[part.rows] if index is not None else x_BGNC[part.rows, :, part.keys]
    return x_BGNC.flatten(0, 1)


def _scores(inputs: Inputs, options: TopkOptions, part: Part) -> torch.Tensor:
    # (R, n), minus infinity where the mask hides a key; capped only where `_capped_first`.
    batch, heads = part.rows.stop - part.rows.start, inputs.query_BHSC.shape[1]
    queries, keys = part.queries.stop - part.queries.start, part.keys.stop - part.keys.start
    key_ZnC = part_keys(inputs.key_BGNC, part, None)
    query_ZRC = (part_rows(inputs.query_BHSC, part) * options.scale).view(key_ZnC.shape[0], -1, key_ZnC.shape[-1])
    score_BHSn = products(query_ZRC, key_ZnC).view(batch, heads, queries, keys)
    if _capped_first(inputs, options):
        score_BHSn.div_(options.softcap).tanh_().mul_(options.softcap)
    if options.causal or options.window:
        place = options.query_start + torch.arange(part.queries.start, part.queries.stop, device=score_BHSn.device)
        key = torch.arange(part.keys.start, part.keys.stop, device=score_BHSn.device)
        if options.causal:
            # Only the last keys can lie ahead of a query.
            ahead = max(0, options.query_start + part.queries.start + 1 - part.keys.start)
            score_BHSn[..., ahead:].masked_fill_(key[ahead:] > place[:, None], -torch.inf)
        if options.window:
            score_BHSn.masked_fill_(key <= place[:, None] - options.window, -torch.inf)
    if inputs.mask is not None:
        mask = _of_part(inputs.mask, part.rows, part.queries, part.keys)
        if mask.dtype == torch.bool:
            score_BHSn.masked_fill_(~mask, -torch.inf)
        else:
            score_BHSn.add_(mask).masked_fill_(mask <= torch.finfo(mask.dtype).min / 2, -torch.inf)
    return score_BHSn.view(-1, keys)


def _capped_first(inputs: Inputs, options: TopkOptions) -> bool:
    # The cap keeps the order, but rounds many large logits to the same: what is kept is found before it. A float mask,
    # which changes the order, is added to capped logits.
    return bool(options.softcap) and inputs.mask is not None and inputs.mask.dtype != torch.bool


def weights_of_part(inputs: Inputs, options: TopkOptions, part: Part, number: int) -> Weights:
    """The weights of the `number`-th part: the same each time, dropout included."""
    top_k = options.top_k if options.top_k < 1 else int(options.top_k)
    logit, index = keep_largest(_scores(inputs, options, part), top_k)
    if options.softcap and not _capped_first(inputs, options):
        hidden = logit == -torch.inf
        logit = logit.div_(options.softcap).tanh_().mul_(options.softcap).masked_fill_(hidden, -torch.inf)
    if index is not None:
        index = index + part.keys.start
    # Minus infinity less itself is NaN: in rows that see nothing, the least number takes its place.
    largest_R1 = logit.amax(dim=-1, keepdim=True).clamp(min=torch.finfo(logit.dtype).min)
    sink_R1 = None
    if inputs.sink_H is not None:
        queries = part.queries.stop - part.queries.start
        sink_R1 = (
            inputs.sink_H.to(logit.dtype).repeat_interleave(queries).repeat(part.rows.stop - part.rows.start)[:, None]
        )
        largest_R1 = torch.maximum(largest_R1, sink_R1)
        sink_R1 = (sink_R1 - largest_R1).exp()
    weight = (logit - largest_R1).exp_()
    sum_R1 = weight.sum(dim=-1, keepdim=True)
    if sink_R1 is not None:
        sum_R1 = sum_R1 + sink_R1
        sink_R1 = sink_R1 / sum_R1
    # A row that sees nothing gets zeros.
    weight /= sum_R1.clamp(min=torch.finfo(logit.dtype).tiny)
    if inputs.seed is None:
        return Weights(weight, index, weight, None, sink_R1)
    generator = torch.Generator(weight.device).manual_seed(int(inputs.seed) + number)
    kept = torch.rand(weight.shape, generator=generator, device=weight.device) >= options.dropout
    drop = kept.to(weight.dtype) / (1 - options.dropout)
    return Weights(weight, index, weight * drop, drop, sink_R1)


@in_own_types
def forward_pass(inputs: Inputs, options: TopkOptions) -> torch.Tensor:
    """The output (B, H, S, V)."""
    batch, heads, queries, _ = inputs.query_BHSC.shape
    out_BHSV = inputs.query_BHSC.new_empty(batch, heads, queries, inputs.value_BGNV.shape[-1])
    for number, part in enumerate(parts(inputs, options)):
        weights = weights_of_part(inputs, options, part, number)
        out_RV = weighted_keys(weights.dropped, weights.place, part_keys(inputs.value_BGNV, part, weights.place))
        target = out_BHSV[part.rows, :, part.queries]
        target.copy_(out_RV.view(target.shape))
    return out_BHSV


@in_own_types
def backward_pass(dout_BHSV: torch.Tensor, inputs: Inputs, options: TopkOptions) -> list[torch.Tensor]:
    """The gradients of queries, keys, values and sinks (of no length without sinks); the weights are made anew.

    A dropped logit has none: which keys are kept counts as given (Gupta et al. 2021, section 3).
    """
    dquery_BHSC, dkey_BGNC, dvalue_BGNV, dsink_H = gradients = room_for_gradients(inputs)
    heads = inputs.query_BHSC.shape[1]
    for number, part in enumerate(parts(inputs, options)):
        weight, index, dropped, drop, sink_R1 = weights_of_part(inputs, options, part, number)
        dout_RV, query_RC = part_rows(dout_BHSV, part), part_rows(inputs.query_BHSC, part)
        key, value = part_keys(inputs.key_BGNC, part, index), part_keys(inputs.value_BGNV, part, index)
        # The room for gradients is contiguous, so that `part_keys` gives views of it: what is added stays there.
        add_weighted_rows(part_keys(dvalue_BGNV, part, index), dropped, index, dout_RV)
        dweight = kept_products(dout_RV, index, value)
        if drop is not None:
            dweight *= drop
        mean_R1 = (weight * dweight).sum(dim=-1, keepdim=True)
        if sink_R1 is not None:
            dsink_H -= (sink_R1 * mean_R1).view(-1, heads, part.queries.stop - part.queries.start).sum(dim=(0, 2))
        dscore = weight * (dweight - mean_R1)
        if options.softcap:
            # Made again, since `weights_of_part` writes over the logits: tanh, whose slope is 1 - tanh^2.
            capped = (kept_products(query_RC, index, key) * (options.scale / options.softcap)).tanh_()
            dscore *= 1 - capped.square()
        dscore *= options.scale
        dquery_RC = weighted_keys(dscore, index, key)
        target = dquery_BHSC[part.rows, :, part.queries]
        target.copy_(dquery_RC.view(target.shape))
        add_weighted_rows(part_keys(dkey_BGNC, part, index), dscore, index, query_RC)
    return gradients
