"""RWKV-4's WKV on one segment, forwards and backwards, by scans that run side by side in all of its chunks.

Shapes: B batch, N chunks, Q tokens per chunk, S = N * Q tokens, D width; 2 numerator and denominator.

Sums are kept relative to the running maximum m_t of the faded keys. As m_t itself is only a scale, no gradient flows
through it, and rounding in it is harmless: every factor is computed from the m_t that is really used.
"""

from itertools import pairwise
from typing import NamedTuple

import torch

from moe_hf.ops.sequence.contract import Edges

# The maximum of a state that holds nothing: finite, so that no difference is undefined, and below every key.
EMPTY = -1e38
# exp(40) times the past leaves nothing of the present in float64, and does not overflow in float32.
_CERTAIN = 40.0


class WkvInputs(NamedTuple):
    """What is averaged with which weights, as in `moe_hf.ops.sequence.wkv.wkv`; or the gradients of that."""

    decay_D: torch.Tensor
    bonus_D: torch.Tensor
    key_BSD: torch.Tensor
    value_BSD: torch.Tensor

    def between(self, start: int, stop: int) -> "WkvInputs":
        """The tokens from `start` to `stop`, as views."""
        return self._replace(key_BSD=self.key_BSD[:, start:stop], value_BSD=self.value_BSD[:, start:stop])


class _Parts(NamedTuple):
    """The scan of one segment."""

    kept_BSD: torch.Tensor
    written_BSD: torch.Tensor
    # At entry t the sums before token t, so that there are S + 1 of them.
    sum_2BSD: torch.Tensor
    max_BSD: torch.Tensor
    past_BSD: torch.Tensor
    total_BSD: torch.Tensor
    out_BSD: torch.Tensor


