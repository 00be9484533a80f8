"""The cases that hold a mixer's layer against transformers, attention and its other forms."""

from moe_hf.bench.harness.arms import Options
from moe_hf.bench.harness.cases import PEAK
from moe_hf.bench.harness.comparison import compare
from moe_hf.bench.mixers.comparisons import HOST, OWN, PARALLEL, RECURRENT, comparison_cases


def test_the_arms_of_a_goal_are_arms_of_its_case():
    case = next(case for case in comparison_cases(quick=True) if case.name == "RetNet's forms")
    arms = case.build(Options()).arms
    assert [arm.name for arm in arms] == [OWN, PARALLEL, RECURRENT]
    (goal,) = case.goals
    assert {*goal.above, goal.below} == {arm.name for arm in arms}


def test_every_form_computes_the_same_as_the_first_arm():
    case = next(case for case in comparison_cases(quick=True) if case.name == "RWKV-4" and case.size.width == 256)
    compared = compare(case.build(Options()).arms)
    assert [arm.name for arm in compared.arms] == [OWN, HOST]
    assert compared.errors[HOST] < 1e-3


def test_what_takes_minutes_is_measured_once_and_left_out_of_the_quick_suite():
    whole, quick = comparison_cases(quick=False), comparison_cases(quick=True)
    assert len(quick) < len(whole)
    assert not [case for case in quick if case.memory]
    memory = [case for case in whole if case.memory]
    assert memory
    assert all(goal.of == PEAK and not goal.higher for case in memory for goal in case.goals)
    assert not any(case.timed for case in memory)
