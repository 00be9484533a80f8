import pytest

from moe_hf.base.errors import ConfigError
from moe_hf.bench.harness.timing import SamplingPlan
from moe_hf.bench.speed.moe_vs_dense import compare_with_dense

PLAN = SamplingPlan(budget=0.0, min_rounds=1, min_sample=0.0)


def test_hash_router_gives_the_four_quoted_lines_and_the_routed_truth():
    found = compare_with_dense("hash", "cpu", plan=PLAN)
    assert found.quoted_lines == [
        "Dense params: 262912",
        "MOE params: 2236672",
        "Param increase: 8.5",
        "FLOP ratio: 8.5",
    ]
    assert found.routed_flop_ratio == found.formula_flop_ratio == 1.5
    assert found.time.of_medians > 0
    assert (
        "Routed FLOP ratio: 1.50 (k=2; counted on one forward pass: 1,610,612,736 / 1,073,741,824)" in found.true_lines
    )


def test_switch_router_counts_its_own_parameters_and_multiplication():
    found = compare_with_dense("switch", "cpu", plan=PLAN)
    assert found.moe_params == 2_240_768
    # One expert and the shared projection are the dense layer; the router's 16 columns come on top.
    assert found.routed_flop_ratio == pytest.approx(1 + 16 / (2 * 512))
    assert found.routed_flop_ratio == pytest.approx(found.formula_flop_ratio)


def test_unknown_router_is_refused():
    with pytest.raises(ConfigError, match="unknown router 'hsah'; allowed: hash, switch; did you mean"):
        compare_with_dense("hsah")
