"""The two passes of the selective scan, block after block of time, in memory that does not grow with the length.

Shapes: B batch, S positions, D channels, N state size, K blocks of time. Inside a pass time comes first and channels
last: T positions of one block, b sequences and d channels of one part.
"""

import math
from collections import defaultdict
from collections.abc import Iterator
from typing import NamedTuple

import torch

from moe_hf.ops.dtypes import float32_or_more

# One state per block is kept for the backward pass.
BLOCK_LENGTHS = (8, 64)

_LOG2_E = math.log2(math.e)


class Limits(NamedTuple):
    """Numbers of state that one step updates at most, and numbers that one buffer holds."""

    step: int
    block: int


# Smaller ones would cost more calls, larger ones would not stay in the cache between two operations (Zen 4).
CPU_LIMITS = Limits(2**15, 400_000)
# Elsewhere a call costs more than what it does, up to this size.
OTHER_LIMITS = Limits(2**26, 2**26)

Starts = dict[int, list[tuple[int, int]]]


class ScanInputs(NamedTuple):
    """What a scan reads: the arguments of `selective_scan`, without what is padding."""

    u_BSD: torch.Tensor
    delta_BSD: torch.Tensor
    a_DN: torch.Tensor
    b_BSN: torch.Tensor
    c_BSN: torch.Tensor
    starts_BS: torch.Tensor | None


class ScanGradients(NamedTuple):
    """The gradients of u, delta, a, b, c and of the initial state, in the dtype of the computation."""

    du_BSD: torch.Tensor
    ddelta_BSD: torch.Tensor
    da_DN: torch.Tensor
    db_BSN: torch.Tensor
    dc_BSN: torch.Tensor
    dinitial_BDN: torch.Tensor


class _Block(NamedTuple):
    """One block of time of one part, time first."""

    u_Tbd: torch.Tensor
    delta_Tbd: torch.Tensor
    b_TbN: torch.Tensor
    c_TbN: torch.Tensor


class _Steps(NamedTuple):
    """A buffer (T, b, N, d) and the view of each of its positions."""

    whole: torch.Tensor
    each: tuple[torch.Tensor, ...]

    def first(self, count: int) -> "_Steps":
        return _Steps(self.whole[:count], self.each[:count])


def _limits(device: torch.device) -> Limits:
    return CPU_LIMITS if device.type == "cpu" else OTHER_LIMITS


def _channels_per_part(state_size: int, num_channels: int, device: torch.device) -> int:
    # Parts of equal size: a small one left over would cost as many calls as the others.
    num_parts = math.ceil(num_channels * state_size / _limits(device).step)
    return math.ceil(num_channels / num_parts)


