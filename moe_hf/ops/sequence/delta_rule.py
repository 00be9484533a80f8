"""RWKV-7's generalised delta rule: a state that forgets, corrects itself and writes, token by token.

Shapes: B batch, S positions, H heads, K key width, V value width, G segments.
"""

from typing import Any

import torch

from moe_hf.ops.sequence.delta_rule_segment import Edges, Sequences, segment_backward, segment_forward
from moe_hf.ops.sequence.scalar_decay import real_starts

# Tokens whose pairs are worked on at once, and tokens whose intermediate results are alive at once.
_CHUNK, _SEGMENT = 32, 256


def delta_rule(
    receptance_BSHK: torch.Tensor,
    log_decay_BSHK: torch.Tensor,
    key_BSHK: torch.Tensor,
    value_BSHV: torch.Tensor,
    a_BSHK: torch.Tensor,
    b_BSHK: torch.Tensor,
    *,
    initial_state: torch.Tensor | None = None,
    mask_BS: torch.Tensor | None = None,
    starts_BS: torch.Tensor | None = None,
    output_final_state: bool = True,
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """`reference_delta_rule` in time linear in S: equal in value and in gradient, which can be taken once.

    Works on chunks of 32 tokens at once and on segments of 256 tokens one after the other. What the backward pass
    keeps beside the inputs is one state per segment; it computes the rest again. Under torch.compile it is one opaque
    operator.

    Args:
        receptance_BSHK: what reads the state.
        log_decay_BSHK: log of the factor, per channel, by which a token makes the state decay; at most 0 and above
            -2.7, so that 32 of them stay in the range of float32. RWKV-7's lie in [-0.6065, 0].
        key_BSHK: where the value is written.
        value_BSHV: what is written.
        a_BSHK: what is looked up before it is corrected; RWKV-7's is minus the normalised key.
        b_BSHK: where the correction is written; RWKV-7's is the normalised key times the in-context learning rate.
        initial_state: (B, H, V, K); None is the empty state, zeros.
        mask_BS: nonzero at real tokens; None means that all are. Padding, wherever it stands, leaves the state as it
            is; the output there means nothing.
        starts_BS: bool, True at a token that begins a document, before which the state is emptied; None means none
            inside. At padding none begins.
        output_final_state: whether the state after the last token is wanted.

    Returns:
        (B, S, H, V) in the dtype of the value, and the state after the last token, (B, H, V, K) in float32 (float64
        where the value is), or None.
    """
    initial_state = _state_for(initial_state, key_BSHK, value_BSHV)
    starts_BS = real_starts(starts_BS, mask_BS)
    tokens = (receptance_BSHK, log_decay_BSHK, key_BSHK, value_BSHV, a_BSHK, b_BSHK)
    out_BSHV, final_state, _ = _delta_rule(*tokens, initial_state, mask_BS, starts_BS)
    return out_BSHV, final_state if output_final_state else None


def reference_delta_rule(
    receptance_BSHK: torch.Tensor,
    log_decay_BSHK: torch.Tensor,
    key_BSHK: torch.Tensor,
    value_BSHV: torch.Tensor,
    a_BSHK: torch.Tensor,
    b_BSHK: torch.Tensor,
    *,
    initial_state: torch.Tensor | None = None,
    mask_BS: torch.Tensor | None = None,
    starts_BS: torch.Tensor | None = None,
    output_final_state: bool = True,
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """`S_t = S_{t-1} (diag(w_t) + a_t b_t^T) + v_t k_t^T; o_t = S_t r_t` (Peng et al. 2025, RWKV-7, eqs. 16 to 19).

    Args and returns as in `delta_rule`.
    """
    state_BHVK = _state_for(initial_state, key_BSHK, value_BSHV)
    starts_BS = real_starts(starts_BS, mask_BS)
    tokens = (receptance_BSHK, log_decay_BSHK, key_BSHK, value_BSHV, a_BSHK, b_BSHK)
    columns = [part.to(state_BHVK.dtype).unbind(1) for part in tokens]
    length = value_BSHV.shape[1]
    real = [None] * length if mask_BS is None else mask_BS.ne(0)[..., None, None, None].unbind(1)
    starts = [None] * length if starts_BS is None else starts_BS[..., None, None, None].unbind(1)
    outputs = []
    for r, log_w, k, v, a, b, is_real, begins in zip(*columns, real, starts, strict=True):
        if begins is not None:
            state_BHVK = state_BHVK.masked_fill(begins, 0.0)
        found = torch.einsum("bhvk,bhk->bhv", state_BHVK, a)
        new_state = state_BHVK * log_w.exp()[:, :, None]
        new_state = new_state + found[..., None] * b[:, :, None] + v[..., None] * k[:, :, None]
        state_BHVK = new_state if is_real is None else torch.where(is_real, new_state, state_BHVK)
        outputs.append(torch.einsum("bhvk,bhk->bhv", state_BHVK, r))
    out_BSHV = torch.stack(outputs, dim=1).to(value_BSHV.dtype)
    return out_BSHV, state_BHVK if output_final_state else None


def delta_rule_step(
    receptance_BHK: torch.Tensor,
    log_decay_BHK: torch.Tensor,
    key_BHK: torch.Tensor,
    value_BHV: torch.Tensor,
    a_BHK: torch.Tensor,
    b_BHK: torch.Tensor,
    *,
    initial_state: torch.Tensor,
    mask_B: torch.Tensor | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """`delta_rule` for one token: the output (B, H, V) in the dtype of the value, and the new state.

    Args:
        receptance_BHK: as in `delta_rule`, of one token, like the next five.
        log_decay_BHK: any value at most 0.
        key_BHK: of one token.
        value_BHV: of one token.
        a_BHK: of one token.
        b_BHK: of one token.
        initial_state: (B, H, V, K), the state before the token, float32 or float64; left as it is.
        mask_B: nonzero where the token is real; a state goes past padding unchanged. None means that all are.
    """
    dtype = initial_state.dtype
    found_BHV = (initial_state @ a_BHK.to(dtype)[..., None]).squeeze(-1)
    # The correction and the value, written by one product of inner size 2.
    what_BHV2 = torch.stack([found_BHV, value_BHV.to(dtype)], dim=-1)
    where_BH2K = torch.stack([b_BHK.to(dtype), key_BHK.to(dtype)], dim=-2)
    new_state = torch.addcmul(what_BHV2 @ where_BH2K, initial_state, log_decay_BHK.to(dtype).exp()[:, :, None])
    out_BHV = (new_state @ receptance_BHK.to(dtype)[..., None]).squeeze(-1)
    if mask_B is not None:
        new_state = torch.where(mask_B.ne(0)[:, None, None, None], new_state, initial_state)
    return out_BHV.to(value_BHV.dtype), new_state


def _state_for(initial_state: torch.Tensor | None, key_BSHK: torch.Tensor, value_BSHV: torch.Tensor) -> torch.Tensor:
    dtype = torch.float64 if value_BSHV.dtype == torch.float64 else torch.float32
    if initial_state is not None:
        return initial_state.to(dtype)
    batch, _, heads, width = value_BSHV.shape
    return value_BSHV.new_zeros(batch, heads, width, key_BSHK.shape[-1], dtype=dtype)


def _segments(length: int) -> list[tuple[int, int, int]]:
    """Start, stop and chunk size of each segment; what no full chunk is left for is a chunk by itself.

    >>> _segments(548)
    [(0, 256, 32), (256, 512, 32), (512, 544, 32), (544, 548, 4)]
    """
    whole = length - length % _CHUNK
    segments = [(start, min(start + _SEGMENT, whole), _CHUNK) for start in range(0, whole, _SEGMENT)]
    return segments + ([(whole, length, length - whole)] if whole < length else [])


def _room_for_segments(length: int) -> int:
    """No fewer than the segments of so many tokens.

    torch.export traces for any length only what is at least 2, since a size of 1 would be another program.
    """
    return length // _SEGMENT + 2


# The loop over segments would be unrolled by the compiler: these operators are what it sees instead.
@torch.library.custom_op("moe_hf::delta_rule", mutates_args=())
def _delta_rule(
    receptance_BSHK: torch.Tensor,
    log_decay_BSHK: torch.Tensor,
    key_BSHK: torch.Tensor,
    value_BSHV: torch.Tensor,
    a_BSHK: torch.Tensor,
    b_BSHK: torch.Tensor,
    initial_state: torch.Tensor,
    mask_BS: torch.Tensor | None,
    starts_BS: torch.Tensor | None,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """The outputs, the last state, and the states before each segment, (G, B, H, V, K)."""
    tokens = Sequences(receptance_BSHK, log_decay_BSHK, key_BSHK, value_BSHV, a_BSHK, b_BSHK)
    edges = Edges(mask_BS, starts_BS)
    segments = _segments(value_BSHV.shape[1])
    out_BSHV = torch.empty_like(value_BSHV, memory_format=torch.contiguous_format)
    states_GBHVK = initial_state.new_empty(_room_for_segments(value_BSHV.shape[1]), *initial_state.shape)
    states_GBHVK[len(segments) :].zero_()
    state_BHVK = initial_state
    with torch.autocast(value_BSHV.device.type, enabled=False):
        for index, (start, stop, chunk) in enumerate(segments):
            states_GBHVK[index] = state_BHVK
            out_BSHV[:, start:stop], state_BHVK = segment_forward(
                tokens.between(start, stop), edges.between(start, stop), state_BHVK, chunk
            )
    return out_BSHV, state_BHVK.clone(), states_GBHVK


@_delta_rule.register_fake
def _delta_rule_fake(
    receptance_BSHK: torch.Tensor,
    log_decay_BSHK: torch.Tensor,
    key_BSHK: torch.Tensor,
    value_BSHV: torch.Tensor,
    a_BSHK: torch.Tensor,
    b_BSHK: torch.Tensor,
    initial_state: torch.Tensor,
    *edges: torch.Tensor | None,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    length = value_BSHV.shape[1]
    return (
        value_BSHV.new_empty(value_BSHV.shape),
        initial_state.new_empty(initial_state.shape),
        initial_state.new_empty(_room_for_segments(length), *initial_state.shape),
    )


@torch.library.custom_op("moe_hf::delta_rule_backward", mutates_args=())
def _delta_rule_backward(
    dout_BSHV: torch.Tensor,
    dfinal_BHVK: torch.Tensor,
    receptance_BSHK: torch.Tensor,
    log_decay_BSHK: torch.Tensor,
    key_BSHK: torch.Tensor,
    value_BSHV: torch.Tensor,
    a_BSHK: torch.Tensor,
    b_BSHK: torch.Tensor,
    mask_BS: torch.Tensor | None,
    starts_BS: torch.Tensor | None,
    states_GBHVK: torch.Tensor,
) -> list[torch.Tensor]:
    """The gradients of the six inputs and of the initial state."""
    tokens = Sequences(receptance_BSHK, log_decay_BSHK, key_BSHK, value_BSHV, a_BSHK, b_BSHK)
    edges = Edges(mask_BS, starts_BS)
    gradients = Sequences(*(torch.empty_like(part, memory_format=torch.contiguous_format) for part in tokens))
    dstate_BHVK = dfinal_BHVK
    segments = _segments(value_BSHV.shape[1])
    with torch.autocast(value_BSHV.device.type, enabled=False):
        for (start, stop, chunk), state_BHVK in reversed(list(zip(segments, states_GBHVK, strict=False))):
            within, around = tokens.between(start, stop), edges.between(start, stop)
            pieces, dstate_BHVK = segment_backward(
                dout_BSHV[:, start:stop], dstate_BHVK, within, around, state_BHVK, chunk
            )
            for target, piece in zip(gradients.between(start, stop), pieces, strict=True):
                target.copy_(piece)
    return [*gradients, dstate_BHVK.clone()]


@_delta_rule_backward.register_fake
def _delta_rule_backward_fake(
    dout_BSHV: torch.Tensor, dfinal_BHVK: torch.Tensor, *inputs: torch.Tensor
) -> list[torch.Tensor]:
    return [part.new_empty(part.shape) for part in (*inputs[:6], dfinal_BHVK)]


def _keep(ctx: Any, inputs: tuple[Any, ...], output: tuple[torch.Tensor, ...]) -> None:
    tokens, edges = inputs[:6], inputs[7:]
    # Without this the absent gradients would be made, as zeros.
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(*tokens, *edges, output[2])


def _differentiate(
    ctx: Any, dout_BSHV: torch.Tensor | None, dfinal_BHVK: torch.Tensor | None, _: None
) -> tuple[torch.Tensor | None, ...]:
    if dout_BSHV is None and dfinal_BHVK is None:
        return (None,) * 9
    # Once: gradient checkpointing allows no second access.
    saved = ctx.saved_tensors
    value_BSHV, states_GBHVK = saved[3], saved[-1]
    if dout_BSHV is None:
        dout_BSHV = torch.zeros_like(value_BSHV)
    if dfinal_BHVK is None:
        dfinal_BHVK = states_GBHVK.new_zeros(states_GBHVK.shape[1:])
    return *_delta_rule_backward(dout_BSHV, dfinal_BHVK, *saved), None, None


_delta_rule.register_autograd(_differentiate, setup_context=_keep)
