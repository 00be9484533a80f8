"""Few and many experts in one group, and what it says of growth."""

from moe_hf.bench.harness.arms import OWN
from moe_hf.bench.harness.results import GroupResult
from moe_hf.bench.speed.growth import FEW, MANY, at
from moe_hf.bench.speed.growth_case import build_growth
from moe_hf.bench.speed.sizes import expert_gradient_bytes
from tests.bench.measured import SIZE, SMALL, arm, measure, numbers


def test_growth_measures_few_and_many_experts_in_one_group():
    group = measure(build_growth, SIZE._replace(tokens=9), "forward", backends=("sorted",))
    assert [arm.name for arm in group.arms] == [at("sorted", FEW), at("sorted", MANY)]


def test_growth_goals_compare_many_experts_with_few_in_one_group():
    returned = [expert_gradient_bytes(SMALL._replace(num_experts=count)) for count in (FEW, MANY)]
    arms = [
        arm(at("auto", FEW), OWN, 2.0, 2.0, peak=returned[0] + 1000, returned=returned[0]),
        arm(at("auto", MANY), OWN, 3.0, 3.0, peak=returned[1] + 1100, returned=returned[1]),
    ]
    one = GroupResult("growth", "training", SMALL, "cpu", arms, [])
    assert numbers("growth: forward+backward E 64 / E 8", one) == [1.5]
    assert numbers("growth: forward E 64 / E 8", one) == []
    assert numbers("growth: temporaries without returned gradients", one) == [1.1]