def block_length(state_size: int, num_channels: int, device: torch.device) -> int:
    """Positions whose decays and states are worked out together."""
    shortest, longest = BLOCK_LENGTHS
    numbers = state_size * _channels_per_part(state_size, num_channels, device)
    return min(longest, max(shortest, _limits(device).block // numbers))


def num_blocks(length: int, state_size: int, num_channels: int, device: torch.device) -> int:
    """Blocks of time in a sequence, the last of which may be short."""
    per_block = block_length(state_size, num_channels, device)
    return (length + per_block - 1) // per_block


def room_for_blocks(length: int, state_size: int, num_channels: int, device: torch.device) -> int:
    """No fewer than the blocks of so many tokens.

    torch.export traces for any length only what is at least 2, since a size of 1 would be another program.
    """
    return length // block_length(state_size, num_channels, device) + 2


class _Part:
    """Sequences and channels that are scanned together, with the buffers for one block of time."""

    def __init__(self, inputs: ScanInputs, rows: slice, channels: slice, starts: Starts) -> None:
        self.inputs, self.rows, self.channels, self.starts = inputs, rows, channels, starts
        self.dtype = float32_or_more(inputs.u_BSD)
        num_channels, state_size = inputs.a_DN.shape
        self.length = block_length(state_size, num_channels, inputs.u_BSD.device)
        self.a_Nd = inputs.a_DN[channels].to(self.dtype).t().contiguous()
        # Powers of two cost well under half of what powers of e cost on CPUs.
        self.rate_Nd = self.a_Nd * _LOG2_E
        self.decay = self.buffer(self.length)
        self.states = self.buffer(self.length)

    def buffer(self, num_steps: int) -> _Steps:
        num_rows = len(range(*self.rows.indices(len(self.inputs.u_BSD))))
        whole = self.a_Nd.new_empty(num_steps, num_rows, *self.a_Nd.shape)
        # The views are made once per part, and not again at each position of each block.
        return _Steps(whole, whole.unbind())

    def time(self, block: int) -> slice:
        return slice(block * self.length, min(self.inputs.u_BSD.shape[1], (block + 1) * self.length))

    def time_first(self, x_BSd: torch.Tensor, time: slice) -> torch.Tensor:
        return x_BSd[self.rows, time].transpose(0, 1).to(self.dtype)

    def read(self, time: slice) -> _Block:
        u_BSD, delta_BSD, _, b_BSN, c_BSN, _ = self.inputs
        return _Block(
            self.time_first(u_BSD[..., self.channels], time),
            self.time_first(delta_BSD[..., self.channels], time),
            self.time_first(b_BSN, time),
            self.time_first(c_BSN, time),
        )

    def starts_in(self, block: int) -> list[tuple[int, int]]:
        """The (position in the block, sequence of this part) of each document that begins there."""
        first, last = self.rows.start, self.rows.stop
        return [(position, row - first) for position, row in self.starts[block] if first <= row < last]

    def scan(self, block: int, values: _Block, x_Tbd: torch.Tensor, before_bNd: torch.Tensor) -> tuple[_Steps, _Steps]:
        """The decays and the states of a block, from the state before it; both live until the next call."""
        num_steps = len(x_Tbd)
        decay, states = self.decay.first(num_steps), self.states.first(num_steps)
        torch.mul(values.delta_Tbd[:, :, None], self.rate_Nd, out=decay.whole)
        torch.exp2(decay.whole, out=decay.whole)
        begun: dict[int, list[int]] = defaultdict(list)
        for position, row in self.starts_in(block):
            # The backward pass multiplies by the same decays, so that no gradient goes back over the start either.
            decay.whole[position, row] = 0
            begun[position].append(row)
        # What each position adds, which the loop turns into the states in place.
        torch.mul(x_Tbd[:, :, None], values.b_TbN[..., None], out=states.whole)
        for position, (state_bNd, decay_bNd) in enumerate(zip(states.each, decay.each, strict=True)):
            if position in begun:
                # Zero times a state that is not finite would not be zero.
                before_bNd = before_bNd.clone()
                before_bNd[begun[position]] = 0
            state_bNd.addcmul_(decay_bNd, before_bNd)
            before_bNd = state_bNd
        return decay, states


def _parts(inputs: ScanInputs) -> Iterator[_Part]:
    num_channels, state_size = inputs.a_DN.shape
    device = inputs.u_BSD.device
    channels_per_part = _channels_per_part(state_size, num_channels, device)
    per_block = block_length(state_size, num_channels, device)
    rows_per_part = max(1, _limits(device).block // (per_block * state_size * channels_per_part))
    starts = _starts_by_block(inputs.starts_BS, per_block)
    for row in range(0, len(inputs.u_BSD), rows_per_part):
        for channel in range(0, num_channels, channels_per_part):
            rows, channels = slice(row, row + rows_per_part), slice(channel, channel + channels_per_part)
            yield _Part(inputs, rows, channels, starts)


def _starts_by_block(starts_BS: torch.Tensor | None, per_block: int) -> Starts:
    """Per block the (position in the block, sequence) of each document that begins there."""
    starts: Starts = defaultdict(list)
    if starts_BS is not None:
        # Read back from the device once for all parts and blocks.
        for row, position in starts_BS.nonzero().tolist():
            starts[position // per_block].append((position % per_block, row))
    return starts


def _inner_layout(state_BDN: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """A copy of states as (B, N, D)."""
    return state_BDN.to(dtype).transpose(1, 2).clone(memory_format=torch.contiguous_format)


def _sum_over_states(weight_TbN: torch.Tensor, states_TbNd: torch.Tensor) -> torch.Tensor:
    """The weighted sum over N, as matrix products: (T, b, d)."""
    num_steps, rows, state_size, channels = states_TbNd.shape
    weight = weight_TbN.reshape(num_steps * rows, 1, state_size)
    return torch.bmm(weight, states_TbNd.view(-1, state_size, channels)).view(num_steps, rows, channels)


def forward_pass(
    inputs: ScanInputs, initial_BDN: torch.Tensor | None, keeps: bool
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """The outputs (B, S, D), the last state (B, D, N), and the state before each block, (K, B, N, D) or empty."""
    batch, length, num_channels = inputs.u_BSD.shape
    state_size, dtype = inputs.a_DN.shape[1], float32_or_more(inputs.u_BSD)
    blocks = num_blocks(length, state_size, num_channels, inputs.u_BSD.device)
    y_BSD = torch.empty_like(inputs.u_BSD, memory_format=torch.contiguous_format)
    if initial_BDN is None:
        state_BND = y_BSD.new_zeros(batch, state_size, num_channels, dtype=dtype)
    else:
        state_BND = _inner_layout(initial_BDN, dtype)
    room = room_for_blocks(length, state_size, num_channels, inputs.u_BSD.device) if keeps else 0
    kept_KBND = state_BND.new_empty(room, *state_BND.shape)
    kept_KBND[blocks:].zero_()
    for part in _parts(inputs):
        state_bNd = state_BND[part.rows, :, part.channels].contiguous()
        for block in range(blocks):
            if keeps:
                kept_KBND[block, part.rows, :, part.channels] = state_bNd
            time = part.time(block)
            values = part.read(time)
            _, states = part.scan(block, values, values.delta_Tbd * values.u_Tbd, state_bNd)
            # The next block writes over the buffer.
            state_bNd = states.each[-1].clone()
            y_Tbd = _sum_over_states(values.c_TbN, states.whole)
            y_BSD[part.rows, time, part.channels] = y_Tbd.transpose(0, 1)
        state_BND[part.rows, :, part.channels] = state_bNd
    return y_BSD, state_BND.transpose(1, 2).contiguous(), kept_KBND


def backward_pass(
    inputs: ScanInputs, kept_KBND: torch.Tensor, dy_BSD: torch.Tensor, dfinal_BDN: torch.Tensor | None
) -> ScanGradients:
    """The gradients, from those of the outputs and of the last state.

    The states within a block are worked out again from the one kept before it: time and memory are linear in S.
    """
    dtype, (num_channels, state_size) = kept_KBND.dtype, inputs.a_DN.shape
    blocks = num_blocks(dy_BSD.shape[1], state_size, num_channels, dy_BSD.device)
    du_BSD, ddelta_BSD, db_BSN, dc_BSN = (
        x.new_zeros(x.shape, dtype=dtype) for x in (inputs.u_BSD, inputs.delta_BSD, inputs.b_BSN, inputs.c_BSN)
    )
    da_ND = kept_KBND.new_zeros(kept_KBND.shape[2:])
    # What reaches a state from the positions after it.
    if dfinal_BDN is None:
        dstate_BND = kept_KBND.new_zeros(kept_KBND.shape[1:])
    else:
        dstate_BND = _inner_layout(dfinal_BDN, dtype)
    for part in _parts(inputs):
        rows, channels = part.rows, part.channels
        dstates = part.buffer(part.length)
        dstate_bNd = dstate_BND[rows, :, channels].contiguous()
        da_Nd = da_ND[:, channels]
        for block in reversed(range(blocks)):
            time = part.time(block)
            before_bNd = kept_KBND[block, rows, :, channels].contiguous()
            dy_Tbd = part.time_first(dy_BSD[..., channels], time)
            gradients = _block_backward(part, block, before_bNd, dy_Tbd, dstate_bNd, dstates)
            for whole, gradient in zip((du_BSD, ddelta_BSD), gradients.du_and_ddelta, strict=True):
                whole[rows, time, channels] = gradient.transpose(0, 1)
            # All channels share b and c, and all rows share a: each part adds its own.
            db_BSN[rows, time] += gradients.db_TbN.transpose(0, 1)
            dc_BSN[rows, time] += gradients.dc_TbN.transpose(0, 1)
            da_Nd += gradients.da_Nd
            dstate_bNd = gradients.dbefore_bNd
        dstate_BND[rows, :, channels] = dstate_bNd
    return ScanGradients(
        du_BSD, ddelta_BSD, da_ND.t().contiguous(), db_BSN, dc_BSN, dstate_BND.transpose(1, 2).contiguous()
    )


class _BlockGradients(NamedTuple):
    du_and_ddelta: tuple[torch.Tensor, torch.Tensor]
    da_Nd: torch.Tensor
    db_TbN: torch.Tensor
    dc_TbN: torch.Tensor
    dbefore_bNd: torch.Tensor


def _block_backward(
    part: _Part,
    block: int,
    before_bNd: torch.Tensor,
    dy_Tbd: torch.Tensor,
    dlast_bNd: torch.Tensor,
    buffer: _Steps,
) -> _BlockGradients:
    """The gradients of one block; `dlast_bNd` is what reaches its last state from later blocks."""
    values = part.read(part.time(block))
    x_Tbd = values.delta_Tbd * values.u_Tbd
    decay, states = part.scan(block, values, x_Tbd, before_bNd)
    dstates = buffer.first(len(x_Tbd))

    # A product and a sum: matrix products of one column each would take eight times as long.
    # `dstates` is scratch memory here; the next product fills it for good.
    dc_TbN = torch.mul(states.whole, dy_Tbd[:, :, None], out=dstates.whole).sum(dim=-1)

    torch.mul(dy_Tbd[:, :, None], values.c_TbN[..., None], out=dstates.whole)
    later = dstates.each[-1].add_(dlast_bNd)
    for now, decay_bNd in zip(reversed(dstates.each[:-1]), reversed(decay.each[1:]), strict=True):
        now.addcmul_(decay_bNd, later)
        later = now
    dx_Tbd = _sum_over_states(values.b_TbN, dstates.whole)

    # From here on the buffers are used up: each is written over once it was read for the last time.
    dprevious = decay.whole.mul_(dstates.whole)
    dbefore_bNd = dprevious[0].clone()
    db_TbN = dstates.whole.mul_(x_Tbd[:, :, None]).sum(dim=-1)

    # The gradient of the exponent is that of the previous state times that state.
    dprevious[1:].mul_(states.whole[:-1])
    dprevious[0].mul_(before_bNd)
    for position, row in part.starts_in(block):
        # It is already, unless the state before was not finite.
        dprevious[position, row] = 0
    dexponent = dprevious
    da_Nd = torch.mul(dexponent, values.delta_Tbd[:, :, None], out=dstates.whole).sum(dim=(0, 1))
    ddelta_Tbd = dexponent.mul_(part.a_Nd).sum(dim=2)
    du_Tbd = dx_Tbd * values.delta_Tbd
    return _BlockGradients((du_Tbd, ddelta_Tbd.addcmul_(dx_Tbd, values.u_Tbd)), da_Nd, db_TbN, dc_TbN, dbefore_bNd)
