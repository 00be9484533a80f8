"""Goals that a case carries belong to that case alone."""

from moe_hf.bench.harness.arms import FORWARD, TRAINING, Group
from moe_hf.bench.harness.cases import Case, Goal, goals_of
from moe_hf.bench.harness.goals import judge
from moe_hf.bench.harness.results import GroupResult
from tests.bench.measured import SMALL, group


def test_a_case_s_goals_count_its_own_size_and_mode_only():
    goal = Goal("q", 1.0, "grouped_mm", "auto")
    case = Case("experts", FORWARD, SMALL, lambda options: Group([]), (goal,))
    others = [group(size=SMALL._replace(tokens=65)), group(mode=TRAINING), group(case="layer")]
    assert judge(goals_of([case]), others)[0].values == []
    assert [value.where for value in judge(goals_of([case]), [*others, group()])[0].values] == [case.place]


def test_place_and_title_are_those_of_the_size():
    result = GroupResult("experts", FORWARD, SMALL, "cpu", [], [])
    assert result.place == "64x8x16 E4 k2, fp32 gelu, 1 thread"
    assert result.title == f"experts, forward: {result.place}, 32 rows per expert"
