"""Forward and backward pass of the recurrence with scalar decay, segment after segment of whole chunks.

Shapes: B rows, S positions, G groups, H = G * R heads, K key width, V value width, X = R * V values of one group,
n chunks of one segment, C positions of one chunk.
"""

from typing import NamedTuple

import torch
from torch.nn import functional as F

from moe_hf.ops.dtypes import float32_or_more
from moe_hf.ops.sequence.contract import Segment, Segments

# A state is (B, G, K, X) in here: the heads of a group lie side by side, so that one product serves them all.


class Inputs(NamedTuple):
    """What the recurrence reads; `log_decay` is (H,) or (B, S, H), `starts_BS` is None where no document begins."""

    query_BSGK: torch.Tensor
    key_BSGK: torch.Tensor
    value_BSHV: torch.Tensor
    log_decay: torch.Tensor
    starts_BS: torch.Tensor | None

    @property
    def dtype(self) -> torch.dtype:
        """The type that everything is computed in: float32, or float64 where an input is."""
        return float32_or_more(*self)


class Decays(NamedTuple):
    """What is left of something after the decay between two points of a chunk.

    Attributes:
        since_start: (B, n, G, C, R, 1), of the state before the chunk at each position.
        until_end: (B, n, G, C, R, 1), of each position at the end of the chunk.
        whole: (B, n, G, 1, R, 1), of the state before the chunk at its end.
        between: (B, n, G, R, C, C), of the second position at the first; 1 where the second comes later.
        reach: (C, C) or (B, n, 1, C, C), 1 where the first position sees the second, else 0.
    """

    since_start: torch.Tensor
    until_end: torch.Tensor
    whole: torch.Tensor
    between: torch.Tensor
    reach: torch.Tensor


def grouped(x_BSHV: torch.Tensor, groups: int, segment: Segment, dtype: torch.dtype) -> torch.Tensor:
    """One segment of a sequence, (B, n, G, C, R, V), as a view where its type is right."""
    x_BcHV = x_BSHV[:, segment.start : segment.stop].to(dtype)
    return x_BcHV.unflatten(1, (-1, segment.chunk)).unflatten(3, (groups, -1)).transpose(2, 3)


def decays_of(inputs: Inputs, segment: Segment) -> Decays:
    """The decays of one segment; n and B are 1 where they do not depend on the token.

    Sums of logarithms are taken in float64: the small differences of large sums would be lost otherwise.
    """
    start, stop, chunk = segment
    log_decay, groups, dtype = inputs.log_decay, inputs.key_BSGK.shape[2], inputs.dtype
    constant = log_decay.dim() == 1
    # A fixed decay is the same in every row and chunk: one chunk of one row serves all by broadcasting.
    log_BcH = log_decay.expand(1, chunk, -1) if constant else log_decay[:, start:stop]
    log_BnCH = log_BcH.double().unflatten(1, (-1, chunk))
    sum_BnGRC = log_BnCH.cumsum(dim=2).unflatten(3, (groups, -1)).permute(0, 1, 3, 4, 2)
    last_BnGR1 = sum_BnGRC[..., -1:]
    # Clamped, since exponents are positive ahead of the diagonal: an overflow times the 0 of `reach` would be NaN.
    between = (sum_BnGRC[..., :, None] - sum_BnGRC[..., None, :]).to(dtype).clamp_(max=0).exp_()
    columns = [sum_BnGRC, last_BnGR1 - sum_BnGRC, last_BnGR1]
    since, until, whole = (x.to(dtype).exp().transpose(3, 4)[..., None] for x in columns)
    reach = torch.ones(chunk, chunk, dtype=dtype, device=log_decay.device).tril_()
    if inputs.starts_BS is None:
        return Decays(since, until, whole, between, reach)
    # Documents are numbered within the chunk; 0 is the one that the state before it belongs to.
    starts_BnC = inputs.starts_BS[:, start:stop].unflatten(1, (-1, chunk))
    document_BnC = starts_BnC.to(torch.int32).cumsum(dim=2)
    last_Bn1 = document_BnC[..., -1:]
    reach = reach * (document_BnC[..., :, None] == document_BnC[..., None, :])[:, :, None]
    since = since * (document_BnC == 0)[:, :, None, :, None, None]
    until = until * (document_BnC == last_Bn1)[:, :, None, :, None, None]
    whole = whole * (last_Bn1 == 0)[:, :, None, :, None, None]
    return Decays(since, until, whole, between, reach)


