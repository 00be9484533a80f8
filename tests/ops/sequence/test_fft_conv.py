"""Convolutions through the FFT, by themselves: sizes of transforms, blocks of channels, layouts, what follows."""

import pytest
import torch

from moe_hf.ops.sequence import fft_conv as module
from moe_hf.ops.sequence.fft_conv import (
    ConvInputs,
    channel_blocks,
    dot_with_past,
    fft_conv,
    fft_conv_backward,
    future_outputs,
    smooth_size,
    transform_size,
)
from moe_hf.ops.sequence.long_conv import reference_long_conv


def distance(one: torch.Tensor, other: torch.Tensor) -> float:
    """Relative Frobenius distance."""
    return float((one - other).norm() / other.norm())


def normal(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def test_transform_sizes_are_the_smallest_smooth_ones() -> None:
    def is_smooth(n: int) -> bool:
        for prime in (2, 3, 5):
            while n % prime == 0:
                n //= prime
        return n == 1

    for least in (1, 2, 3, 97, 1025, 4097, 16383, 20001):
        size = smooth_size(least)
        assert size >= least
        assert size % 2 == 0
        assert is_smooth(size)
        assert not any(is_smooth(n) for n in range(least, size) if n % 2 == 0)


def test_what_wraps_around_falls_on_outputs_that_nobody_asked_for() -> None:
    for num_inputs, first, stop in ((9, 0, 9), (30, 20, 30), (30, 30, 37)):
        points = transform_size(num_inputs, first, stop)
        x, h = normal(num_inputs), normal(stop, seed=1)
        circular = torch.fft.irfft(torch.fft.rfft(x, n=points) * torch.fft.rfft(h, n=points), n=points)
        for t in range(first, stop):
            expected = sum(float(x[i] * h[t - i]) for i in range(min(t + 1, num_inputs)))
            assert float(circular[t]) == pytest.approx(expected, abs=1e-4)


def test_blocks_hold_each_channel_once() -> None:
    blocks = list(channel_blocks(37, 4, 8192, torch.empty(0)))
    assert len(blocks) > 1
    assert [c for part in blocks for c in range(part.start, part.stop)] == list(range(37))


@pytest.mark.parametrize("length", [1, 8, 9, 30])
@pytest.mark.parametrize("by_channel", [False, True])
@pytest.mark.parametrize("past", [0, 6])
def test_values_and_layout_are_those_of_the_inputs(length: int, by_channel: bool, past: int) -> None:
    x, filter_LD, skip = normal(2, length, 5), normal(40, 5, seed=1), normal(5, seed=2)
    history = normal(2, past, 5, seed=3) if past else None
    given = x.mT.contiguous().mT if by_channel else x
    out = fft_conv(ConvInputs(given, filter_LD, skip, history))
    assert out.stride() == torch.empty_like(given).stride()
    assert distance(out, reference_long_conv(x, filter_LD, skip, history_BPD=history)) < 1e-5
    assert fft_conv_backward(out, ConvInputs(given, filter_LD, skip, history)).x_BSD.stride() == out.stride()


def test_several_blocks_give_what_one_does(monkeypatch: pytest.MonkeyPatch) -> None:
    x, filter_LD, dout = normal(2, 30, 19), normal(30, 19, seed=1), normal(2, 30, 19, seed=2)
    found = []
    for room in (2**20, 1):
        monkeypatch.setattr(module, "CPU_BLOCK_BYTES", room)
        inputs = ConvInputs(x, filter_LD)
        found.append([fft_conv(inputs), *fft_conv_backward(dout, inputs)[:2]])
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("length", [1, 256, 600])
def test_a_dot_product_in_pieces_is_the_last_output(length: int) -> None:
    x, filter_LD = normal(2, length, 3), normal(length, 3, seed=1)
    expected = (x.double() * filter_LD.flip(0).double()).sum(1)
    assert distance(dot_with_past(x, filter_LD.flip(0)).double(), expected) < 1e-6


@pytest.mark.parametrize(("past", "count", "lags"), [(1, 1, 2), (30, 7, 37), (30, 70, 100), (5, 9, 14)])
def test_future_outputs_are_what_follows_if_only_zeros_come(past: int, count: int, lags: int) -> None:
    x, filter_LD = normal(2, past, 3), normal(lags, 3, seed=1)
    expected = reference_long_conv(torch.zeros(2, count, 3), filter_LD, history_BPD=x)
    assert distance(future_outputs(x, filter_LD, count), expected) < 1e-5
