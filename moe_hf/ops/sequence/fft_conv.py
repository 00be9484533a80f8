"""Causal convolution of full rows with long filters through the FFT, block after block of channels.

Shapes: B batch, P earlier positions, S positions of this call, N = P + S, L lags, D channels, C channels of one block,
F points of the transform.
"""

from collections.abc import Iterator
from typing import NamedTuple

import torch

from moe_hf.ops.dtypes import float32_or_more

# What one block's transforms may take: it should fit into a core's cache, where the transforms are twice as fast.
CPU_BLOCK_BYTES = 2**20
GPU_BLOCK_BYTES = 2**28
# So few new positions are cheaper as dot products with all that came before.
DIRECT_POSITIONS = 8
# A product longer than this is summed piece by piece, so that it never leaves the cache.
DOT_PIECE = 256
# Matrices smaller than this are transposed as a batch.
FEW_NUMBERS = 2**14


class ConvInputs(NamedTuple):
    """What is convolved with what, or the gradients of that: inputs, filter, weight of the input itself, inputs before.

    The last two may be absent, and their gradients then are.
    """

    x_BSD: torch.Tensor
    filter_LD: torch.Tensor
    skip_D: torch.Tensor | None = None
    history_BPD: torch.Tensor | None = None


def smooth_size(least: int) -> int:
    """The smallest even number of the form 2^a 3^b 5^c that is at least `least`: a size at which FFTs are fast.

    >>> [smooth_size(n) for n in (1, 7, 101, 16383)]
    [2, 8, 108, 16384]
    """
    best = 2 ** max(1, (least - 1).bit_length())
    five = 1
    while five < best:
        odd = five
        while odd < best:
            # The smallest power of two that lifts it to `least`.
            twos = max(1, (-(-least // odd) - 1).bit_length())
            best = min(best, odd << twos)
            odd *= 3
        five *= 5
    return best


def transform_size(num_inputs: int, first: int, stop: int) -> int:
    """Points of a circular convolution in which outputs `first` to `stop` of the linear one survive.

    What wraps around may fall on outputs before `first`, which nobody asked for.
    """
    return smooth_size(max(stop, num_inputs + stop - 1 - first))


def channel_blocks(num_channels: int, rows: int, points: int, like: torch.Tensor) -> Iterator[slice]:
    """Slices of the channels whose transforms fit into fast memory together."""
    budget = CPU_BLOCK_BYTES if like.device.type == "cpu" else GPU_BLOCK_BYTES
    size = max(1, budget // (rows * points * float32_or_more(like).itemsize))
    # More than a cache line of channels brings nothing; fewer than that many would read each line several times.
    size = min(num_channels, max(size, 8))
    for start in range(0, num_channels, size):
        yield slice(start, min(start + size, num_channels))


def dot_with_past(past_BND: torch.Tensor, reversed_filter_ND: torch.Tensor) -> torch.Tensor:
    """The convolution's value at the last of N positions, (B, D), by a plain sum over all of them.

    Args:
        past_BND: the inputs, the last position included.
        reversed_filter_ND: the filter's first N lags, the largest lag first.
    """
    dtype = reversed_filter_ND.dtype
    length = past_BND.shape[1]
    total_BD = (past_BND[:, :DOT_PIECE].to(dtype) * reversed_filter_ND[:DOT_PIECE]).sum(1)
    for start in range(DOT_PIECE, length, DOT_PIECE):
        piece = slice(start, start + DOT_PIECE)
        total_BD = total_BD + (past_BND[:, piece].to(dtype) * reversed_filter_ND[piece]).sum(1)
    return total_BD


def fft_conv(inputs: ConvInputs) -> torch.Tensor:
    """`sum over lags of filter[lag] * x[t - lag] + skip * x[t]` at the positions of `x_BSD`, in its dtype; no autograd.

    Lags that the filter lacks count as 0. Reads `history_BPD`, (B, P, D), as the inputs before `x_BSD`. Fastest where
    the positions of a channel lie side by side in memory; the output is laid out like `x_BSD`.
    """
    x_BSD, skip_D = inputs.x_BSD, inputs.skip_D
    batch, length, channels = x_BSD.shape
    if length <= DIRECT_POSITIONS:
        return _direct(inputs)
    rows = _Rows.of(inputs)
    out_BSD = torch.empty_like(x_BSD)
    out_BDS = _room_by_channel(out_BSD)
    for part in channel_blocks(channels, batch, rows.points, x_BSD):
        spectrum_BCF = rows.input_spectrum(part)
        spectrum_BCF *= rows.filter_spectrum(part)
        y_BCS = torch.fft.irfft(spectrum_BCF, n=rows.points)[..., rows.past : rows.stop]
        if skip_D is not None:
            y_BCS = y_BCS.addcmul(rows.x_BDS[:, part].to(rows.dtype), skip_D[part, None].to(rows.dtype))
        out_BDS[:, part] = y_BCS
    return _by_position(out_BDS, out_BSD)


def fft_conv_backward(dout_BSD: torch.Tensor, inputs: ConvInputs) -> ConvInputs:
    """The gradients of `fft_conv`; recomputes the transforms, so that nothing large is kept between the passes."""
    x_BSD, filter_LD, skip_D, history_BPD = inputs
    batch, _, channels = x_BSD.shape
    rows = _Rows.of(inputs)
    dout_BDS, lags = by_channel(dout_BSD), min(rows.stop, len(filter_LD))
    dx_BSD, dfilter_LD = torch.empty_like(x_BSD), torch.zeros_like(filter_LD)
    dhistory_BPD = None if history_BPD is None else torch.empty_like(history_BPD)
    dx_BDS = _room_by_channel(dx_BSD)
    dfilter_DL = filter_LD.new_empty(channels, lags)
    # Two spectra of all rows are alive at once here, that of the inputs and that of the outputs' gradients.
    for part in channel_blocks(channels, 2 * batch, rows.points, x_BSD):
        dout_BCF = torch.fft.rfft(_padded(dout_BDS[:, part], rows.past, rows.points, rows.dtype))
        # The gradient of a convolution is a correlation: the other factor's spectrum, conjugated.
        dfilter_CF = (rows.input_spectrum(part).conj() * dout_BCF).sum(0)
        dfilter_DL[part] = torch.fft.irfft(dfilter_CF, n=rows.points)[:, :lags]
        dout_BCF *= rows.filter_spectrum(part).conj()
        dinput_BCN = torch.fft.irfft(dout_BCF, n=rows.points)[..., : rows.stop]
        if dhistory_BPD is not None:
            dhistory_BPD[..., part] = dinput_BCN[..., : rows.past].transpose(1, 2)
        dx_BCS = dinput_BCN[..., rows.past :]
        if skip_D is not None:
            dx_BCS = dx_BCS.addcmul(dout_BDS[:, part].to(rows.dtype), skip_D[part, None].to(rows.dtype))
        dx_BDS[:, part] = dx_BCS
    # Lags beyond all positions took no part.
    dfilter_LD[:lags] = dfilter_DL.t()
    dskip_D = None
    if skip_D is not None:
        dskip_D = (dout_BDS.to(rows.dtype) * rows.x_BDS).sum((0, 2)).to(skip_D.dtype)
    return ConvInputs(_by_position(dx_BDS, dx_BSD), dfilter_LD, dskip_D, dhistory_BPD)


def future_outputs(history_BPD: torch.Tensor, filter_LD: torch.Tensor, count: int) -> torch.Tensor:
    """What P earlier inputs contribute to the next `count` outputs, (B, count, D), in the dtype of computing."""
    batch, past, channels = history_BPD.shape
    dtype, stop = float32_or_more(history_BPD), past + count
    points = transform_size(past, past, stop)
    history_BDP, filter_DL = by_channel(history_BPD), by_channel(filter_LD[None, :stop])[0]
    out_BED = history_BPD.new_empty(batch, count, channels, dtype=dtype)
    for part in channel_blocks(channels, batch, points, history_BPD):
        spectrum_BCF = torch.fft.rfft(_padded(history_BDP[:, part], 0, points, dtype))
        spectrum_BCF *= torch.fft.rfft(_padded(filter_DL[part], 0, points, dtype))
        out_BED[..., part] = torch.fft.irfft(spectrum_BCF, n=points)[..., past:stop].transpose(1, 2)
    return out_BED


def by_channel(x_BSD: torch.Tensor) -> torch.Tensor:
    """(B, D, S) with the positions of a channel side by side in memory: `x_BSD` itself where it lies so already."""
    if x_BSD.stride(1) == 1:
        return x_BSD.transpose(1, 2)
    batch, length, channels = x_BSD.shape
    if batch * FEW_NUMBERS > x_BSD.numel():
        return x_BSD.transpose(1, 2).contiguous()
    # PyTorch transposes one whole matrix several times faster than a batch of them.
    x_BDS = x_BSD.new_empty(batch, channels, length)
    for row_DS, row_SD in zip(x_BDS, x_BSD, strict=True):
        row_DS.copy_(row_SD.t())
    return x_BDS


def _room_by_channel(out_BSD: torch.Tensor) -> torch.Tensor:
    """`out_BSD` as (B, D, S) where it lies by channel; else room for its values, for `_by_position`."""
    if out_BSD.stride(1) == 1:
        return out_BSD.transpose(1, 2)
    return out_BSD.new_empty(out_BSD.shape[0], out_BSD.shape[2], out_BSD.shape[1])


def _by_position(out_BDS: torch.Tensor, out_BSD: torch.Tensor) -> torch.Tensor:
    """`out_BSD` with the values of `out_BDS`, which `_room_by_channel` gave."""
    if out_BSD.stride(1) == 1:
        return out_BSD
    if out_BSD.shape[0] * FEW_NUMBERS > out_BSD.numel():
        return out_BSD.copy_(out_BDS.transpose(1, 2))
    for row_SD, row_DS in zip(out_BSD, out_BDS, strict=True):
        row_SD.copy_(row_DS.t())
    return out_BSD


class _Rows(NamedTuple):
    """What both passes transform: inputs and filter, positions of a channel side by side."""

    x_BDS: torch.Tensor
    history_BDP: torch.Tensor | None
    filter_DL: torch.Tensor
    past: int
    stop: int
    points: int
    dtype: torch.dtype

    @classmethod
    def of(cls, inputs: ConvInputs) -> "_Rows":
        x_BSD, filter_LD, _, history_BPD = inputs
        past = 0 if history_BPD is None else history_BPD.shape[1]
        stop = past + x_BSD.shape[1]
        return cls(
            by_channel(x_BSD),
            None if history_BPD is None else by_channel(history_BPD),
            by_channel(filter_LD[None, :stop])[0],
            past,
            stop,
            transform_size(stop, past, stop),
            float32_or_more(x_BSD),
        )

    def input_spectrum(self, part: slice) -> torch.Tensor:
        padded_BCN = _padded(self.x_BDS[:, part], self.past, self.points, self.dtype)
        if self.history_BDP is not None:
            padded_BCN[..., : self.past] = self.history_BDP[:, part]
        return torch.fft.rfft(padded_BCN)

    def filter_spectrum(self, part: slice) -> torch.Tensor:
        return torch.fft.rfft(_padded(self.filter_DL[part], 0, self.points, self.dtype))


def _direct(inputs: ConvInputs) -> torch.Tensor:
    x_BSD, filter_LD, skip_D, history_BPD = inputs
    dtype = float32_or_more(x_BSD)
    window_BND = x_BSD if history_BPD is None else torch.cat([history_BPD.to(x_BSD.dtype), x_BSD], dim=1)
    reversed_LD = filter_LD[: window_BND.shape[1]].flip(0).to(dtype)
    lags, past = len(reversed_LD), window_BND.shape[1] - x_BSD.shape[1]
    out = []
    for stop in range(past + 1, past + x_BSD.shape[1] + 1):
        used = min(stop, lags)
        out.append(dot_with_past(window_BND[:, stop - used : stop], reversed_LD[lags - used :]))
    out_BSD = torch.stack(out, dim=1)
    if skip_D is not None:
        out_BSD = out_BSD.addcmul(x_BSD.to(dtype), skip_D.to(dtype))
    # In the strides of the input: a compiler was told so, and the longer way gives the same.
    return torch.empty_like(x_BSD).copy_(out_BSD)


def _padded(values: torch.Tensor, start: int, points: int, dtype: torch.dtype) -> torch.Tensor:
    """`values` from `start` on in rows of `points` zeros, as the transform wants them: along contiguous rows."""
    rows = values.new_zeros(*values.shape[:-1], points, dtype=dtype)
    rows[..., start : start + values.shape[-1]] = values
    return rows
