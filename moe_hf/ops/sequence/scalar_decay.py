"""The recurrence with one decay per head and token, the engine of retention (RetNet), and of Mamba-2 for sequences:
the step of Mamba-2 is its own (`ssd_step`).

Shapes: B rows, S positions, G groups, H heads, R = H / G heads of a group, K key width, V value width;
P segments, X values of one group (`moe_hf.ops.sequence.scalar_decay_passes`).
"""

from collections.abc import Sequence
from typing import Unpack

import torch

from moe_hf.base.errors import ConfigError
from moe_hf.ops.dtypes import without_autocast
from moe_hf.ops.operators import needs_gradient, opaque
from moe_hf.ops.sequence.contract import Call, Carried, Segments, call_of, zero_padding
from moe_hf.ops.sequence.scalar_decay_passes import Inputs, backward_pass, forward_pass

CHUNK_SIZE = 64
SEGMENT_SIZE = 512


def scalar_decay(
    query_BSGK: torch.Tensor,
    key_BSGK: torch.Tensor,
    value_BSHV: torch.Tensor,
    log_decay: torch.Tensor,
    *,
    chunk_size: int = CHUNK_SIZE,
    segment_size: int = SEGMENT_SIZE,
    **carried: Unpack[Carried],
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """`reference_scalar_decay` in time and memory linear in S: equal in value and in gradient, taken once.

    Within chunks as products of matrices, between them as a recurrence (Sun et al. 2023, RetNet, section 2.3; Dao and
    Gu 2024, Mamba-2, section 6). Segments of several chunks carry the state, so that the working memory does not grow
    with S; the backward pass keeps the inputs and one state per segment, and computes the rest again. Under
    torch.compile it is one opaque operator.

    Args:
        query_BSGK: what reads the state; the H / G heads that stand side by side share a group. Not scaled in here.
        key_BSGK: where a value is written.
        value_BSHV: what is written.
        log_decay: natural logarithms of the decay, finite and <= 0: (H,), or (B, S, H) for one per token.
        chunk_size: positions whose products are formed at once, >= 1.
        segment_size: positions between two states that are kept, a multiple of `chunk_size`.
        **carried: as in `contract.Carried`, the state (B, H, K, V). What is not finite in one document may still reach
            others of its row.

    Returns:
        The output (B, S, H, V) in the dtype of the values, at padding arbitrary but finite, and the final state
        (B, H, K, V) in float32 (float64 where an input is), or None.

    Raises:
        ConfigError: shapes or sizes do not fit.
    """
    call = call_of(**carried)
    inputs = _prepared(query_BSGK, key_BSGK, value_BSHV, log_decay, call)
    if chunk_size < 1 or segment_size < 1 or segment_size % chunk_size:
        raise ConfigError(
            f"chunk_size={chunk_size}, segment_size={segment_size} are not allowed; the segment must be a multiple of "
            f"the chunk, such as {CHUNK_SIZE} and {SEGMENT_SIZE}"
        )
    trains = needs_gradient(*inputs, call.initial_state)
    out_BSHV, state_BHKV, _ = _scalar_decay(inputs, call.initial_state, Segments(chunk_size, segment_size), trains)
    return call.result(out_BSHV, state_BHKV)


def scalar_decay_step(
    query_BGK: torch.Tensor,
    key_BGK: torch.Tensor,
    value_BHV: torch.Tensor,
    log_decay: torch.Tensor,
    *,
    initial_state: torch.Tensor,
    mask_B: torch.Tensor | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """One token of `scalar_decay`, for decoding: its output (B, H, V) and the state after it, (B, H, K, V).

    Args:
        query_BGK: as in `scalar_decay`, without time.
        key_BGK: likewise.
        value_BHV: likewise.
        log_decay: (H,) or (B, H).
        initial_state: (B, H, K, V), which is not written to.
        mask_B: nonzero where the token is real. None: all are.
    """
    key_BGK, value_BHV, log_decay = neutral_at_padding(key_BGK, value_BHV, log_decay, mask_B)
    dtype, (batch, groups, width) = initial_state.dtype, key_BGK.shape
    decay_BH11 = log_decay.to(dtype).exp()[..., None, None]
    value_BGR1V = value_BHV.to(dtype).unflatten(1, (groups, -1))[..., None, :]
    added = key_BGK.to(dtype).view(batch, groups, 1, width, 1) * value_BGR1V
    state_BGRKV = torch.addcmul(added, initial_state.unflatten(1, (groups, -1)), decay_BH11.unflatten(-3, (groups, -1)))
    with without_autocast(value_BHV):
        out = query_BGK.to(dtype).view(batch, groups, 1, 1, width) @ state_BGRKV
    return out.flatten(1, 2)[:, :, 0].to(value_BHV.dtype), state_BGRKV.flatten(1, 2)


def reference_scalar_decay(
    query_BSGK: torch.Tensor,
    key_BSGK: torch.Tensor,
    value_BSHV: torch.Tensor,
    log_decay: torch.Tensor,
    **carried: Unpack[Carried],
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """`S_t = exp(log_decay_t) S_(t-1) + k_t v_t^T` and `o_t = q_t S_t`, token by token (RetNet, section 2.2).

    Arguments and result are those of `scalar_decay`, but a start cuts off what is not finite as well.
    """
    call = call_of(**carried)
    inputs = _prepared(query_BSGK, key_BSGK, value_BSHV, log_decay, call)
    _, _, value_BSHV, log_decay, starts_BS = inputs
    batch, length, heads, _ = value_BSHV.shape
    query_BSHK, key_BSHK = (x.to(inputs.dtype).repeat_interleave(heads // x.shape[2], dim=2) for x in inputs[:2])
    decay_BSH = log_decay.to(inputs.dtype).exp().expand(batch, length, -1)
    state_BHKV = _first_state(inputs, call.initial_state)
    out = []
    tokens = (x.unbind(dim=1) for x in (query_BSHK, key_BSHK, value_BSHV.to(inputs.dtype), decay_BSH))
    starts = [None] * length if starts_BS is None else starts_BS[..., None, None, None].unbind(dim=1)
    for query_BHK, key_BHK, value_BHV, decay_BH, begins in zip(*tokens, starts, strict=True):
        if begins is not None:
            state_BHKV = state_BHKV.masked_fill(begins, 0)
        state_BHKV = decay_BH[..., None, None] * state_BHKV + key_BHK[..., :, None] * value_BHV[..., None, :]
        out.append((query_BHK[..., None] * state_BHKV).sum(dim=-2))
    out_BSHV = torch.stack(out, dim=1).to(value_BSHV.dtype)
    return call.result(out_BSHV, state_BHKV)


def parallel_scalar_decay(
    query_BSGK: torch.Tensor,
    key_BSGK: torch.Tensor,
    value_BSHV: torch.Tensor,
    log_decay: torch.Tensor,
    **carried: Unpack[Carried],
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """`(Q K^T . D) V` with the S x S decays D, the parallel form of the paper (RetNet, eq. 5): quadratic in S.

    Arguments and result are those of `scalar_decay`.
    """
    call = call_of(**carried)
    inputs = _prepared(query_BSGK, key_BSGK, value_BSHV, log_decay, call)
    _, _, value_BSHV, log_decay, starts_BS = inputs
    batch, length, heads, _ = value_BSHV.shape
    query, key = (x.to(inputs.dtype).transpose(1, 2) for x in inputs[:2])
    query, key = (x.repeat_interleave(heads // x.shape[1], dim=1) for x in (query, key))
    value = value_BSHV.to(inputs.dtype).transpose(1, 2)
    # In float64: small differences of large sums are taken of it.
    sum_BHS = log_decay.double().expand(batch, length, -1).cumsum(dim=1).transpose(1, 2)
    seen = torch.ones(length, length, dtype=torch.bool, device=value.device).tril()
    if starts_BS is not None:
        document_BS = starts_BS.cumsum(dim=1)
        seen = seen & (document_BS[:, None, :, None] == document_BS[:, None, None, :])
        first_BS, last_BS = document_BS == 0, document_BS == document_BS[:, -1:]
    else:
        first_BS = last_BS = torch.ones(batch, length, dtype=torch.bool, device=value.device)
    # Hidden before the exponential: what lies ahead of a query has a positive exponent, which could overflow.
    between = (sum_BHS[..., :, None] - sum_BHS[..., None, :]).to(inputs.dtype).masked_fill(~seen, -torch.inf).exp()
    # The first state belongs to the first document, and of the last document alone something stays.
    since, until = sum_BHS.exp() * first_BS[:, None], (sum_BHS[..., -1:] - sum_BHS).exp() * last_BS[:, None]
    first_BHKV = _first_state(inputs, call.initial_state)
    whole_BH = since[..., -1].to(inputs.dtype)
    with without_autocast(value):
        out = (query @ key.mT * between) @ value + query @ first_BHKV * since.to(inputs.dtype)[..., None]
        added_BHKV = (key * until.to(inputs.dtype)[..., None]).mT @ value
    state_BHKV = first_BHKV * whole_BH[..., None, None] + added_BHKV
    return call.result(out.transpose(1, 2).to(value_BSHV.dtype), state_BHKV)


def neutral_at_padding(
    key: torch.Tensor, value: torch.Tensor, log_decay: torch.Tensor, mask: torch.Tensor | None
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Keys, values and decays that leave the state as it is where the mask is 0.

    Args:
        key: (..., G, K).
        value: (..., H, V).
        log_decay: (H,) or (..., H).
        mask: (...), nonzero at real tokens; None means that all are.
    """
    if mask is None:
        return key, value, log_decay
    # Both factors of what is written: zero times what is not finite would not be zero.
    key, value = zero_padding(mask, key, value)
    return key, value, torch.where((mask == 0)[..., None], 0.0, log_decay)


def _prepared(
    query_BSGK: torch.Tensor, key_BSGK: torch.Tensor, value_BSHV: torch.Tensor, log_decay: torch.Tensor, call: Call
) -> Inputs:
    _check(query_BSGK, key_BSGK, value_BSHV, log_decay, call.initial_state)
    mask_BS, starts_BS = call.edges
    return Inputs(query_BSGK, *neutral_at_padding(key_BSGK, value_BSHV, log_decay, mask_BS), starts_BS)


def _check(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, log_decay: torch.Tensor, state: torch.Tensor | None
) -> None:
    (*leading, groups, width), (*tokens, heads, columns) = key.shape, value.shape
    if query.shape != key.shape or leading != tokens or heads % groups:
        raise ConfigError(
            f"queries {tuple(query.shape)}, keys {tuple(key.shape)} and values {tuple(value.shape)} do not fit; they "
            "must be (..., G, K), (..., G, K) and (..., H, V) with H a multiple of G"
        )
    if log_decay.shape not in ((heads,), (*tokens, heads)):
        allowed = f"({heads},) or {(*tokens, heads)}"
        raise ConfigError(f"log_decay of shape {tuple(log_decay.shape)} does not fit; it must be {allowed}")
    expected = (tokens[0], heads, width, columns)
    if state is not None and state.shape != expected:
        raise ConfigError(f"initial_state of shape {tuple(state.shape)} does not fit; it must be {expected}")


def _first_state(inputs: Inputs, initial_state: torch.Tensor | None) -> torch.Tensor:
    batch, _, heads, columns = inputs.value_BSHV.shape
    if initial_state is None:
        return inputs.value_BSHV.new_zeros(batch, heads, inputs.key_BSGK.shape[3], columns, dtype=inputs.dtype)
    return initial_state.to(inputs.dtype)


def _by_group(state_BHKV: torch.Tensor, groups: int) -> torch.Tensor:
    """(B, G, K, X): the heads of a group side by side."""
    return state_BHKV.unflatten(1, (groups, -1)).transpose(2, 3).flatten(3)


def _by_head(state_BGKX: torch.Tensor, heads: int) -> torch.Tensor:
    """(B, H, K, V), a tensor of its own."""
    per_group = heads // state_BGKX.shape[1]
    state_BHKV = state_BGKX.unflatten(3, (per_group, -1)).transpose(2, 3).flatten(1, 2)
    # An operator may give back neither an argument nor a view of one, as the state after no tokens would be.
    return state_BHKV.clone(memory_format=torch.contiguous_format)


def _forward(
    inputs: Inputs, initial_state: torch.Tensor | None, segments: Segments, trains: bool
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """The output, the last state and, where it trains, the states before all segments, else an empty tensor."""
    length, heads = inputs.value_BSHV.shape[1:3]
    with without_autocast(inputs.value_BSHV):
        state = _by_group(_first_state(inputs, initial_state), inputs.key_BSGK.shape[2])
        # So many by arithmetic on the length, not by counting segments: the compiler has to know the shape as well.
        kept_PBGKX = state.new_zeros(segments.limit(length) if trains else 0, *state.shape)
        out_BSHV, after = forward_pass(inputs, state, segments, kept_PBGKX if trains else None)
        return out_BSHV, _by_head(after, heads), kept_PBGKX


def _forward_shapes(
    inputs: Inputs, initial_state: torch.Tensor | None, segments: Segments, trains: bool
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    value_BSHV, groups = inputs.value_BSHV, inputs.key_BSGK.shape[2]
    state = _first_state(inputs, initial_state)
    batch, heads, width, columns = state.shape
    count = segments.limit(value_BSHV.shape[1]) if trains else 0
    kept_PBGKX = state.new_empty(count, batch, groups, width, heads // groups * columns)
    return value_BSHV.new_empty(value_BSHV.shape), state.new_empty(state.shape), kept_PBGKX


def _backward(
    dout_BSHV: torch.Tensor | None,
    dstate_BHKV: torch.Tensor | None,
    inputs: Inputs,
    kept_PBGKX: torch.Tensor,
    segments: Segments,
    needs: Sequence[bool],
) -> list[torch.Tensor]:
    """The gradients of the inputs and of the first state; an empty tensor for a decay that needs none."""
    value_BSHV, groups = inputs.value_BSHV, inputs.key_BSGK.shape[2]
    # None where the loss uses the state alone.
    dout_BSHV = torch.zeros_like(value_BSHV) if dout_BSHV is None else dout_BSHV
    with without_autocast(value_BSHV):
        last = _by_group(_first_state(inputs, dstate_BHKV), groups)
        # Decays that are fixed, as retention's are, need no gradient (needs[3]), which would cost several passes.
        *found, dlog_decay, first = backward_pass(inputs, kept_PBGKX, segments, dout_BSHV, last, needs[3])
        found.append(kept_PBGKX.new_empty(0) if dlog_decay is None else dlog_decay)
        return [*found, _by_head(first, value_BSHV.shape[2])]


def _backward_shapes(inputs: Inputs, kept_PBGKX: torch.Tensor, needs: Sequence[bool]) -> list[torch.Tensor]:
    dquery, dkey, dvalue, dlog_decay = (x.new_empty(x.shape) for x in inputs[:4])
    return [dquery, dkey, dvalue, dlog_decay if needs[3] else kept_PBGKX.new_empty(0), _first_state(inputs, None)]


# To a compiler the loop over segments would be a graph that grows with the length.
_scalar_decay = opaque(
    "scalar_decay",
    _forward,
    _forward_shapes,
    _backward,
    _backward_shapes,
    returns=("out_BSHV", "state_BHKV", "kept_PBGKX"),
    gradients=("query_BSGK", "key_BSGK", "value_BSHV", "log_decay", "initial_state"),
)
