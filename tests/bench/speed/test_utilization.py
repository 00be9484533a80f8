"""How fresh routers spread tokens, and what a capacity limit drops of it."""

import pytest

from moe_hf.bench.harness.arms import Options
from moe_hf.bench.speed.utilization import measure_utilization
from tests.bench.measured import SIZE


def test_slots_add_up_and_a_limit_drops_what_is_over_it():
    free, limited = (
        {one.router_type: one for one in measure_utilization([SIZE._replace(capacity_factor=factor)], Options())}
        for factor in (None, 0.5)
    )
    assert sum(free["top_k"].offered) == SIZE.tokens * SIZE.k
    assert free["top_k"].dropped == 0
    assert free["top_k"].fair == 12
    kept = limited["top_k"]
    assert max(kept.kept) <= 6
    assert kept.dropped == pytest.approx(1 - sum(kept.kept) / 48)
    assert kept.dropped > 0.4


def test_a_size_is_measured_once_and_what_cannot_route_it_is_left_out():
    found = measure_utilization([SIZE, SIZE._replace(tokens=48), SIZE._replace(k=4)], Options())
    of_two = [one.router_type for one in found if one.k == 2]
    assert len(of_two) == len(set(of_two))
    assert "hash" in of_two
