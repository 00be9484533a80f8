"""The chunkwise arithmetic of RWKV-7's delta rule on one segment, forwards and backwards.

Shapes: B batch, H heads, N chunks, C tokens per chunk, S = N * C tokens, P = 2C rows (for each token one that asks what
the state holds and one that reads the output; likewise one that corrects the state and one that writes the value),
K key width, V value width.

Inside a chunk that starts from state Z, with the decays multiplied up to g_t, the corrections u_t = S_{t-1} a_t solve
a triangular system, u = A Z^T + strictly_lower(A B^T) u + strictly_lower(A K^T) v with A = a_t g_{t-1}, B = b_t / g_t,
K = k_t / g_t (the WY form: Bischof and Van Loan 1987; Yang et al. 2024, Parallelizing Linear Transformers with the
Delta Rule, section 3.2). All but what Z does to u, and u to the next Z, is products over all chunks at once.
"""

from typing import NamedTuple

import torch

from moe_hf.ops.sequence.contract import Edges


class Sequences(NamedTuple):
    """The six inputs of the delta rule, (B, S, H, K), the value (B, S, H, V)."""

    receptance: torch.Tensor
    log_decay: torch.Tensor
    key: torch.Tensor
    value: torch.Tensor
    a: torch.Tensor
    b: torch.Tensor

    def between(self, start: int, stop: int) -> "Sequences":
        """The tokens from `start` to `stop`, as views."""
        return Sequences(*(part[:, start:stop] for part in self))


class _Visibility(NamedTuple):
    """Who sees whom within a chunk: factors 0 or 1, of which the last three are None where no document begins."""

    pair_PP: torch.Tensor
    from_start_NB1P1: torch.Tensor | None
    to_end_NB1P1: torch.Tensor | None
    through_NB111: torch.Tensor | None


class _Parts(NamedTuple):
    """What the backward pass needs of the forward one."""

    decay_NBHCK: torch.Tensor
    read_NBHPK: torch.Tensor
    write_NBHPK: torch.Tensor
    real_NB1C1: torch.Tensor | None
    sees: _Visibility
    pair_NBHPP: torch.Tensor
    inverse_NBHCC: torch.Tensor
    ask_NBHCK: torch.Tensor
    lasting_NBHPK: torch.Tensor
    content_NBHPV: torch.Tensor
    state_NBHVK: torch.Tensor
    last_state_BHVK: torch.Tensor


