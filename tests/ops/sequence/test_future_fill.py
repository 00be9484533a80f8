"""Decoding in epochs against the convolution of the whole sequence."""

import pytest
import torch

from moe_hf.base.errors import ConfigError
from moe_hf.ops.sequence import future_fill
from moe_hf.ops.sequence.future_fill import Epoch, epoch_length, future_fill_step
from moe_hf.ops.sequence.long_conv import long_conv


@pytest.fixture
def short_epochs(monkeypatch: pytest.MonkeyPatch) -> None:
    """Several epochs within few tokens."""
    monkeypatch.setattr(future_fill, "SHORTEST_EPOCH", 4)
    monkeypatch.setattr(future_fill, "EPOCH_FACTOR", 0.5)


def make(batch: int, length: int, width: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return (
        torch.randn(batch, length, width, generator=generator),
        torch.randn(length, width, generator=generator),
        torch.randn(width, generator=generator),
    )


def decode(
    x: torch.Tensor, filter_LD: torch.Tensor, skip: torch.Tensor, first: int = 0, epoch: Epoch | None = None
) -> tuple[torch.Tensor, Epoch]:
    out = []
    for total in range(first + 1, x.shape[1] + 1):
        y, epoch = future_fill_step(x[:, :total], lambda lags: filter_LD[:lags], len(filter_LD), skip, epoch=epoch)
        out.append(y)
    return torch.stack(out, dim=1), epoch


def distance(one: torch.Tensor, other: torch.Tensor) -> float:
    return float((one - other).norm() / other.norm())


class TestEqualsTheWholeSequence:
    @pytest.mark.parametrize("first", [0, 1, 30])
    def test_token_by_token_and_after_a_prompt(self, short_epochs, first: int) -> None:
        x, filter_LD, skip = make(3, 70, 5)
        out, epoch = decode(x, filter_LD, skip, first)
        assert 0 < epoch.start < 69
        assert distance(out, long_conv(x, filter_LD, skip)[:, first:]) < 1e-5

    def test_across_the_change_from_dot_products_to_epochs(self) -> None:
        x, filter_LD, skip = make(2, 600, 3)
        out, epoch = decode(x, filter_LD, skip)
        assert epoch.start > 256
        assert distance(out, long_conv(x, filter_LD, skip)) < 1e-5

    def test_up_to_256_inputs_there_is_no_transform(self) -> None:
        x, filter_LD, skip = make(1, 256, 2)
        _, epoch = decode(x, filter_LD, skip, first=255)
        assert epoch.start == 0
        assert epoch.future_BED is None

    def test_rows_of_different_lengths(self, short_epochs) -> None:
        x, filter_LD, skip = make(2, 50, 3)
        x[1, :17] = 0
        out, _ = decode(x, filter_LD, skip, first=20)
        alone, _ = decode(x[1:, 17:], filter_LD, skip, first=3)
        torch.testing.assert_close(out[1:], alone, atol=1e-5, rtol=1e-5)

    def test_half_precision(self, short_epochs) -> None:
        x, filter_LD, skip = (tensor.bfloat16() for tensor in make(2, 40, 3))
        out, _ = decode(x, filter_LD, skip)
        assert out.dtype == torch.bfloat16
        assert distance(out.float(), long_conv(x.float(), filter_LD.float(), skip.float())) < 5e-3

    def test_double_precision(self, short_epochs) -> None:
        x, filter_LD, skip = (tensor.double() for tensor in make(2, 40, 3))
        assert distance(decode(x, filter_LD, skip)[0], long_conv(x, filter_LD, skip)) < 1e-13


class TestAnEpochFollowsItsInputs:
    def test_when_inputs_are_cut_off_and_others_come(self, short_epochs) -> None:
        x, filter_LD, skip = make(2, 60, 3)
        _, epoch = decode(x[:, :50], filter_LD, skip)
        # Both within the epoch and before its start.
        for kept in (49, 30):
            again = torch.cat([x[:, :kept], x[:, kept:] + 1], dim=1)
            out, _ = decode(again, filter_LD, skip, first=kept, epoch=epoch)
            assert distance(out, long_conv(again, filter_LD, skip)[:, kept:]) < 1e-5

    def test_when_several_inputs_come_at_once(self, short_epochs) -> None:
        x, filter_LD, skip = make(2, 60, 3)
        _, epoch = decode(x[:, :40], filter_LD, skip)
        for jump in (41, 43, 55):
            out, _ = decode(x, filter_LD, skip, first=jump, epoch=epoch)
            assert distance(out, long_conv(x, filter_LD, skip)[:, jump:]) < 1e-5

    def test_when_rows_are_chosen(self, short_epochs) -> None:
        x, filter_LD, skip = make(3, 60, 3)
        _, epoch = decode(x[:, :40], filter_LD, skip)
        chosen = torch.tensor([2, 0, 0])
        chosen_epoch = epoch._replace(future_BED=epoch.future_BED[chosen])
        out, _ = decode(x[chosen], filter_LD, skip, first=40, epoch=chosen_epoch)
        assert distance(out, long_conv(x[chosen], filter_LD, skip)[:, 40:]) < 1e-5

    def test_the_filter_is_asked_for_once_per_epoch(self, short_epochs) -> None:
        x, filter_LD, _ = make(2, 40, 3)
        asked, epoch, starts = [], None, set()

        def filter_of(lags: int) -> torch.Tensor:
            asked.append(lags)
            return filter_LD[:lags]

        for total in range(1, 41):
            _, epoch = future_fill_step(x[:, :total], filter_of, 40, epoch=epoch)
            starts.add(epoch.start)
        assert len(asked) == len(starts) < 20
        assert max(asked) <= 40

    def test_nothing_given_is_written_to(self, short_epochs) -> None:
        x, filter_LD, skip = make(2, 30, 3)
        copies = [tensor.clone() for tensor in (x, filter_LD, skip)]
        _, epoch = decode(x[:, :20], filter_LD, skip)
        future = epoch.future_BED.clone()
        decode(x, filter_LD, skip, first=20, epoch=epoch)
        assert epoch.future_BED.equal(future)
        assert all(tensor.equal(copy) for tensor, copy in zip((x, filter_LD, skip), copies, strict=True))


class TestLengths:
    def test_more_inputs_than_lags_are_an_error(self) -> None:
        x, filter_LD, _ = make(1, 9, 2)
        with pytest.raises(ConfigError, match=r"9 tokens is longer than the filter, which has 8"):
            future_fill_step(x, lambda lags: filter_LD[:lags], 8)

    def test_the_last_lag_can_be_reached(self, short_epochs) -> None:
        x, filter_LD, skip = make(1, 33, 2)
        out, epoch = decode(x, filter_LD, skip)
        assert epoch.start + epoch.length <= 33
        assert distance(out, long_conv(x, filter_LD, skip)) < 1e-5

    def test_epochs_grow_like_the_root(self) -> None:
        assert epoch_length(255) == 256
        assert 1.9 < epoch_length(4 * 8192) / epoch_length(8192) < 2.3
