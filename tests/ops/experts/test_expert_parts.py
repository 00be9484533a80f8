"""One expert's part of the stacks and of their gradients, and how many rows go together."""

import pytest
import torch

from moe_hf.ops.experts import expert_parts
from moe_hf.ops.experts.activations import Activation
from moe_hf.ops.experts.expert_parts import (
    ExpertStack,
    add_product,
    compute_dtype,
    expert_of,
    room_for_gradients,
    rows_per_chunk,
    rows_per_group,
)
from tests.ops.experts.problems import D, E, F, stack_for, tokens_for


def test_products_are_in_the_type_of_autocast_or_else_of_the_weights() -> None:
    x, stack, double = tokens_for(), stack_for(Activation("gelu")), stack_for(Activation("gelu"), dtype=torch.float64)
    assert compute_dtype(x.bfloat16(), stack) == torch.float32
    with torch.autocast("cpu", torch.bfloat16):
        assert compute_dtype(x, stack) == torch.bfloat16
        assert compute_dtype(x, double) == torch.float64


def test_rows_fit_their_bytes_and_large_experts_go_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    stack = stack_for(Activation("gelu", "concatenated"))
    # The widest rows are those of the up projection, 14 numbers.
    monkeypatch.setattr(expert_parts, "CHUNK_BYTES", 14 * 4 * 5 + 3)
    monkeypatch.setattr(expert_parts, "GROUP_BYTES", 14 * 2 * 7)
    assert rows_per_chunk(stack, torch.float32) == 5
    assert rows_per_group(stack, torch.bfloat16) == 7
    monkeypatch.setattr(expert_parts, "CHUNK_BYTES", 1)
    assert rows_per_chunk(stack, torch.float32) == 1
    monkeypatch.setattr(expert_parts, "GROUP_WEIGHTS", 2 * F * D)
    assert rows_per_group(stack, torch.bfloat16) == 0


def test_one_expert_is_a_view_unless_it_is_cast() -> None:
    stack = stack_for(Activation("gelu"), biased=False)
    part = expert_of(stack, 2, torch.float32)
    assert part.up_EFD.data_ptr() == stack.up_EFD[2].data_ptr()
    assert part.up_bias_EF is part.down_bias_ED is None
    assert expert_of(stack, 2, torch.bfloat16).down_EDF.dtype == torch.bfloat16


def test_there_is_room_for_the_gradients_that_are_needed_with_zeros_for_the_unused() -> None:
    stack = stack_for(Activation("gelu"), transposed=True)
    room = room_for_gradients(stack, (True, False, True, False), unused=[1, 3])
    assert (room.down_EDF, room.down_bias_ED) == (None, None)
    assert room.up_EFD is not None
    assert room.up_EFD.stride() == stack.up_EFD.stride()
    assert room.up_EFD[[1, 3]].count_nonzero() == 0
    assert room.of(1).up_bias_EF.tolist() == [0.0] * F
    assert room_for_gradients(ExpertStack(*stack[:2]), (True,) * 4, []).up_bias_EF is None
    assert len(room.up_EFD) == E


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_product_is_set_the_first_time_and_added_later(dtype: torch.dtype) -> None:
    out = torch.full((2, 2), torch.nan)
    a, b = torch.ones(2, 3, dtype=dtype), torch.ones(3, 2, dtype=dtype)
    add_product(out, a, b, is_first=True)
    assert out.eq(3).all()
    add_product(out, a, b, is_first=False)
    assert out.eq(6).all()
