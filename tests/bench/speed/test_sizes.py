"""Sizes of a sweep and the arithmetic that follows from them."""

import pytest

from moe_hf.base.errors import ConfigError
from moe_hf.bench.speed.sizes import expert_flops, sweep
from tests.bench.measured import SIZE


def test_flops_follow_from_the_size():
    # Two projections, a multiply-add per weight and row; backward is two products for each.
    assert expert_flops(SIZE, training=False) == 2 * (24 * 2) * (16 * 32 + 32 * 16)
    assert expert_flops(SIZE, training=True) == 3 * expert_flops(SIZE, training=False)


def test_sweep_is_every_combination_and_refuses_the_impossible():
    sizes = sweep(tokens=[1, 8], k=[1, 2])
    assert [(size.tokens, size.k) for size in sizes] == [(1, 1), (1, 2), (8, 1), (8, 2)]
    with pytest.raises(ConfigError, match="k=9 is not allowed; it must be at most num_experts=8"):
        sweep(k=[9])
