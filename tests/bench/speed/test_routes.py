"""Drawn routes: the same for every backend, balanced or not, within a capacity."""

import torch

from moe_hf.bench.speed.experts_case import build_experts
from moe_hf.bench.speed.routes import draw_routes
from moe_hf.bench.speed.sizes import Size
from tests.bench.measured import SIZE, measure


def test_capacity_limits_what_all_backends_compute():
    size = SIZE._replace(capacity_factor=0.5)
    expert_TK = draw_routes(size, torch.Generator().manual_seed(0)).expert_TK
    assert expert_TK.flatten().bincount(minlength=5)[:4].max() <= 6
    group = measure(build_experts, size, "forward")
    assert {"eager", "grouped_mm", "batched_mm", "sorted", "auto"} <= {arm.name for arm in group.arms}


def test_routes_are_distinct_balanced_without_skew_and_uneven_with_it():
    size = Size(tokens=4000, num_experts=8, k=2)
    even, uneven = (draw_routes(s, torch.Generator().manual_seed(1)) for s in (size, size._replace(skew=1.0)))
    assert (even.expert_TK[:, 0] != even.expert_TK[:, 1]).all()
    torch.testing.assert_close(even.weight_TK.sum(dim=1), torch.ones(4000))
    counts = even.expert_TK.flatten().bincount(minlength=8)
    assert (counts - 1000).abs().max() < 150
    skewed = uneven.expert_TK.flatten().bincount(minlength=8)
    assert skewed[0] > 2 * skewed[7]
    assert (skewed.diff() < 0).sum() >= 5
