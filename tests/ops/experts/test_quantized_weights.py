"""Weights in 8 or 4 bits are as near to the numbers as their steps allow, and what has no such form is refused."""

import pytest
import torch

from moe_hf.base.errors import CheckpointError, ConfigError
from moe_hf.ops.experts.quantized_weights import dequantized, empty_weights, quantized, require_format

E, O, I = 3, 48, 64  # noqa: E741


def numbers(rows: int = O, columns: int = I, scale: float = 0.05) -> torch.Tensor:
    return torch.randn(E, rows, columns, generator=torch.Generator().manual_seed(0)) * scale


def all_numbers(weights, dtype=torch.float32) -> torch.Tensor:
    return torch.stack([dequantized(weights, expert, dtype) for expert in range(len(weights.codes))])


def test_at_8_bits_each_weight_is_within_half_a_step_of_its_row() -> None:
    weight = numbers() * torch.linspace(0.01, 10, O)[:, None]
    found = quantized(weight, 8, None)
    step = found.scales.float()[..., None]
    assert ((all_numbers(found) - weight).abs() <= step * 0.5001).all()
    # The steps are as short as the largest weight allows.
    assert (found.codes.abs().amax(dim=-1) >= 126).all()


@pytest.mark.parametrize("group_size", [32, 64])
def test_at_4_bits_no_group_is_further_off_than_its_whole_range_in_16_steps(group_size: int) -> None:
    weight = numbers() + 0.02
    groups = weight.view(-1, group_size)
    found = (all_numbers(quantized(weight, 4, group_size)).view_as(groups) - groups).square().sum(dim=1)
    low, high = groups.aminmax(dim=1, keepdim=True)
    step = (high - low) / 15
    plain = (((groups - low) / step).round() * step + low - groups).square().sum(dim=1)
    # bfloat16 rounds scale and zero, which costs a little.
    assert (found <= plain * 1.1).all()
    assert found.sum() < 0.99 * plain.sum()


@pytest.mark.parametrize(("bits", "group_size", "share"), [(8, None, 0.26), (4, 32, 0.1563), (4, 64, 0.1407)])
def test_it_takes_no_more_than_its_share_of_float32(bits, group_size, share) -> None:
    weight = torch.zeros(2, 128, 768)
    found = quantized(weight, bits, group_size)
    assert (found.codes.nbytes + found.scales.nbytes) / weight.nbytes <= share


@pytest.mark.parametrize("rows", [1, 48, 64, 100])
@pytest.mark.parametrize(("bits", "group_size"), [(8, None), (4, 32), (4, 64)])
def test_any_number_of_rows_and_any_strides_will_do(bits, group_size, rows) -> None:
    weight = numbers(rows)
    expected = all_numbers(quantized(weight, bits, group_size))
    assert expected.shape == weight.shape
    assert (expected - weight).norm() < (0.01 if bits == 8 else 0.12) * weight.norm()
    transposed = weight.mT.contiguous().mT
    assert torch.equal(all_numbers(quantized(transposed, bits, group_size)), expected)
    assert quantized(weight, bits, group_size).group_size == group_size


@pytest.mark.parametrize(("bits", "group_size"), [(8, None), (4, 32)])
def test_what_is_equal_or_zero_stays_so(bits, group_size) -> None:
    weight = numbers()
    weight[1], weight[2] = 0, 0.25
    found = all_numbers(quantized(weight, bits, group_size))
    assert torch.equal(found[1], weight[1])
    torch.testing.assert_close(found[2], weight[2], rtol=1e-2, atol=0)


def test_the_4_bit_codes_lie_as_pytorchs_product_packs_them() -> None:
    if not torch.backends.cpu.get_cpu_capability().startswith("AVX512"):
        pytest.skip("PyTorch packs in another order without AVX-512")
    found = quantized(numbers(rows=128), 4, 32)
    low, high = (found.codes & 15).to(torch.int32), (found.codes >> 4).to(torch.int32)
    code_EOI = torch.cat([low, high], dim=-1).mT.reshape(E, 128, I).contiguous()
    for expert in range(E):
        packed = torch.ops.aten._convert_weight_to_int4pack_for_cpu(code_EOI[expert], 8)
        assert torch.equal(packed.view(-1), found.codes[expert].reshape(-1))


@pytest.mark.parametrize(
    ("bits", "group_size", "text"),
    [
        (5, None, r"bits=5 is not allowed; experts are stored in 8 or 4 bits"),
        (True, None, r"bits=True is not allowed"),
        (4.0, 32, r"bits=4.0 is not allowed"),
        (4, 32.0, r"group_size=32.0 is not allowed"),
        (8, 32, r"group_size=32 has no meaning with bits=8"),
        (4, None, r"group_size=None is not allowed; it must be one of \(32, 64, 128\)"),
        (4, 48, r"group_size=48 is not allowed"),
    ],
)
def test_formats_that_do_not_exist_are_refused(bits, group_size, text) -> None:
    with pytest.raises(ConfigError, match=text):
        require_format(bits, group_size)


@pytest.mark.parametrize(
    ("columns", "text"), [(96, "group_size=32 would do"), (48, "rows of 48 weights are no whole groups.*use bits=8")]
)
def test_rows_of_broken_groups_are_refused_with_what_would_do(columns, text) -> None:
    with pytest.raises(ConfigError, match=text):
        empty_weights(torch.Size([E, O, columns]), 4, 64, torch.device("meta"))


@pytest.mark.parametrize("wrong", [float("nan"), float("inf")])
def test_weights_that_are_no_numbers_are_refused(wrong) -> None:
    weight = numbers()
    weight[1, 2, 3] = wrong
    with pytest.raises(CheckpointError, match="expert 1 has weights that are NaN or infinite"):
        quantized(weight, 8, None)


def test_empty_has_the_shapes_and_types_of_the_whole() -> None:
    for bits, group_size in ((8, None), (4, 32)):
        whole = quantized(numbers(rows=100), bits, group_size)
        empty = empty_weights(torch.Size([E, 100, I]), bits, group_size, torch.device("meta"))
        for found, expected in zip(empty[:2], whole[:2], strict=True):
            assert (found.shape, found.dtype) == (expected.shape, expected.dtype)
        assert (empty.rows, empty.columns, empty.bits) == (whole.rows, whole.columns, whole.bits) == (100, I, bits)


@pytest.mark.parametrize(("bits", "group_size"), [(8, None), (4, 32)])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_in_half_precision_they_are_rounded_once(bits, group_size, dtype) -> None:
    # Scales that float16 has no number near.
    weights = quantized(numbers(scale=2e-6), bits, group_size)
    assert torch.equal(all_numbers(weights, dtype), all_numbers(weights).to(dtype))