class OpenSegment(NamedTuple):
    """What both passes compute of one segment.

    Attributes:
        query: (B, n, G, C, K).
        key: (B, n, G, C, K).
        value: (B, n, G, C, R, V).
        decays: of this segment.
        states: (B, n, G, K, X), before each chunk.
        final_state: (B, G, K, X), after the last chunk.
        added_value: (B, n, G, C, X), each value as it is left at the end of its chunk.
    """

    query: torch.Tensor
    key: torch.Tensor
    value: torch.Tensor
    decays: Decays
    states: torch.Tensor
    final_state: torch.Tensor
    added_value: torch.Tensor

    def score(self) -> torch.Tensor:
        """Products of queries and keys within the chunks, 0 out of reach, (B, n, G, 1, C, C)."""
        return (self.query @ self.key.mT).mul_(self.decays.reach)[:, :, :, None]


def open_segment(inputs: Inputs, state_BGKX: torch.Tensor, segment: Segment, decays: Decays) -> OpenSegment:
    """The segment, with the states between its chunks; `state_BGKX` is the one before it."""
    groups, dtype = inputs.key_BSGK.shape[2], inputs.dtype
    # Contiguous, or each product would copy them anew; where there is one group they are views.
    query, key = (grouped(x, groups, segment, dtype)[..., 0, :].contiguous() for x in inputs[:2])
    value = grouped(inputs.value_BSHV, groups, segment, dtype).contiguous()
    added_value = (value * decays.until_end).flatten(4)
    states, after = carry(state_BGKX, key.mT @ added_value, decays.whole)
    return OpenSegment(query, key, value, decays, states, after, added_value)


def carry(
    state_BGKX: torch.Tensor, added_BnGKX: torch.Tensor, whole_BnG1R1: torch.Tensor, backwards: bool = False
) -> tuple[torch.Tensor, torch.Tensor]:
    """The states before each chunk and after all, from what each chunk adds; backwards, after each and before all."""
    count, heads = added_BnGKX.shape[1], whole_BnG1R1.shape[4]
    added, whole = added_BnGKX.unflatten(4, (heads, -1)), whole_BnG1R1.expand(-1, count, -1, -1, -1, -1)
    # One more than there are chunks, so that each is computed where it belongs.
    states = added.new_empty(added.shape[0], count + 1, *added.shape[2:])
    first, last = (count, 0) if backwards else (0, count)
    states[:, first] = state_BGKX.unflatten(3, (heads, -1))
    for chunk in range(count):
        before, after, at = (count - chunk, count - chunk - 1, -1 - chunk) if backwards else (chunk, chunk + 1, chunk)
        torch.addcmul(added[:, at], states[:, before], whole[:, at], out=states[:, after])
    each = states[:, 1:] if backwards else states[:, :-1]
    return each.flatten(4), states[:, last].flatten(3)


def forward_pass(
    inputs: Inputs, state_BGKX: torch.Tensor, segments: Segments, kept_PBGKX: torch.Tensor | None
) -> tuple[torch.Tensor, torch.Tensor]:
    """The output, (B, S, H, V), and the last state; the states before all segments go to `kept_PBGKX`."""
    out_BSHV = torch.empty_like(inputs.value_BSHV, memory_format=torch.contiguous_format)
    groups = inputs.key_BSGK.shape[2]
    # Where nothing depends on the token, there are at most two kinds of segments: whole chunks, and the rest.
    constant, cache = inputs.log_decay.dim() == 1 and inputs.starts_BS is None, dict[int, Decays]()
    for index, segment in enumerate(segments.of(inputs.value_BSHV.shape[1])):
        if kept_PBGKX is not None:
            kept_PBGKX[index] = state_BGKX
        decays = cache.get(segment.chunk) or decays_of(inputs, segment)
        if constant:
            cache[segment.chunk] = decays
        opened = open_segment(inputs, state_BGKX, segment, decays)
        state_BGKX = opened.final_state
        within = (opened.score() * decays.between) @ opened.value.transpose(3, 4)
        before = (opened.query @ opened.states).view(opened.value.shape)
        # A view, since the type is right: the sum below is written where it belongs.
        out = grouped(out_BSHV, groups, segment, out_BSHV.dtype)
        torch.addcmul(within.transpose(3, 4), before, decays.since_start, out=out)
    return out_BSHV, state_BGKX


class Gradients(NamedTuple):
    """Gradients of `Inputs`' tensors and of the first state; None for a decay that needs none."""

    query_BSGK: torch.Tensor
    key_BSGK: torch.Tensor
    value_BSHV: torch.Tensor
    log_decay: torch.Tensor | None
    state_BGKX: torch.Tensor


