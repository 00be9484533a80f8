"""Goals are held against every group that they are about; the worst value decides."""

import pytest

from moe_hf.bench.harness.arms import FORWARD, OWN, TRANSFORMERS
from moe_hf.bench.harness.cases import PEAK, Fastest, Goal, goals_of
from moe_hf.bench.harness.goals import Value, Verdict, judge
from moe_hf.bench.harness.results import ArmResult, GroupResult
from moe_hf.bench.harness.timing import Samples
from moe_hf.bench.mixers.attention_arms import FULL, TOPK
from moe_hf.bench.mixers.layers import layer_case
from moe_hf.bench.mixers.report import PERPLEXITIES
from moe_hf.bench.mixers.sizes import LayerSize
from moe_hf.bench.mixers.suite import PERPLEXITY_GOAL
from tests.bench.measured import group


@pytest.mark.parametrize(
    ("higher", "values", "text"),
    [
        (True, [], "not measured"),
        (True, [1.1, 1.5], "met, goal met in 1 of 2"),
        (True, [1.3, 1.5], "met, goal met"),
        (True, [1.0, 1.5], "MISSED in 1 of 2"),
        (False, [1.0, 1.05], "met, goal met"),
        (False, [1.15], "met, goal met in 0 of 1"),
        (False, [1.3, 1.0], "MISSED in 1 of 2"),
        (True, [1.045], "MISSED in 1 of 1"),
        (False, [1.2049], "MISSED in 1 of 1"),
    ],
)
def test_verdict_is_decided_by_the_worst_value(higher, values, text):
    must, hoped = (1.05, 1.2) if higher else (1.2, 1.1)
    verdict = Verdict(Goal("q", must, "a", "b", hoped, higher), [Value("here", v) for v in values])
    assert verdict.text == text
    if values:
        assert verdict.worst.number == (min(values) if higher else max(values))


def result(size: LayerSize, seconds: dict[str, float], peak: dict[str, int] | None = None) -> GroupResult:
    found = [ArmResult(name, OWN, Samples(1, [value, value], [0, 1])) for name, value in seconds.items()]
    found += [ArmResult(name, OWN, peak_bytes=value) for name, value in (peak or {}).items()]
    return GroupResult("two", FORWARD, size, "cpu", found, [])


def test_the_best_of_several_opponents_counts_and_every_case_of_a_quantity() -> None:
    claims = (
        Goal("faster", 1.0, ("first", "same"), "nothing to compare", by_round=True),
        Goal("not measured", 1.0, ("wrong",), "first"),
    )
    one, two = LayerSize(64, 1), LayerSize(64, 2)
    results = [
        result(one, {"first": 4.0, "same": 3.0, "nothing to compare": 1.5}),
        result(two, {"first": 1.0, "same": 9.0, "nothing to compare": 2.0}),
    ]
    goals = goals_of([layer_case("two", FORWARD, size, list, *claims) for size in (one, two)])
    faster, missing, perplexity = judge([*goals, PERPLEXITY_GOAL], results, {PERPLEXITIES: {FULL: 4.0, TOPK: 4.02}})
    assert [value.number for value in faster.values] == [2.0, 0.5]
    assert faster.text == "MISSED in 1 of 2"
    assert missing.text == "not measured"
    assert perplexity.text == "met"
    assert judge([PERPLEXITY_GOAL], [], {PERPLEXITIES: {FULL: 4.0, TOPK: 4.1}})[0].text == "MISSED in 1 of 1"


@pytest.mark.parametrize(
    ("other", "text"),
    [
        ({"must": 3.0}, "MISSED in 1 of 1"),
        ({"goal": 3.0}, "met, goal met in 0 of 1"),
        ({"higher": False}, "MISSED in 1 of 1"),
    ],
)
def test_goals_of_one_quantity_that_ask_for_another_number_are_judged_apart(other: dict, text: str) -> None:
    one, two = LayerSize(64, 1), LayerSize(64, 2)
    results = [result(size, {"ours": 1.0, "theirs": 2.0}) for size in (one, two)]
    goal = Goal("faster", 1.5, "theirs", "ours")
    cases = [layer_case("two", FORWARD, one, list, goal), layer_case("two", FORWARD, two, list, goal._replace(**other))]
    first, second = judge(goals_of(cases), results)
    assert [value.where for value in first.values] == [cases[0].place]
    assert [value.where for value in second.values] == [cases[1].place]
    assert (first.text, second.text) == ("met", text)


@pytest.mark.parametrize("arm", [FULL, TOPK])
def test_a_number_that_a_report_holds_of_one_arm_alone_decides_nothing(arm: str) -> None:
    assert judge([PERPLEXITY_GOAL], [], {PERPLEXITIES: {arm: 4.0}})[0].text == "not measured"


def test_memory_is_held_against_memory() -> None:
    size = LayerSize(64, 8)
    goal = Goal("memory", 0.5, "ours", "theirs", higher=False, of=PEAK, case="two", mode=FORWARD)
    verdict = judge([goal], [result(size, {}, {"ours": 3 << 20, "theirs": 12 << 20})])[0]
    assert verdict.values[0].number == 0.25
    assert "3 and 12 MiB" in verdict.values[0].where
    assert verdict.met


def test_the_fastest_of_a_family_is_the_one_with_the_smallest_median() -> None:
    goal = Goal("q", 1.0, Fastest(TRANSFORMERS), "auto", case="experts", mode=FORWARD)
    # grouped_mm takes 3 ms, eager 6, auto 2.
    assert judge([goal], [group()])[0].values[0].number == pytest.approx(1.5)
    without = group()._replace(arms=[one for one in group().arms if one.family != TRANSFORMERS])
    assert judge([goal], [without])[0].text == "not measured"
