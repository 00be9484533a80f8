"""RWKV-4's WKV: per channel, an average of the values so far, weighted by exp(key) and fading at a constant rate.

Shapes: B batch, S positions, D width, G segments.
"""

from typing import Unpack

import torch

from moe_hf.ops.dtypes import float32_or_more
from moe_hf.ops.sequence.contract import Carried, Segments, call_of
from moe_hf.ops.sequence.segments import SegmentPasses, in_segments
from moe_hf.ops.sequence.wkv_segment import EMPTY, WkvInputs, segment_backward, segment_forward

# Tokens whose scans run side by side within a segment, and tokens whose intermediate results are alive at once.
_SEGMENTS = Segments(chunk=32, segment=512)


def wkv(
    decay_D: torch.Tensor,
    bonus_D: torch.Tensor,
    key_BSD: torch.Tensor,
    value_BSD: torch.Tensor,
    **carried: Unpack[Carried],
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
        **carried: as in `contract.Carried`. The state is (B, 3, D): numerator, denominator, and the maximum they are
            relative to; the empty one is 0, 0 and -1e38.

    Returns:
        (B, S, D) in the dtype of the value, and the state after the last token, (B, 3, D) in float32 (float64 where the
        value is), or None.
    """
    call = call_of(**carried)
    inputs = WkvInputs(decay_D, bonus_D, key_BSD, value_BSD)
    out_BSD, state_B3D, _ = _wkv(inputs, _first_state(call.initial_state, value_BSD), call.edges)
    return call.result(out_BSD, state_B3D)


def reference_wkv(
    decay_D: torch.Tensor,
    bonus_D: torch.Tensor,
    key_BSD: torch.Tensor,
    value_BSD: torch.Tensor,
    **carried: Unpack[Carried],
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Token by token, `wkv_step` after `wkv_step` (Peng et al. 2023, RWKV, eq. 16 and appendix D).

    Args and returns as in `wkv`.
    """
    call = call_of(**carried)
    mask_BS, starts_BS = call.edges
    state_B3D = _first_state(call.initial_state, value_BSD)
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
    return call.result(torch.stack(outputs, dim=1), state_B3D)


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


def _first_state(initial_state: torch.Tensor | None, value_BSD: torch.Tensor) -> torch.Tensor:
    dtype = float32_or_more(value_BSD)
    if initial_state is not None:
        return initial_state.to(dtype)
    return empty_wkv_state(value_BSD.shape[0], value_BSD.shape[2], dtype=dtype, device=value_BSD.device)


_wkv = in_segments("wkv", SegmentPasses(WkvInputs, "value_BSD", segment_forward, segment_backward), _SEGMENTS)
