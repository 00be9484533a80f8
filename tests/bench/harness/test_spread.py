"""Medians, quartiles and the two ratios that must agree."""

import pytest

from moe_hf.bench.harness.spread import ratio, spread
from moe_hf.bench.harness.timing import Samples


def test_paired_ratio_ignores_a_burst_of_load_that_both_arms_saw():
    # The third round was three times slower for both; the fourth has one of them only.
    above = Samples(1, [2.0, 2.2, 6.0], [0, 1, 2])
    below = Samples(1, [1.0, 1.0, 3.0, 9.0], [0, 1, 2, 3])
    found = ratio(above, below)
    assert found.of_medians == pytest.approx(2.2 / 2.0)
    assert found.paired == pytest.approx(2.0)


def test_spread_of_one_sample_is_that_sample():
    assert spread([4.0]) == (4.0, 4.0, 4.0, 1)
