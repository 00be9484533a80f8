"""The long convolution against its direct sum: values, gradients, padding, packing, continuation."""

from itertools import pairwise

import pytest
import torch

from moe_hf.base.errors import ConfigError
from moe_hf.ops.sequence.fft_conv import ConvInputs, fft_conv
from moe_hf.ops.sequence.long_conv import extended_history, long_conv, reference_long_conv

LIMIT = 1e-5


def distance(one: torch.Tensor, other: torch.Tensor) -> float:
    """Relative Frobenius distance."""
    one, other = one.detach(), other.detach()
    return float((one - other).norm() / other.norm().clamp_min(1e-12))


def make(batch: int, length: int, past: int, lags: int, width: int, seed: int = 0, dtype=torch.float32) -> dict:
    generator = torch.Generator().manual_seed(seed)

    def draw(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator, dtype=dtype).requires_grad_()

    return {
        "x_BSD": draw(batch, length, width),
        "filter_LD": draw(lags, width),
        "skip_D": draw(width),
        "history_BPD": draw(batch, past, width) if past else None,
    }


def flags(batch: int, length: int, share: float, seed: int) -> torch.Tensor:
    return torch.rand(batch, length, generator=torch.Generator().manual_seed(seed)) < share


def gradients(function, inputs: dict, **layout) -> tuple[torch.Tensor, list[torch.Tensor]]:
    out = function(**inputs, **layout)
    weight = torch.randn(out.shape, generator=torch.Generator().manual_seed(9), dtype=out.dtype)
    tensors = [tensor for tensor in inputs.values() if tensor is not None]
    found = torch.autograd.grad((out * weight).sum(), tensors, allow_unused=True)
    return out, [torch.zeros_like(t) if g is None else g for t, g in zip(tensors, found, strict=True)]


