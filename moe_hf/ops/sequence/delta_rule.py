"""RWKV-7's generalised delta rule: a state that forgets, corrects itself and writes, token by token.

Shapes: B batch, S positions, H heads, K key width, V value width, G segments.
"""

from typing import Unpack

import torch

from moe_hf.ops.dtypes import float32_or_more
from moe_hf.ops.sequence.contract import Carried, Segments, call_of
from moe_hf.ops.sequence.delta_rule_segment import Sequences, segment_backward, segment_forward
from moe_hf.ops.sequence.segments import SegmentPasses, in_segments

# Tokens whose pairs are worked on at once, and tokens whose intermediate results are alive at once.
# The chunk also bounds the decay: one over its decays multiplied up is formed, and has to stay in the range of float32.
_SEGMENTS = Segments(chunk=32, segment=256)


def delta_rule(
    receptance_BSHK: torch.Tensor,
    log_decay_BSHK: torch.Tensor,
    key_BSHK: torch.Tensor,
    value_BSHV: torch.Tensor,
    a_BSHK: torch.Tensor,
    b_BSHK: torch.Tensor,
    **carried: Unpack[Carried],
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
        **carried: as in `contract.Carried`, the state (B, H, V, K).

    Returns:
        (B, S, H, V) in the dtype of the value, and the state after the last token, (B, H, V, K) in float32 (float64
        where the value is), or None.
    """
    call = call_of(**carried)
    tokens = Sequences(receptance_BSHK, log_decay_BSHK, key_BSHK, value_BSHV, a_BSHK, b_BSHK)
    out_BSHV, state_BHVK, _ = _delta_rule(tokens, _first_state(call.initial_state, tokens), call.edges)
    return call.result(out_BSHV, state_BHVK)


def reference_delta_rule(
    receptance_BSHK: torch.Tensor,
    log_decay_BSHK: torch.Tensor,
    key_BSHK: torch.Tensor,
    value_BSHV: torch.Tensor,
    a_BSHK: torch.Tensor,
    b_BSHK: torch.Tensor,
    **carried: Unpack[Carried],
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """`S_t = S_{t-1} (diag(w_t) + a_t b_t^T) + v_t k_t^T; o_t = S_t r_t` (Peng et al. 2025, RWKV-7, eqs. 16 to 19).

    Args and returns as in `delta_rule`.
    """
    call = call_of(**carried)
    mask_BS, starts_BS = call.edges
    tokens = Sequences(receptance_BSHK, log_decay_BSHK, key_BSHK, value_BSHV, a_BSHK, b_BSHK)
    state_BHVK = _first_state(call.initial_state, tokens)
    columns = [part.to(state_BHVK.dtype).unbind(1) for part in tokens]
    length = value_BSHV.shape[1]
    real = [None] * length if mask_BS is None else mask_BS.ne(0)[..., None, None, None].unbind(1)
    starts = [None] * length if starts_BS is None else starts_BS[..., None, None, None].unbind(1)
    outputs = []
    for r, log_w, k, v, a, b, is_real, begins in zip(*columns, real, starts, strict=True):
        if begins is not None:
            state_BHVK = state_BHVK.masked_fill(begins, 0.0)
        # S_{t-1} a_t: what is looked up is read before the state decays.
        found = torch.einsum("bhvk,bhk->bhv", state_BHVK, a)
        new_state = state_BHVK * log_w.exp()[:, :, None]
        new_state = new_state + found[..., None] * b[:, :, None] + v[..., None] * k[:, :, None]
        # Chosen, not multiplied by the mask: what stands at padding may not be finite.
        state_BHVK = new_state if is_real is None else torch.where(is_real, new_state, state_BHVK)
        outputs.append(torch.einsum("bhvk,bhk->bhv", state_BHVK, r))
    return call.result(torch.stack(outputs, dim=1).to(value_BSHV.dtype), state_BHVK)


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


def _first_state(initial_state: torch.Tensor | None, tokens: Sequences) -> torch.Tensor:
    dtype = float32_or_more(tokens.value)
    if initial_state is not None:
        return initial_state.to(dtype)
    batch, _, heads, width = tokens.value.shape
    return tokens.value.new_zeros(batch, heads, width, tokens.key.shape[-1], dtype=dtype)


_delta_rule = in_segments("delta_rule", SegmentPasses(Sequences, "value", segment_forward, segment_backward), _SEGMENTS)