def segment_forward(
    inputs: WkvInputs, edges: Edges, state_B3D: torch.Tensor, chunk: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """The outputs (B, S, D) of a segment, in the dtype of the state, and the state after it.

    Args:
        inputs: of S tokens, a multiple of `chunk`, of any dtype.
        edges: what is real, and where documents begin.
        state_B3D: numerator, denominator and maximum before the segment.
        chunk: tokens per scan.
    """
    parts = _parts(inputs, edges, state_B3D, chunk)
    last_2BD = parts.sum_2BSD[:, :, -1]
    return parts.out_BSD, torch.stack([*last_2BD, parts.max_BSD[:, -1]], dim=1)


def segment_backward(
    dout_BSD: torch.Tensor,
    dstate_B3D: torch.Tensor,
    inputs: WkvInputs,
    edges: Edges,
    state_B3D: torch.Tensor,
    chunk: int,
) -> tuple[WkvInputs, torch.Tensor]:
    """The gradients of the inputs and of the state of `segment_forward`, given those of its results."""
    dtype, length = state_B3D.dtype, dout_BSD.shape[1]
    parts = _parts(inputs, edges, state_B3D, chunk)
    value_BSD = inputs.value_BSD.to(dtype)
    dpresent_BSD = dout_BSD.to(dtype) / parts.total_BSD
    # The gradient of the sums, scaled like them by their maximum: a recurrence from the end, of the same factors.
    dsum_2BSD = parts.sum_2BSD.new_empty(parts.sum_2BSD.shape)
    dsum_2BSD[:, :, -1] = dstate_B3D[:, :2].transpose(0, 1)
    torch.mul(dpresent_BSD, parts.past_BSD, out=dsum_2BSD[0, :, :length])
    torch.mul(dsum_2BSD[0, :, :length], parts.out_BSD, out=dsum_2BSD[1, :, :length]).neg_()
    # value - out, without the cancellation where the present token is all there is.
    dbonus_BSD = (value_BSD * parts.sum_2BSD[1, :, :length]).sub_(parts.sum_2BSD[0, :, :length])
    dbonus_BSD.mul_(dsum_2BSD[0, :, :length]).div_(parts.total_BSD)
    _scan_(dsum_2BSD[:, :, :length], parts.kept_BSD, dsum_2BSD[:, :, -1], chunk, backwards=True)

    dafter_2BSD = dsum_2BSD[:, :, 1:]
    dvalue_BSD = parts.written_BSD * dafter_2BSD[0]
    dkey_BSD = torch.addcmul(parts.written_BSD * dafter_2BSD[1], dvalue_BSD, value_BSD)
    dvalue_BSD += dpresent_BSD
    dkey_BSD += dbonus_BSD
    # Of the exponent of `kept`, from which the rate is subtracted once per real token.
    dfaded_BSD = (dafter_2BSD * parts.sum_2BSD[:, :, :length]).sum(0).mul_(parts.kept_BSD)
    if edges.mask_BS is not None:
        dfaded_BSD = dfaded_BSD * edges.mask_BS.ne(0)[..., None]
    dfirst_2BD = dsum_2BSD[:, :, 0]
    # The first maximum scales the other two, as num * exp(max): its gradient is theirs, each times what it scales.
    dmax_BD = (dfirst_2BD * parts.sum_2BSD[:, :, 0]).sum(0)
    dfirst_B3D = torch.stack([*dfirst_2BD, dmax_BD], dim=1)
    return WkvInputs(-dfaded_BSD.sum((0, 1)), dbonus_BSD.sum((0, 1)), dkey_BSD, dvalue_BSD), dfirst_B3D


def _parts(
    inputs: WkvInputs,
    edges: Edges,
    state_B3D: torch.Tensor,
    chunk: int,
) -> _Parts:
    dtype, length = state_B3D.dtype, inputs.key_BSD.shape[1]
    decay_D, bonus_D, key_BSD, value_BSD = (part.to(dtype) for part in inputs)
    mask_BS, starts_BS = edges
    stored_BSD, rate = key_BSD, decay_D
    if mask_BS is not None:
        real_BS1 = mask_BS.ne(0)[..., None]
        # Padding neither fades nor is stored; what it would read uses its own key, so that its output is finite.
        stored_BSD, rate = key_BSD.masked_fill(~real_BS1, -torch.inf), decay_D * real_BS1
    max_BSD = _running_max(stored_BSD, decay_D, state_B3D[:, 2], edges, chunk)
    before_BSD, after_BSD = max_BSD[:, :length], max_BSD[:, 1:]
    kept_BSD = (before_BSD - after_BSD).sub_(rate).exp_()
    written_BSD = (stored_BSD - after_BSD).exp_()
    past_BSD = (before_BSD - bonus_D).sub_(key_BSD).clamp_(max=_CERTAIN).exp_()
    if starts_BS is not None:
        kept_BSD.masked_fill_(starts_BS[..., None], 0.0)
        past_BSD.masked_fill_(starts_BS[..., None], 0.0)

    batch, _, width = key_BSD.shape
    sum_2BSD = key_BSD.new_empty(2, batch, length + 1, width)
    sum_2BSD[:, :, 0] = state_B3D[:, :2].transpose(0, 1)
    torch.mul(written_BSD, value_BSD, out=sum_2BSD[0, :, 1:])
    sum_2BSD[1, :, 1:] = written_BSD
    _scan_(sum_2BSD[:, :, 1:], kept_BSD, sum_2BSD[:, :, 0], chunk, backwards=False)
    # Numerator and denominator relative to the present token's weight.
    out_BSD = torch.addcmul(value_BSD, past_BSD, sum_2BSD[0, :, :length])
    total_BSD = (past_BSD * sum_2BSD[1, :, :length]).add_(1.0)
    out_BSD /= total_BSD
    return _Parts(kept_BSD, written_BSD, sum_2BSD, max_BSD, past_BSD, total_BSD, out_BSD)


def _running_max(
    key_BSD: torch.Tensor,
    decay_D: torch.Tensor,
    first_BD: torch.Tensor,
    edges: Edges,
    chunk: int,
) -> torch.Tensor:
    """The maximum of the faded keys before each token and after the last, (B, S + 1, D)."""
    mask_BS, starts_BS = edges
    batch, length, width = key_BSD.shape
    steps_NQ1 = torch.arange(1, chunk + 1, device=key_BSD.device)[:, None].expand(length // chunk, chunk, 1)
    steps_BNQ1 = steps_NQ1.expand(batch, -1, -1, -1)
    if mask_BS is not None:
        steps_BNQ1 = mask_BS.ne(0).unflatten(1, (-1, chunk)).cumsum(-1)[..., None]
    fade_BNQD = steps_BNQ1 * decay_D if mask_BS is not None else steps_NQ1 * decay_D
    maxima_BSD = key_BSD.new_empty(batch, length + 1, width)
    maxima_BSD[:, 0] = first_BD
    max_BNQD = maxima_BSD[:, 1:].unflatten(1, (-1, chunk))
    # With the fading within the chunk taken out, it is a plain running maximum.
    torch.add(key_BSD.unflatten(1, (-1, chunk)), fade_BNQD, out=max_BNQD)
    columns = max_BNQD.unbind(2)
    begins = None if starts_BS is None else starts_BS.unflatten(1, (-1, chunk))[..., None].unbind(2)
    for slot in range(1, chunk):
        before = columns[slot - 1]
        if begins is not None:
            before = before.masked_fill(begins[slot], EMPTY)
        torch.maximum(before, columns[slot], out=columns[slot])

    # So far each chunk by itself. The maximum of what came before goes over whole chunks, and is joined in at the end.
    reached_BNQ1 = None
    if starts_BS is not None:
        reached_BNQ1 = starts_BS.unflatten(1, (-1, chunk)).cumsum(-1).eq(0)[..., None]
    incoming = []
    carry_BD = first_BD
    for index in range(length // chunk):
        incoming.append(carry_BD)
        if reached_BNQ1 is not None:
            carry_BD = carry_BD.masked_fill(~reached_BNQ1[:, index, -1], EMPTY)
        carry_BD = torch.maximum(carry_BD, max_BNQD[:, index, -1]) - fade_BNQD.expand_as(max_BNQD)[:, index, -1]
    incoming_BN1D = torch.stack(incoming, dim=1)[:, :, None]
    if reached_BNQ1 is not None:
        incoming_BN1D = torch.where(reached_BNQ1, incoming_BN1D, EMPTY)
    torch.maximum(max_BNQD, incoming_BN1D, out=max_BNQD).sub_(fade_BNQD)
    return maxima_BSD


def _scan_(
    x_2BSD: torch.Tensor, kept_BSD: torch.Tensor, state_2BD: torch.Tensor, chunk: int, *, backwards: bool
) -> None:
    """Turns x, in place, into the sums y_t = x_t + kept_t * y_{t-1} (or y_{t+1}, backwards) that follow `state`."""
    x_2BNQD, kept_BNQD = x_2BSD.unflatten(2, (-1, chunk)), kept_BSD.unflatten(1, (-1, chunk))
    slots, chunks = range(chunk), range(x_2BNQD.shape[2])
    if backwards:
        slots, chunks = slots[::-1], chunks[::-1]
    # Slot by slot in all chunks at once, then chunk after chunk: Q + N steps that wait for each other, not Q * N.
    # The products of the factors say what is left, at each token, of what came before its chunk.
    product_BNQD = kept_BNQD.clone()
    columns, factors, products = x_2BNQD.unbind(3), kept_BNQD.unbind(2), product_BNQD.unbind(2)
    for before, here in pairwise(slots):
        torch.addcmul(columns[here], factors[here], columns[before], out=columns[here])
        products[here].mul_(products[before])
    incoming = [state_2BD] * len(chunks)
    carry_2BD = state_2BD
    last_column, last_product = columns[slots[-1]], products[slots[-1]]
    for index in chunks:
        incoming[index] = carry_2BD
        carry_2BD = torch.addcmul(last_column[:, :, index], last_product[:, index], carry_2BD)
    x_2BNQD.addcmul_(product_BNQD, torch.stack(incoming, dim=2)[:, :, :, None])