class TestEqualsTheDirectSum:
    @pytest.mark.parametrize("length", [1, 2, 8, 9, 63, 64, 65, 130])
    @pytest.mark.parametrize("past", [0, 1, 37])
    def test_in_value_and_gradient_at_any_length(self, length: int, past: int) -> None:
        inputs = make(2, length, past, lags=170, width=3)
        out, grads = gradients(long_conv, inputs)
        expected, expected_grads = gradients(reference_long_conv, inputs)
        assert distance(out, expected) < LIMIT
        for grad, expected_grad in zip(grads, expected_grads, strict=True):
            assert distance(grad, expected_grad) < LIMIT

    @pytest.mark.parametrize("length", [3, 40])
    @pytest.mark.parametrize("past", [0, 11])
    @pytest.mark.parametrize(("padded", "packed"), [(True, False), (False, True), (True, True)])
    def test_under_padding_and_packing(self, length: int, past: int, padded: bool, packed: bool) -> None:
        inputs = make(3, length, past, lags=64, width=5)
        layout = {
            "mask_BS": flags(3, length, 0.6, seed=1).long() if padded else None,
            "starts_BS": flags(3, length, 0.2, seed=2) if packed else None,
        }
        out, grads = gradients(long_conv, inputs, **layout)
        expected, expected_grads = gradients(reference_long_conv, inputs, **layout)
        assert distance(out, expected) < LIMIT
        for grad, expected_grad in zip(grads, expected_grads, strict=True):
            assert distance(grad, expected_grad) < LIMIT

    def test_with_the_positions_of_a_channel_side_by_side(self) -> None:
        inputs = make(2, 70, 5, lags=80, width=6)
        by_channel = {
            **inputs,
            "x_BSD": inputs["x_BSD"].detach().transpose(1, 2).contiguous().transpose(1, 2).requires_grad_(),
            "filter_LD": inputs["filter_LD"].detach().t().contiguous().t().requires_grad_(),
        }
        out, grads = gradients(long_conv, by_channel)
        expected, expected_grads = gradients(long_conv, inputs)
        assert out.stride() == by_channel["x_BSD"].stride()
        assert distance(out, expected) < 1e-6
        assert all(distance(one, other) < 1e-6 for one, other in zip(grads, expected_grads, strict=True))

    def test_with_matrices_large_enough_for_several_blocks_of_channels(self) -> None:
        inputs = make(2, 2100, 300, lags=2400, width=40)
        with torch.no_grad():
            out = long_conv(**inputs)
            double = {name: tensor.double() for name, tensor in inputs.items()}
            points = 2400 + 2100
            window = torch.cat([double["history_BPD"], double["x_BSD"]], dim=1)
            spectrum = torch.fft.rfft(window, n=points, dim=1) * torch.fft.rfft(double["filter_LD"], n=points, dim=0)
            expected = torch.fft.irfft(spectrum, n=points, dim=1)[:, 300:2400] + double["skip_D"] * double["x_BSD"]
        assert distance(out.double(), expected) < 2e-6

    @pytest.mark.parametrize("past", [0, 4])
    def test_gradients_pass_gradcheck_in_double_precision(self, past: int) -> None:
        inputs = make(2, 10, past, lags=16, width=2, dtype=torch.float64)
        starts, mask = flags(2, 10, 0.2, seed=3), flags(2, 10, 0.8, seed=4)

        def run(x, filter_LD, skip, history=None):
            return long_conv(x, filter_LD, skip, history_BPD=history, mask_BS=mask, starts_BS=starts)

        assert torch.autograd.gradcheck(run, tuple(tensor for tensor in inputs.values() if tensor is not None))

    def test_a_filter_in_which_only_some_need_gradients(self) -> None:
        inputs = make(1, 20, 0, lags=20, width=2)
        frozen = {name: None if value is None else value.detach() for name, value in inputs.items()}
        frozen["x_BSD"].requires_grad_()
        long_conv(**frozen).sum().backward()
        assert frozen["filter_LD"].grad is None
        assert distance(frozen["x_BSD"].grad, gradients_of_sum(inputs)) < 1e-6

    def test_half_precision_computes_in_single(self) -> None:
        inputs = {k: None if v is None else v.detach().bfloat16() for k, v in make(2, 50, 6, 60, 4).items()}
        out = long_conv(**inputs)
        assert out.dtype == torch.bfloat16
        expected = reference_long_conv(**{name: tensor.float() for name, tensor in inputs.items()})
        assert distance(out.float(), expected) < 4e-3

    def test_nothing_given_is_written_to(self) -> None:
        inputs = make(2, 30, 8, 50, 3)
        layout = {"mask_BS": flags(2, 30, 0.7, seed=1).long(), "starts_BS": flags(2, 30, 0.2, seed=2)}
        before = {name: tensor.clone() for name, tensor in {**inputs, **layout}.items()}
        gradients(long_conv, inputs, **layout)
        extended_history(inputs["x_BSD"], history_BPD=inputs["history_BPD"], **layout)
        assert all(before[name].equal(tensor) for name, tensor in {**inputs, **layout}.items())


def gradients_of_sum(inputs: dict) -> torch.Tensor:
    return torch.autograd.grad(reference_long_conv(**inputs).sum(), inputs["x_BSD"])[0]