def backward_pass(
    inputs: Inputs,
    kept_PBGKX: torch.Tensor,
    segments: Segments,
    dout_BSHV: torch.Tensor,
    dstate_BGKX: torch.Tensor,
    needs_decay: bool,
) -> Gradients:
    """The gradients, from the last segment to the first; what the forward pass did not keep is computed again."""
    groups, dtype = inputs.key_BSGK.shape[2], inputs.dtype
    dquery, dkey, dvalue = (torch.empty_like(x, memory_format=torch.contiguous_format) for x in inputs[:3])
    batch, length, heads, _ = inputs.value_BSHV.shape
    dlog_BSH = inputs.log_decay.new_empty(batch, length, heads, dtype=dtype) if needs_decay else None
    for index, segment in reversed(list(enumerate(segments.of(length)))):
        decays = decays_of(inputs, segment)
        opened = open_segment(inputs, kept_PBGKX[index], segment, decays)
        dout = grouped(dout_BSHV, groups, segment, dtype).contiguous()
        found, dstate_BGKX = _differentiate(opened, dout, dstate_BGKX, needs_decay)
        for into, part in zip((dquery, dkey), found[:2], strict=True):
            grouped(into, groups, segment, into.dtype)[..., 0, :].copy_(part)
        grouped(dvalue, groups, segment, dvalue.dtype).copy_(found[2])
        if dlog_BSH is not None and found[3] is not None:
            grouped(dlog_BSH[..., None], groups, segment, dtype).copy_(found[3][..., None])
    if dlog_BSH is not None:
        if inputs.starts_BS is not None:
            # Nothing is left of the state there, whatever the decay.
            dlog_BSH.masked_fill_(inputs.starts_BS[..., None], 0)
        # A fixed decay serves all tokens of all rows: so many terms are added up in float64.
        dlog_BSH = dlog_BSH.sum(dim=(0, 1), dtype=torch.float64) if inputs.log_decay.dim() == 1 else dlog_BSH
        dlog_BSH = dlog_BSH.to(inputs.log_decay.dtype)
    return Gradients(dquery, dkey, dvalue, dlog_BSH, dstate_BGKX)


def _differentiate(
    opened: OpenSegment, dout: torch.Tensor, dstate_BGKX: torch.Tensor, needs_decay: bool
) -> tuple[tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor | None], torch.Tensor]:
    """The gradients of a segment's query, key, value and decay, the last (B, n, G, C, R), and of the state before."""
    query, key, value, decays, states, _, added_value = opened
    dread = (dout * decays.since_start).flatten(4)
    dafter, dbefore_BGKX = carry(dstate_BGKX, query.mT @ dread, decays.whole, backwards=True)
    value_BnGRCV, dout_BnGRCV = (x.transpose(3, 4).contiguous() for x in (value, dout))
    score = opened.score()
    dscore = (dout_BnGRCV @ value_BnGRCV.mT).mul_(decays.between)
    dadded = (key @ dafter).view(value.shape).mul_(decays.until_end)
    dvalue = ((score * decays.between).mT @ dout_BnGRCV).transpose(3, 4) + dadded
    dlog = _differentiate_decay(opened, dread, dafter, score * dscore, dadded) if needs_decay else None
    # The heads of a group share queries and keys, whose gradients collect the shares of all. `reach` was not needed
    # before: `dscore` met `score`, which is 0 out of reach.
    dscore_BnGCC = dscore.sum(dim=3).mul_(decays.reach)
    dquery = (dread @ states.mT).add_(dscore_BnGCC @ key)
    dkey = (added_value @ dafter.mT).add_(dscore_BnGCC.mT @ query)
    return (dquery, dkey, dvalue, dlog), dbefore_BGKX


def _differentiate_decay(
    opened: OpenSegment, dread: torch.Tensor, dafter: torch.Tensor, pair: torch.Tensor, dadded: torch.Tensor
) -> torch.Tensor:
    """The gradient of the decay's logarithm, (B, n, G, C, R): of all that was written before and is read from there on.

    Written before the chunk and read in it, in the chunk and after it, before and after it; and both within, `pair`.
    Only the last is a difference of sums, so that rounding cannot add up over the sequence.
    """
    value, heads = opened.value, opened.value.shape[4]
    # Nothing decays between a token's writing and its own reading, and that share would drown the others.
    pair = pair.tril(-1)
    read = (opened.query @ opened.states).mul_(dread).unflatten(4, (heads, -1)).sum(dim=5)
    through = (opened.states * dafter).unflatten(4, (heads, -1)).sum(dim=(3, 5))[..., None, :]
    written = (value * dadded).sum(dim=5) + (pair.sum(dim=4) - pair.sum(dim=5)).transpose(3, 4)
    # Without the position's own share from the start: taking it off the sum would leave its rounding.
    before = F.pad(written[:, :, :, :-1].cumsum(dim=3), (0, 0, 1, 0))
    return read.flip(3).cumsum(dim=3).flip(3) + before + through * opened.decays.whole[..., 0]
