"""RWKV-4's WKV: per channel, an average of the values so far, weighted by exp(key) and fading at a constant rate.

Shapes: B batch, S positions, D width, G segments.
"""

from typing import Any

import torch

from moe_hf.ops.sequence.scalar_decay import real_starts
from moe_hf.ops.sequence.wkv_segment import EMPTY, segment_backward, segment_forward

# Tokens whose scans run side by side within a segment, and tokens whose intermediate results are alive at once.
_CHUNK, _SEGMENT = 32, 512


def wkv(
    decay_D: torch.Tensor,
    bonus_D: torch.Tensor,
    key_BSD: torch.Tensor,
    value_BSD: torch.Tensor,
    *,
    initial_state: torch.Tensor | None = None,
    mask_BS: torch.Tensor | None = None,
    starts_BS: torch.Tensor | None = None,
    output_final_state: bool = True,
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """`reference_wkv` by scans over many chunks at once: equal in value and in gradient, which can be taken once.

    No key can overflow or vanish: every sum is kept relative to its largest term. What the backward pass keeps beside
    the inputs is one state per segment of 512 tokens; it computes the rest again. Under torch.compile it is one
    opaque operator.

    The third entry of the final state is only the scale of the other two. Gradients flow through what the three mean
    together, num * exp(max) and den * exp(max), as they do in every use of the state; none flow to what would look at
    the maximum by itself.

    Args:
        decay_D: rate of fading per token, >= 0: a token n steps back counts exp(-decay * n). Not the logarithm of the
            rate, which is what checkpoints of RWKV-4 store.
        bonus_D: added to the key of the present token, while it is the present one.
        key_BSD: log of the weight of each value.
        value_BSD: what is averaged.
        initial_state: (B, 3, D): numerator, denominator, and the maximum they are relative to; None is the empty
            state: 0, 0 and -1e38.
        mask_BS: nonzero at real tokens; None means that all are. Padding, wherever it stands, leaves the state as it
            is; the output there means nothing.
        starts_BS: bool, True at a token that begins a document, before which the state is emptied; None means none
            inside. At padding none begins.
        output_final_state: whether the state after the last token is wanted.

    Returns:
        (B, S, D) in the dtype of the value, and the state after the last token, (B, 3, D) in float32 (float64 where the
        value is), or None.
    """
    initial_state = _state_for(initial_state, value_BSD)
    starts_BS = real_starts(starts_BS, mask_BS)
    out_BSD, final_state, _ = _wkv(decay_D, bonus_D, key_BSD, value_BSD, initial_state, mask_BS, starts_BS)
    return out_BSD, final_state if output_final_state else None


def reference_wkv(
    decay_D: torch.Tensor,
    bonus_D: torch.Tensor,
    key_BSD: torch.Tensor,
    value_BSD: torch.Tensor,
    *,
    initial_state: torch.Tensor | None = None,
    mask_BS: torch.Tensor | None = None,
    starts_BS: torch.Tensor | None = None,
    output_final_state: bool = True,
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Token by token, `wkv_step` after `wkv_step` (Peng et al. 2023, RWKV, eq. 16 and appendix D).

    Args and returns as in `wkv`.
    """
    state_B3D = _state_for(initial_state, value_BSD)
    starts_BS = real_starts(starts_BS, mask_BS)
    empty_3D = empty_wkv_state(1, value_BSD.shape[-1], dtype=state_B3D.dtype, device=state_B3D.device)
    length = value_BSD.shape[1]
    real = [None] * length if mask_BS is None else mask_BS.unbind(1)
    starts = [None] * length if starts_BS is None else starts_BS[..., None, None].unbind(1)
    outputs = []
    for key_BD, value_BD, mask_B, begins in zip(key_BSD.unbind(1), value_BSD.unbind(1), real, starts, strict=True):
        if begins is not None:
            state_B3D = torch.where(begins, empty_3D, state_B3D)
        out_BD, state_B3D = wkv_step(decay_D, bonus_D, key_BD, value_BD, initial_state=state_B3D, mask_B=mask_B)
        outputs.append(out_BD)
    return torch.stack(outputs, dim=1), state_B3D if output_final_state else None


def wkv_step(
    decay_D: torch.Tensor,
    bonus_D: torch.Tensor,
    key_BD: torch.Tensor,
    value_BD: torch.Tensor,
    *,
    initial_state: torch.Tensor,
    mask_B: torch.Tensor | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """`wkv` for one token: the output (B, D) in the dtype of the value, and the new state (B, 3, D).

    Args:
        decay_D: as in `wkv`.
        bonus_D: as in `wkv`.
        key_BD: of one token.
        value_BD: of one token.
        initial_state: (B, 3, D), the state before the token, float32 or float64; left as it is.
        mask_B: nonzero where the token is real; a state goes past padding unchanged. None means that all are.
    """
    dtype = initial_state.dtype
    total_B2D, top_BD = initial_state[:, :2], initial_state[:, 2]
    key_BD, decay_D, bonus_D = key_BD.to(dtype), decay_D.to(dtype), bonus_D.to(dtype)
    # Two averages at once: the present token with its bonus for the output, and faded sums with its plain key to keep.
    past_B2D = torch.stack([top_BD, top_BD - decay_D], dim=1)
    now_B2D = torch.stack([key_BD + bonus_D, key_BD], dim=1)
    new_top_B2D = torch.maximum(past_B2D, now_B2D)
    past_B2D, now_B2D = (past_B2D - new_top_B2D).exp(), (now_B2D - new_top_B2D).exp()
    value_B1D = value_BD.to(dtype)[:, None]
    num_B2D = torch.addcmul(now_B2D * value_B1D, past_B2D, total_B2D[:, :1])
    den_B2D = torch.addcmul(now_B2D, past_B2D, total_B2D[:, 1:])
    out_BD = (num_B2D[:, 0] / den_B2D[:, 0]).to(value_BD.dtype)
    new_state = torch.stack([num_B2D[:, 1], den_B2D[:, 1], new_top_B2D[:, 1]], dim=1)
    if mask_B is not None:
        new_state = torch.where(mask_B.ne(0)[:, None, None], new_state, initial_state)
    return out_BD, new_state


def empty_wkv_state(
    batch: int, width: int, *, dtype: torch.dtype = torch.float32, device: torch.device | str | None = None
) -> torch.Tensor:
    """The state before any token, (B, 3, D): nothing, relative to a maximum below every key.

    >>> empty_wkv_state(1, 1).flatten().tolist()[:2]
    [0.0, 0.0]
    """
    state_B3D = torch.zeros(batch, 3, width, dtype=dtype, device=device)
    state_B3D[:, 2] = EMPTY
    return state_B3D


def _state_for(initial_state: torch.Tensor | None, value_BSD: torch.Tensor) -> torch.Tensor:
    dtype = torch.float64 if value_BSD.dtype == torch.float64 else torch.float32
    if initial_state is not None:
        return initial_state.to(dtype)
    return empty_wkv_state(value_BSD.shape[0], value_BSD.shape[2], dtype=dtype, device=value_BSD.device)


def _segments(length: int) -> list[tuple[int, int, int]]:
    """Start, stop and chunk size of each segment; what no full chunk is left for is a chunk by itself.

    >>> _segments(1068)
    [(0, 512, 32), (512, 1024, 32), (1024, 1056, 32), (1056, 1068, 12)]
    """
    whole = length - length % _CHUNK
    segments = [(start, min(start + _SEGMENT, whole), _CHUNK) for start in range(0, whole, _SEGMENT)]
    return segments + ([(whole, length, length - whole)] if whole < length else [])


def _room_for_segments(length: int) -> int:
    """No fewer than the segments of so many tokens.

    torch.export traces for any length only what is at least 2, since a size of 1 would be another program.
    """
    return length // _SEGMENT + 2


# The loops over tokens would be unrolled by the compiler: these operators are what it sees instead.
@torch.library.custom_op("moe_hf::wkv", mutates_args=())
def _wkv(
    decay_D: torch.Tensor,
    bonus_D: torch.Tensor,
    key_BSD: torch.Tensor,
    value_BSD: torch.Tensor,
    initial_state: torch.Tensor,
    mask_BS: torch.Tensor | None,
    starts_BS: torch.Tensor | None,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """The outputs, the last state, and the states before each segment, (G, B, 3, D)."""
    segments = _segments(value_BSD.shape[1])
    out_BSD = torch.empty_like(value_BSD, memory_format=torch.contiguous_format)
    states_GB3D = initial_state.new_empty(_room_for_segments(value_BSD.shape[1]), *initial_state.shape)
    states_GB3D[len(segments) :].zero_()
    state_B3D = initial_state
    for index, (start, stop, chunk) in enumerate(segments):
        states_GB3D[index] = state_B3D
        within = slice(start, stop)
        out_BSD[:, within], state_B3D = segment_forward(
            decay_D,
            bonus_D,
            key_BSD[:, within],
            value_BSD[:, within],
            state_B3D,
            None if mask_BS is None else mask_BS[:, within],
            None if starts_BS is None else starts_BS[:, within],
            chunk,
        )
    return out_BSD, state_B3D.clone(), states_GB3D


@_wkv.register_fake
def _wkv_fake(
    decay_D: torch.Tensor,
    bonus_D: torch.Tensor,
    key_BSD: torch.Tensor,
    value_BSD: torch.Tensor,
    initial_state: torch.Tensor,
    *edges: torch.Tensor | None,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    length = value_BSD.shape[1]
    return (
        value_BSD.new_empty(value_BSD.shape),
        initial_state.new_empty(initial_state.shape),
        initial_state.new_empty(_room_for_segments(length), *initial_state.shape),
    )


@torch.library.custom_op("moe_hf::wkv_backward", mutates_args=())
def _wkv_backward(
    dout_BSD: torch.Tensor,
    dfinal_B3D: torch.Tensor,
    decay_D: torch.Tensor,
    bonus_D: torch.Tensor,
    key_BSD: torch.Tensor,
    value_BSD: torch.Tensor,
    mask_BS: torch.Tensor | None,
    starts_BS: torch.Tensor | None,
    states_GB3D: torch.Tensor,
) -> list[torch.Tensor]:
    """The gradients of decay, bonus, key, value and the initial state."""
    ddecay_D, dbonus_D = (dfinal_B3D.new_zeros(part.shape) for part in (decay_D, bonus_D))
    dkey_BSD, dvalue_BSD = (
        torch.empty_like(part, memory_format=torch.contiguous_format) for part in (key_BSD, value_BSD)
    )
    dstate_B3D = dfinal_B3D
    segments = _segments(value_BSD.shape[1])
    for (start, stop, chunk), state_B3D in reversed(list(zip(segments, states_GB3D, strict=False))):
        within = slice(start, stop)
        ddecay, dbonus, dkey_BSD[:, within], dvalue_BSD[:, within], dstate_B3D = segment_backward(
            dout_BSD[:, within],
            dstate_B3D,
            decay_D,
            bonus_D,
            key_BSD[:, within],
            value_BSD[:, within],
            state_B3D,
            None if mask_BS is None else mask_BS[:, within],
            None if starts_BS is None else starts_BS[:, within],
            chunk,
        )
        ddecay_D += ddecay
        dbonus_D += dbonus
    return [ddecay_D.to(decay_D.dtype), dbonus_D.to(bonus_D.dtype), dkey_BSD, dvalue_BSD, dstate_B3D.clone()]


@_wkv_backward.register_fake
def _wkv_backward_fake(dout_BSD: torch.Tensor, dfinal_B3D: torch.Tensor, *inputs: torch.Tensor) -> list[torch.Tensor]:
    return [part.new_empty(part.shape) for part in (*inputs[:4], dfinal_B3D)]


def _keep(ctx: Any, inputs: tuple[Any, ...], output: tuple[torch.Tensor, ...]) -> None:
    tokens, edges = inputs[:4], inputs[5:]
    # Without this the absent gradients would be made, as zeros.
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(*tokens, *edges, output[2])


def _differentiate(
    ctx: Any, dout_BSD: torch.Tensor | None, dfinal_B3D: torch.Tensor | None, _: None
) -> tuple[torch.Tensor | None, ...]:
    if dout_BSD is None and dfinal_B3D is None:
        return (None,) * 7
    # Once: gradient checkpointing allows no second access.
    saved = ctx.saved_tensors
    value_BSD, states_GB3D = saved[3], saved[-1]
    if dout_BSD is None:
        dout_BSD = torch.zeros_like(value_BSD)
    if dfinal_B3D is None:
        dfinal_B3D = states_GB3D.new_zeros(states_GB3D.shape[1:])
    return *_wkv_backward(dout_BSD, dfinal_B3D, *saved), None, None


_wkv.register_autograd(_differentiate, setup_context=_keep)