class TestNothingLeaks:
    def test_packed_documents_equal_separate_ones(self) -> None:
        inputs = make(1, 47, 0, lags=47, width=3)
        bounds = [0, 5, 6, 30, 47]
        starts = torch.zeros(1, 47, dtype=torch.bool)
        starts[0, bounds[:-1]] = True
        out = long_conv(inputs["x_BSD"], inputs["filter_LD"], starts_BS=starts)
        for first, last in pairwise(bounds):
            alone = long_conv(inputs["x_BSD"][:, first:last], inputs["filter_LD"])
            torch.testing.assert_close(out[:, first:last], alone, atol=1e-5, rtol=1e-5)

    @pytest.mark.parametrize("side", ["left", "right", "inner"])
    def test_what_stands_at_padding_is_never_seen(self, side: str) -> None:
        inputs = make(2, 24, 7, lags=40, width=3)
        mask = torch.ones(2, 24, dtype=torch.long)
        mask[1, {"left": slice(0, 9), "right": slice(15, 24), "inner": slice(8, 17)}[side]] = 0
        poisoned = inputs["x_BSD"].detach().clone()
        poisoned[mask == 0] = torch.nan
        out = long_conv(poisoned, inputs["filter_LD"], history_BPD=inputs["history_BPD"], mask_BS=mask)
        assert out.isfinite().all()
        assert out[mask == 0].eq(0).all()
        alone = long_conv(inputs["x_BSD"][1:, mask[1] == 1], inputs["filter_LD"], history_BPD=inputs["history_BPD"][1:])
        torch.testing.assert_close(out[1:, mask[1] == 1], alone, atol=1e-5, rtol=1e-5)

    @pytest.mark.parametrize("form", [long_conv, reference_long_conv])
    def test_no_document_begins_at_padding(self, form) -> None:
        inputs, mask = make(1, 6, 0, 6, 2), torch.tensor([[1, 1, 0, 1, 1, 1]])
        starts = torch.tensor([[False, False, True, False, False, False]])
        real = mask[0].bool()
        torch.testing.assert_close(
            form(**inputs, mask_BS=mask, starts_BS=starts)[:, real], form(**inputs, mask_BS=mask)[:, real]
        )

    def test_a_row_without_any_token(self) -> None:
        inputs = make(2, 12, 0, lags=12, width=3)
        mask = torch.zeros(2, 12)
        assert long_conv(inputs["x_BSD"], inputs["filter_LD"], mask_BS=mask).eq(0).all()
        mask[0] = 1
        out = long_conv(inputs["x_BSD"], inputs["filter_LD"], mask_BS=mask)
        assert out[1].eq(0).all()
        assert distance(out[:1], long_conv(inputs["x_BSD"][:1], inputs["filter_LD"])) < 1e-6

    def test_later_inputs_do_not_change_earlier_outputs(self) -> None:
        inputs = make(1, 60, 0, lags=60, width=3)
        other = inputs["x_BSD"].detach().clone()
        other[:, 40:] = 5.0
        out, changed = (long_conv(x, inputs["filter_LD"]) for x in (inputs["x_BSD"], other))
        # The transform spreads rounding of the largest value over all.
        torch.testing.assert_close(
            out[:, :40], changed[:, :40], atol=1e-6 * float(changed.detach().abs().max()), rtol=0
        )


class TestContinuation:
    @pytest.mark.parametrize("size", [1, 7, 13, 64])
    @pytest.mark.parametrize("layout", ["plain", "padded", "packed"])
    def test_in_pieces_equals_in_one(self, size: int, layout: str) -> None:
        inputs = make(3, 50, 0, lags=50, width=4)
        mask = flags(3, 50, 0.7, seed=5).long() if layout == "padded" else None
        starts = flags(3, 50, 0.1, seed=6) if layout == "packed" else None
        x, filter_LD, skip = inputs["x_BSD"].detach(), inputs["filter_LD"].detach(), inputs["skip_D"].detach()
        whole = long_conv(x, filter_LD, skip, mask_BS=mask, starts_BS=starts)
        history, pieces = None, []
        for first in range(0, 50, size):
            now = slice(first, first + size)
            here = {
                "mask_BS": None if mask is None else mask[:, now],
                "starts_BS": None if starts is None else starts[:, now],
                "history_BPD": history,
            }
            pieces.append(long_conv(x[:, now], filter_LD, skip, **here))
            history = extended_history(x[:, now], **here)
        assert distance(torch.cat(pieces, dim=1), whole) < LIMIT
        assert history.shape == x.shape

    def test_what_stands_at_padding_never_enters_the_history(self) -> None:
        x = torch.tensor([[torch.nan, 2.0, torch.inf, 4.0]])[..., None]
        history = extended_history(x, mask_BS=torch.tensor([[0, 1, 0, 1]]))
        assert history.flatten().tolist() == [0, 0, 2, 4]

    def test_the_history_is_right_aligned_and_begins_with_the_last_document(self) -> None:
        x = torch.arange(1.0, 7.0).view(1, 6, 1)
        mask = torch.tensor([[1, 1, 1, 0, 1, 0]])
        starts = torch.tensor([[False, True, False, False, False, False]])
        history = extended_history(x, history_BPD=torch.full((1, 2, 1), 9.0), mask_BS=mask, starts_BS=starts)
        assert history.flatten().tolist() == [0, 0, 0, 0, 0, 2, 3, 5]