def segment_forward(
    tokens: Sequences, edges: Edges, state_BHVK: torch.Tensor, chunk: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """The outputs (B, S, H, V) of a segment, in the dtype of the state, and the state after it.

    Args:
        tokens: S of them, a multiple of `chunk`.
        edges: what is real, and where documents begin.
        state_BHVK: the state before the segment.
        chunk: tokens that are worked on at once.
    """
    parts = _parts(tokens, edges, state_BHVK, chunk)
    # The second half of the rows only: the first half asked what the corrections needed, and those are in the content.
    reader_NBHCK = _times(parts.read_NBHPK, parts.sees.from_start_NB1P1)[..., chunk:, :]
    out_NBHCV = parts.pair_NBHPP[..., chunk:, :] @ parts.content_NBHPV
    out_NBHCV += reader_NBHCK @ parts.state_NBHVK.mT
    return _joined(out_NBHCV), parts.last_state_BHVK


def segment_backward(
    dout_BSHV: torch.Tensor,
    dstate_BHVK: torch.Tensor,
    tokens: Sequences,
    edges: Edges,
    state_BHVK: torch.Tensor,
    chunk: int,
) -> tuple[Sequences, torch.Tensor]:
    """The gradients of the inputs of `segment_forward`, and of the state before the segment.

    Args:
        dout_BSHV: gradient of the outputs.
        dstate_BHVK: gradient of the state after the segment.
        tokens: as in `segment_forward`.
        edges: as in `segment_forward`.
        state_BHVK: as in `segment_forward`.
        chunk: as in `segment_forward`.
    """
    # Computed again: the forward pass kept the state before the segment alone.
    parts = _parts(tokens, edges, state_BHVK, chunk)
    sees, read_NBHPK, write_NBHPK = parts.sees, parts.read_NBHPK, parts.write_NBHPK
    dout_NBHCV = _cut(dout_BSHV.to(state_BHVK.dtype), chunk).contiguous()

    dcontent_NBHPV = parts.pair_NBHPP[..., chunk:, :].mT @ dout_NBHCV
    reader_NBHCK = _times(read_NBHPK, sees.from_start_NB1P1)[..., chunk:, :]
    dstate_NBHVK = dout_NBHCV.mT @ reader_NBHCK
    # Adds to dcontent, in place, what later states ask of it: only afterwards is it complete.
    dnext_NBHVK, dscaled_NBHVK, dfirst_BHVK = _scan_backward(parts, dstate_NBHVK, dcontent_NBHPV, dstate_BHVK)
    # Through the triangular system: the gradient of its right-hand side, beside that of the outputs.
    dsolved_NBHCV = parts.inverse_NBHCC.mT @ dcontent_NBHPV[..., :chunk, :]
    dread_NBHPV = torch.cat([dsolved_NBHCV, dout_NBHCV], dim=-2)
    dvalue_NBHCV = dcontent_NBHPV[..., chunk:, :] + parts.pair_NBHPP[..., :chunk, chunk:].mT @ dsolved_NBHCV

    dpair_NBHPP = (dread_NBHPV @ parts.content_NBHPV.mT).mul_(sees.pair_PP)
    dread_NBHPK = dpair_NBHPP @ write_NBHPK
    dread_NBHPK += _times(dread_NBHPV @ parts.state_NBHVK, sees.from_start_NB1P1)
    dwrite_NBHPK = dpair_NBHPP.mT @ read_NBHPK
    dwrite_NBHPK += _times(parts.content_NBHPV @ dscaled_NBHVK, sees.to_end_NB1P1)
    # The state after a chunk is, as a whole, scaled by the decay through the chunk.
    after_NBHVK = torch.cat([parts.state_NBHVK[1:], parts.last_state_BHVK[None]])
    dlast_NBHK = (after_NBHVK * dnext_NBHVK).sum(-2)
    gradients = _gradients(parts, dread_NBHPK, dwrite_NBHPK, dlast_NBHK)
    receptance, log_decay, key, a, b = (_joined(part) for part in gradients)
    return Sequences(receptance, log_decay, key, _joined(dvalue_NBHCV), a, b), dfirst_BHVK


def _gradients(
    parts: _Parts, dread_NBHPK: torch.Tensor, dwrite_NBHPK: torch.Tensor, dlast_NBHK: torch.Tensor
) -> tuple[torch.Tensor, ...]:
    """From the gradients of the scaled rows to those of receptance, log decay, key, a and b."""
    chunk = parts.decay_NBHCK.shape[-2]
    # A row is its input times exp(a sum of log decays), so that the gradient of this sum is row times gradient: nothing
    # is divided by a decay, which may be tiny.
    moved_NBHPK = parts.read_NBHPK * dread_NBHPK
    dlog_NBHCK = moved_NBHPK[..., chunk:, :]
    # What is asked at a token has decayed up to the one before it.
    dlog_NBHCK[..., :-1, :] += moved_NBHPK[..., 1:chunk, :]
    kept_NBHPK = parts.write_NBHPK * dwrite_NBHPK
    dlog_NBHCK -= kept_NBHPK[..., :chunk, :]
    dlog_NBHCK -= kept_NBHPK[..., chunk:, :]
    dlog_NBHCK[..., -1, :] += dlast_NBHK
    # A log decay moves every later product of decays: a sum from the end, as one small matrix product.
    later_CC = torch.ones(chunk, chunk, dtype=dlog_NBHCK.dtype, device=dlog_NBHCK.device).triu_()
    dlog_NBHCK = later_CC @ dlog_NBHCK
    da_NBHCK, dreceptance_NBHCK = dread_NBHPK[..., :chunk, :], dread_NBHPK[..., chunk:, :]
    db_NBHCK, dkey_NBHCK = dwrite_NBHPK[..., :chunk, :], dwrite_NBHPK[..., chunk:, :]
    dreceptance_NBHCK *= parts.decay_NBHCK
    da_NBHCK[..., 1:, :] *= parts.decay_NBHCK[..., :-1, :]
    growth_NBHCK = parts.decay_NBHCK.reciprocal()
    db_NBHCK *= growth_NBHCK
    dkey_NBHCK *= growth_NBHCK
    # The forward pass multiplied these three inputs by the mask.
    if parts.real_NB1C1 is not None:
        dlog_NBHCK, dkey_NBHCK, da_NBHCK = (part * parts.real_NB1C1 for part in (dlog_NBHCK, dkey_NBHCK, da_NBHCK))
    return dreceptance_NBHCK, dlog_NBHCK, dkey_NBHCK, da_NBHCK, db_NBHCK


def _parts(tokens: Sequences, edges: Edges, state_BHVK: torch.Tensor, chunk: int) -> _Parts:
    dtype = state_BHVK.dtype
    receptance, log_decay, key, value, a, b = (_cut(part, chunk) for part in tokens)
    log_decay = log_decay.to(dtype)
    real_NB1C1 = None
    if edges.mask_BS is not None:
        real_NB1C1 = _cut(edges.mask_BS.ne(0)[..., None, None], chunk).to(dtype)
        # Padding neither decays nor writes nor corrects.
        log_decay, key, a = log_decay * real_NB1C1, key * real_NB1C1, a * real_NB1C1
    # From the start of the chunk, never over several: the reciprocals below have to stay finite.
    decay_NBHCK = log_decay.cumsum(dim=-2).exp_()
    # Both kinds of rows lie in one tensor, so that one product forms all pairs of a chunk.
    rows = (*decay_NBHCK.shape[:3], 2 * chunk)
    read_NBHPK = decay_NBHCK.new_empty(*rows, decay_NBHCK.shape[-1])
    read_NBHPK[..., 0, :] = a[..., 0, :]
    torch.mul(a[..., 1:, :], decay_NBHCK[..., :-1, :], out=read_NBHPK[..., 1:chunk, :])
    torch.mul(receptance, decay_NBHCK, out=read_NBHPK[..., chunk:, :])
    write_NBHPK = torch.empty_like(read_NBHPK)
    growth_NBHCK = decay_NBHCK.reciprocal()
    torch.mul(b, growth_NBHCK, out=write_NBHPK[..., :chunk, :])
    torch.mul(key, growth_NBHCK, out=write_NBHPK[..., chunk:, :])

    sees = _visibility(edges.starts_BS, chunk, decay_NBHCK)
    pair_NBHPP = (read_NBHPK @ write_NBHPK.mT).mul_(sees.pair_PP)
    identity_CC = torch.eye(chunk, dtype=dtype, device=value.device)
    # The whole inverse costs less than solving for both right-hand sides, and the backward pass needs it again.
    inverse_NBHCC = torch.linalg.solve_triangular(
        identity_CC - pair_NBHPP[..., :chunk, :chunk], identity_CC, upper=False, unitriangular=True
    )
    ask_NBHCK = _times(inverse_NBHCC @ read_NBHPK[..., :chunk, :], _first_half(sees.from_start_NB1P1))
    content_NBHPV = decay_NBHCK.new_empty(*rows, value.shape[-1])
    content_NBHPV[..., chunk:, :] = value
    # The share of the corrections that the state before the chunk has no part in; `_scan` adds the other.
    content_NBHPV[..., :chunk, :] = inverse_NBHCC @ (pair_NBHPP[..., :chunk, chunk:] @ content_NBHPV[..., chunk:, :])

    lasting_NBHPK = _times(write_NBHPK, sees.to_end_NB1P1)
    states = _scan(content_NBHPV, ask_NBHCK, lasting_NBHPK, decay_NBHCK[..., -1:, :], sees.through_NB111, state_BHVK)
    return _Parts(
        decay_NBHCK,
        read_NBHPK,
        write_NBHPK,
        real_NB1C1,
        sees,
        pair_NBHPP,
        inverse_NBHCC,
        ask_NBHCK,
        lasting_NBHPK,
        content_NBHPV,
        *states,
    )


def _visibility(starts_BS: torch.Tensor | None, chunk: int, like: torch.Tensor) -> _Visibility:
    ones_CC = like.new_ones(chunk, chunk)
    before_CC, upto_CC = ones_CC.tril(-1), ones_CC.tril()
    # A token asks for what stood there before it, but reads what stands there after it as well.
    pair_PP = torch.cat([before_CC.repeat(1, 2), upto_CC.repeat(1, 2)])
    if starts_BS is None:
        return _Visibility(pair_PP, None, None, None)
    # Numbered within the chunk: document 0 is the one that the state before it belongs to.
    document_NBC = starts_BS.unflatten(1, (-1, chunk)).transpose(0, 1).cumsum(-1)
    document_NB1P1 = document_NBC.repeat(1, 1, 2)[:, :, None, :, None]
    last_NB111 = document_NBC[:, :, -1][:, :, None, None, None]
    return _Visibility(
        pair_PP * (document_NB1P1 == document_NB1P1.mT),
        (document_NB1P1 == 0).to(like.dtype),
        (document_NB1P1 == last_NB111).to(like.dtype),
        (last_NB111 == 0).to(like.dtype),
    )


def _scan(
    content_NBHPV: torch.Tensor,
    ask_NBHCK: torch.Tensor,
    lasting_NBHPK: torch.Tensor,
    last_NBH1K: torch.Tensor,
    through_NB111: torch.Tensor | None,
    state_BHVK: torch.Tensor,
) -> tuple[torch.Tensor, torch.Tensor]:
    """The states before each chunk, and the one after the last; adds to the corrections what they find in them."""
    num_chunks, shape, chunk = len(content_NBHPV), state_BHVK.shape, ask_NBHCK.shape[-2]
    states = state_BHVK.new_empty(num_chunks + 1, shape[0] * shape[1], *shape[2:])
    states[0] = state_BHVK.flatten(0, 1)
    # Views, since their tensors are contiguous: what is added to the corrections below stands in content_NBHPV.
    contents, asks, lasting, last = (x.flatten(1, 2) for x in (content_NBHPV, ask_NBHCK, lasting_NBHPK, last_NBH1K))
    through = None if through_NB111 is None else through_NB111.expand(-1, -1, shape[1], -1, -1).flatten(1, 2)
    for index in range(num_chunks):
        before, content = states[index], contents[index]
        content[:, :chunk].baddbmm_(asks[index], before.mT)
        kept = before if through is None else before * through[index]
        # What is written is divided by the decay up to its token: one factor, that of the whole chunk, serves all.
        torch.baddbmm(kept, content.mT, lasting[index], out=states[index + 1]).mul_(last[index])
    states = states.unflatten(1, shape[:2])
    return states[:-1], states[-1]


def _scan_backward(
    parts: _Parts, dstate_NBHVK: torch.Tensor, dcontent_NBHPV: torch.Tensor, dlast_BHVK: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """The gradients of the states after each chunk, of those before they fade through it, and of the first state.

    Args:
        parts: of the forward pass.
        dstate_NBHVK: what the outputs of each chunk ask of the state before it.
        dcontent_NBHPV: what they ask of the chunk's content; what the states after it ask is added.
        dlast_BHVK: gradient of the last state.
    """
    num_chunks, shape, chunk = len(dstate_NBHVK), dlast_BHVK.shape, parts.ask_NBHCK.shape[-2]
    dstates = dlast_BHVK.new_empty(num_chunks + 1, shape[0] * shape[1], *shape[2:])
    dstates[-1] = dlast_BHVK.flatten(0, 1)
    dscaled = torch.empty_like(dstates[1:])
    asks, lasting, last = (
        x.flatten(1, 2) for x in (parts.ask_NBHCK, parts.lasting_NBHPK, parts.decay_NBHCK[..., -1:, :])
    )
    through_NB111 = parts.sees.through_NB111
    through = None if through_NB111 is None else through_NB111.expand(-1, -1, shape[1], -1, -1).flatten(1, 2)
    # Views again: the caller's dcontent_NBHPV is added to.
    direct, dcontents = dstate_NBHVK.flatten(1, 2), dcontent_NBHPV.flatten(1, 2)
    for index in reversed(range(num_chunks)):
        dafter = torch.mul(dstates[index + 1], last[index], out=dscaled[index])
        dcontent = dcontents[index].baddbmm_(lasting[index], dafter.mT)
        dkept = dafter if through is None else dafter * through[index]
        torch.baddbmm(direct[index] + dkept, dcontent[:, :chunk].mT, asks[index], out=dstates[index])
    dstates = dstates.unflatten(1, shape[:2])
    return dstates[1:], dscaled.unflatten(1, shape[:2]), dstates[0]


def _cut(x_BSHK: torch.Tensor, chunk: int) -> torch.Tensor:
    """(B, S, H, K) as chunks, (N, B, H, C, K), a view."""
    return x_BSHK.unflatten(1, (-1, chunk)).permute(1, 0, 3, 2, 4)


def _joined(x_NBHCK: torch.Tensor) -> torch.Tensor:
    """Chunks in sequence again, (B, S, H, K)."""
    return x_NBHCK.permute(1, 0, 3, 2, 4).flatten(1, 2)


def _times(x: torch.Tensor, factor: torch.Tensor | None) -> torch.Tensor:
    return x if factor is None else x * factor


def _first_half(factor_NB1P1: torch.Tensor | None) -> torch.Tensor | None:
    return None if factor_NB1P1 is None else factor_NB1P1[..., : factor_NB1P1.shape[-2] // 2, :]
