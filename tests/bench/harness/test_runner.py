"""One runner for all suites: it compares, counts memory, times in turns, and goes on after what cannot run."""

from functools import partial

import pytest
import torch

from moe_hf.base.errors import ConfigError
from moe_hf.bench.harness.arms import DECODE, FORWARD, OWN, Arm, Check, Group, Options, Skipped
from moe_hf.bench.harness.cases import Case
from moe_hf.bench.harness.runner import run_cases
from moe_hf.bench.mixers.layers import layer_case, same
from moe_hf.bench.mixers.sizes import LayerSize
from tests.bench.measured import PLAN, SIZE, measure


def test_arm_with_a_wrong_result_is_not_timed():
    def build(size, mode, options):
        def arm(name, *values):
            return Arm(name, lambda: None, OWN, Check(lambda: [torch.tensor(values)], lambda: [torch.ones(3)]))

        arms = [arm("right", 1.0, 1.0, 1.0), arm("wrong", 1.0, 1.0, 1.1), arm("undefined", 1.0, 1.0, float("nan"))]
        return Group(arms)

    group = measure(build, SIZE, "forward")
    assert [arm.name for arm in group.arms] == ["right"]
    assert [skipped.name for skipped in group.skipped if skipped.wrong] == ["wrong", "undefined"]


def test_further_arm_is_made_after_its_own_was_found_right_and_is_compared_too():
    def build(size, mode, options):
        def arm(name, value, **fields):
            check = Check(lambda: [torch.tensor([value])], lambda: [torch.ones(1)])
            return Arm(name, lambda: None, OWN, check, **fields)

        arms = [
            arm("right", 1.0, further=lambda: arm("captured", 1.0)),
            arm("other", 1.0, further=lambda: arm("broken", 2.0)),
            arm("third", 1.0, further=lambda: Skipped("fourth", "cannot be captured")),
            arm("wrong", 2.0, further=lambda: pytest.fail("made of a wrong arm")),
        ]
        return Group(arms)

    group = measure(build, SIZE, "forward")
    assert [arm.name for arm in group.arms] == ["right", "other", "third", "captured"]
    assert [skipped.name for skipped in group.skipped] == ["wrong", "fourth", "broken"]


def test_group_that_cannot_run_is_skipped_with_its_reason_and_the_rest_goes_on():
    def build(size, options):
        def out_of_memory():
            raise torch.OutOfMemoryError("too much\nmore lines")

        if size.tokens == 1:
            raise ConfigError("tokens=1 is not allowed")
        return Group([Arm("arm", out_of_memory if size.tokens == 2 else lambda: None)])

    sizes = [SIZE._replace(tokens=tokens) for tokens in (1, 2, 3)]
    cases = [Case("experts", FORWARD, size, partial(build, size)) for size in sizes]
    groups = run_cases(cases, Options(), PLAN, "cpu").groups
    assert [(group.case, group.size.tokens, len(group.arms)) for group in groups] == [
        ("experts", 1, 0),
        ("experts", 2, 0),
        ("experts", 3, 1),
    ]
    assert [group.skipped[0].reason for group in groups[:2]] == ["tokens=1 is not allowed", "too much"]


def test_a_case_that_cannot_be_built_is_left_out_as_a_whole_and_the_next_one_runs() -> None:
    def broken() -> list[Arm]:
        raise RuntimeError("out of luck")

    cases = [layer_case("two", FORWARD, LayerSize(64, 8), build) for build in (broken, arms)]
    first, second = run_cases(cases, Options(), PLAN, "cpu").groups
    assert first.arms == []
    assert first.skipped == [Skipped("the whole group", "out of luck")]
    assert second.arms


def test_ctrl_c_keeps_what_was_measured():
    def build(size, options):
        def stop():
            raise KeyboardInterrupt

        return Group([Arm("arm", (lambda: None) if size.tokens == 1 else stop)])

    sizes = [SIZE._replace(tokens=tokens) for tokens in (1, 2, 3)]
    cases = [Case("experts", FORWARD, size, partial(build, size)) for size in sizes]
    threads = torch.get_num_threads()
    measured = run_cases(cases, Options(), PLAN, "cpu")
    assert measured.interrupted
    assert [group.size.tokens for group in measured.groups] == [1]
    assert torch.get_num_threads() == threads


def arms() -> list[Arm]:
    small, large = torch.ones(50, 50), torch.ones(200, 200)
    return [
        Arm("first", lambda: small @ small, check=same(lambda: small[0])),
        Arm("same", lambda: large @ large, tokens=2, check=same(lambda: small[0] + 1e-6)),
        Arm("wrong", lambda: small, check=same(lambda: small[0] + 1)),
        Arm("nothing to compare", lambda: large @ large),
        Arm("slow", lambda: small @ small, once=True),
    ]


def test_arms_are_compared_and_those_that_are_wrong_are_left_out() -> None:
    (found,) = run_cases([layer_case("two", FORWARD, LayerSize(64, 8), arms)], Options(), PLAN, "cpu").groups
    assert [arm.name for arm in found.arms] == ["first", "same", "nothing to compare", "slow"]
    assert [one.name for one in found.skipped if one.wrong] == ["wrong"]
    assert "WRONG: off by" in found.skipped[0].reason
    assert [arm.error is None for arm in found.arms] == [True, False, True, True]
    slow = found.arm("slow")
    assert slow is not None
    assert len(slow.samples.seconds) == 1


def test_what_a_call_holds_is_counted_instead_of_timed() -> None:
    case = layer_case("two", FORWARD, LayerSize(64, 8), arms, memory=True)
    (found,) = run_cases([case], Options(), PLAN, "cpu").groups
    same_arm = found.arm("same")
    assert same_arm is not None
    assert same_arm.samples.seconds == []
    assert same_arm.peak_bytes == 200 * 200 * 4
    assert found.mode == "forward, memory"


def test_the_time_of_a_call_is_divided_by_the_tokens_that_it_brings_forth() -> None:
    def busy() -> int:
        return sum(range(20_000))

    case = Case(
        "decoding", DECODE, LayerSize(64, 8), lambda options: Group([Arm("a", busy), Arm("b", busy, tokens=50)])
    )
    one, other = run_cases([case], Options(), PLAN, "cpu").groups[0].arms
    assert one.spread.median > 10 * other.spread.median