class TestLength:
    def test_a_document_longer_than_the_filter_is_an_error(self) -> None:
        inputs = make(2, 20, 0, lags=19, width=3)
        with pytest.raises(ConfigError, match=r"20 tokens is longer than the filter, which has 19"):
            long_conv(**inputs)

    def test_documents_that_fit_are_none(self) -> None:
        inputs = make(2, 20, 0, lags=10, width=3)
        starts = torch.zeros(2, 20, dtype=torch.bool)
        starts[:, 10] = True
        expected = reference_long_conv(**inputs, starts_BS=starts)
        assert distance(long_conv(**inputs, starts_BS=starts), expected) < LIMIT

    def test_the_history_counts_but_not_the_zeros_before_it(self) -> None:
        inputs = make(2, 12, 10, lags=20, width=3)
        with pytest.raises(ConfigError, match="22 tokens"):
            long_conv(**inputs)
        short = torch.cat([torch.zeros(2, 2, 3), inputs["history_BPD"].detach()[:, 2:]], dim=1)
        out = long_conv(**{**inputs, "history_BPD": short})
        expected = reference_long_conv(**{**inputs, "history_BPD": short[:, 2:]})
        assert distance(out, expected) < LIMIT


class TestCompiled:
    @pytest.mark.parametrize("layout", ["plain", "padded", "packed"])
    def test_one_graph_forward_and_backward(self, layout: str) -> None:
        inputs = make(2, 21, 4, lags=30, width=3)
        here = {
            "mask_BS": flags(2, 21, 0.7, seed=5).long() if layout == "padded" else None,
            "starts_BS": flags(2, 21, 0.1, seed=6) if layout == "packed" else None,
        }
        compiled = torch.compile(lambda **given: long_conv(**given), fullgraph=True, backend="aot_eager")
        out, grads = gradients(compiled, inputs, **here)
        expected, expected_grads = gradients(long_conv, inputs, **here)
        assert out.equal(expected)
        assert all(one.equal(other) for one, other in zip(grads, expected_grads, strict=True))

    def test_the_operator_keeps_the_rules_of_operators(self) -> None:
        inputs = make(2, 13, 3, lags=20, width=2)
        mask, starts = flags(2, 13, 0.7, seed=5), flags(2, 13, 0.1, seed=6)
        given = (*inputs.values(), mask, starts)
        torch.library.opcheck(torch.ops.moe_hf.long_conv.default, given)

    @pytest.mark.parametrize("length", [1, 5, 8, 20])
    @pytest.mark.parametrize("padded", [False, True])
    def test_the_compiler_is_told_the_strides_of_what_lies_by_channel(self, length: int, padded: bool) -> None:
        x, filter_LD, skip = torch.randn(2, 7, length).mT, torch.randn(7, 32).t(), torch.randn(7)
        mask = torch.ones(2, length, dtype=torch.long)
        mask[0, 0] = 0
        given = (x, filter_LD, skip, None, mask if padded else None, None)
        operators = torch.ops.moe_hf
        check = "test_faketensor"
        torch.library.opcheck(operators.long_conv.default, given, test_utils=check)
        torch.library.opcheck(
            operators.long_conv_backward.default, (torch.randn(2, length, 7), *given), test_utils=check
        )

    def test_no_position_at_all(self) -> None:
        x = torch.randn(2, 0, 3, requires_grad=True)
        out = long_conv(x, torch.randn(4, 3))
        out.sum().backward()
        assert out.shape == x.grad.shape == (2, 0, 3)

    def test_without_a_history_the_plain_form_needs_no_gather(self) -> None:
        inputs = make(2, 40, 0, lags=40, width=3)
        plain = fft_conv(ConvInputs(*(None if tensor is None else tensor.detach() for tensor in inputs.values())))
        ones = torch.ones(2, 40)
        starts = torch.zeros(2, 40, dtype=torch.bool)
        starts[:, 0] = True
        assert long_conv(**inputs, mask_BS=ones, starts_BS=starts).equal(plain)
