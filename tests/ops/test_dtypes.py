"""The types that ops compute in."""

import pytest
import torch

from moe_hf.ops.dtypes import float32_or_more, without_autocast


@pytest.mark.parametrize(
    ("given", "wanted"),
    [
        ((torch.float32,), torch.float32),
        ((torch.bfloat16, torch.float16), torch.float32),
        ((torch.bfloat16, torch.float64), torch.float64),
        ((torch.int64, torch.bool), torch.float32),
    ],
)
def test_sums_are_in_float32_unless_an_input_is_wider(given: tuple[torch.dtype, ...], wanted: torch.dtype) -> None:
    assert float32_or_more(*(torch.zeros(1, dtype=dtype) for dtype in given), None) == wanted


def test_products_keep_their_type_within_and_lose_it_outside() -> None:
    x = torch.ones(2, 2)
    with torch.autocast("cpu", torch.bfloat16):
        with without_autocast(x):
            assert (x @ x).dtype == torch.float32
        assert (x @ x).dtype == torch.bfloat16
