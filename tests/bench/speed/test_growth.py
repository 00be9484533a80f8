"""A growth group taken apart by its number of experts."""

from moe_hf.bench.harness.arms import OWN
from moe_hf.bench.harness.report import write_report
from moe_hf.bench.harness.results import GroupResult
from moe_hf.bench.speed.growth import FEW, MANY, at, split_by_experts
from moe_hf.bench.speed.report import SPEED_PAGE
from tests.bench.measured import SMALL, arm, group, report


def test_growth_group_is_drawn_as_one_group_per_number_of_experts(tmp_path):
    arms = [arm(at(name, count), OWN, 1.0, 2.0, saved=64) for count in (FEW, MANY) for name in ("auto", "grouped_mm")]
    one = GroupResult("growth", "training", SMALL, "cpu", arms, [])
    few, many = split_by_experts(one)
    assert [part.size.num_experts for part in (few, many)] == [8, 64]
    assert [a.name for a in few.arms] == [a.name for a in many.arms] == ["auto", "grouped_mm"]
    assert split_by_experts(group()) == [group()]
    assert {path.name for path in write_report(report(one), tmp_path, SPEED_PAGE)} == {
        *("report.md", "report.json", "growth_experts_growth.png", "memory_growth.png"),
    }
