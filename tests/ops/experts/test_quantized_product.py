"""Products with codes give what the numbers they stand for give, by either way, and a gradient for the rows."""

import pytest
import torch

from moe_hf.ops.experts import quantized_product
from moe_hf.ops.experts.quantized_product import FEW_ROWS, is_aligned, product_runs, quantized_linear
from moe_hf.ops.experts.quantized_weights import dequantized, quantized

FORMATS = [(8, None), (4, 32), (4, 64)]
O, I = 100, 64  # noqa: E741


def weights_for(bits, group_size, columns: int = I):
    generator = torch.Generator().manual_seed(0)
    return quantized(torch.randn(3, O, columns, generator=generator), bits, group_size)


def rows(number: int, columns: int = I, dtype=torch.float32) -> torch.Tensor:
    return torch.randn(number, columns, generator=torch.Generator().manual_seed(1)).to(dtype)


def relative(found: torch.Tensor, expected: torch.Tensor) -> float:
    return ((found.double() - expected.double()).norm() / expected.double().norm()).item()


@pytest.mark.parametrize("number", [1, 2, 7, 16, 17, 64, 65])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize(("bits", "group_size"), FORMATS)
def test_it_is_the_product_with_the_numbers(bits, group_size, dtype, number) -> None:
    weights, x = weights_for(bits, group_size), rows(number, dtype=dtype)
    with torch.no_grad():
        found = quantized_linear(x, weights, 2)
    assert found.dtype == dtype
    assert found.shape == (number, O)
    expected = x.double() @ dequantized(weights, 2, torch.float64).t()
    exact = dtype == torch.float32 and (number > FEW_ROWS[bits] or not product_runs(bits))
    assert relative(found, expected) < (1e-6 if exact else 1e-2)


@pytest.mark.parametrize("number", [1, 40])
@pytest.mark.parametrize(("bits", "group_size"), FORMATS)
def test_the_gradient_of_the_rows_is_exact(bits, group_size, number) -> None:
    weights = weights_for(bits, group_size)
    x = rows(number, dtype=torch.float64).requires_grad_()
    out = quantized_linear(x, weights, 1)
    upstream = rows(number, columns=O, dtype=torch.float64)
    out.backward(upstream)
    numbers = dequantized(weights, 1, torch.float64)
    torch.testing.assert_close(out, x.detach() @ numbers.t())
    torch.testing.assert_close(x.grad, upstream @ numbers)


@pytest.mark.parametrize(("bits", "group_size"), FORMATS)
def test_rows_of_any_strides_and_codes_at_any_byte_will_do(bits, group_size) -> None:
    weights = weights_for(bits, group_size)
    x = rows(4)
    with torch.no_grad():
        expected = quantized_linear(x, weights, 0)
        torch.testing.assert_close(quantized_linear(x.t().contiguous().t(), weights, 0), expected)
        # As a file is mapped to memory: at a byte of its own.
        size = weights.codes.numel()
        moved = torch.empty(size + 1, dtype=weights.codes.dtype)[1:].view_as(weights.codes).copy_(weights.codes)
        assert not is_aligned(moved)
        odd = torch.empty(x.numel() + 1, dtype=torch.bfloat16)[1:].view_as(x).copy_(x)
        found = quantized_linear(odd, weights._replace(codes=moved), 0)
        assert relative(found, expected) < 1e-2
        assert relative(quantized_linear(odd, weights, 0), expected) < 1e-2


@pytest.mark.parametrize("columns", [24, 40])
def test_widths_that_the_fast_product_would_read_past_take_the_other_way(columns) -> None:
    weights, x = weights_for(8, None, columns), rows(3, columns)
    with torch.no_grad():
        found = quantized_linear(x, weights, 0)
    assert relative(found, x @ dequantized(weights, 0, torch.float32).t()) < 1e-6


@pytest.mark.parametrize(("bits", "group_size"), [(8, None), (4, 32)])
def test_without_the_fast_products_the_numbers_serve(bits, group_size, monkeypatch) -> None:
    monkeypatch.setattr(quantized_product, "product_runs", lambda bits: False)
    weights, x = weights_for(bits, group_size), rows(2)
    with torch.no_grad():
        found = quantized_linear(x, weights, 0)
    assert relative(found, x @ dequantized(weights, 0, torch.float32).t()) < 1e-6


@pytest.mark.parametrize(("bits", "group_size"), [(8, None), (4, 32)])
def test_scales_cast_with_their_model_compute_the_same(bits, group_size) -> None:
    weights, x = weights_for(bits, group_size), rows(2)
    with torch.no_grad():
        cast = weights._replace(scales=weights.scales.float())
        assert torch.equal(quantized_linear(x, cast, 0), quantized_linear(x, weights, 0))


def test_no_rows_give_none() -> None:
    with torch.no_grad():
        assert quantized_linear(rows(0), weights_for(8, None), 0).shape == (0, O)


def test_a_product_that_reads_other_codes_is_found_out(monkeypatch) -> None:
    product_runs.cache_clear()
    monkeypatch.setattr(quantized_product, "_product", lambda x, weights, expert: torch.zeros(len(x), weights.rows))
    try:
        assert not product_runs(8)
        assert not product_runs(4)
    finally:
        product_runs.cache_clear()
