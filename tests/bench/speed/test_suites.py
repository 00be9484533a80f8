"""The tables of cases and suites: every case measures its modes, every row of a table has its groups."""

import pytest

from moe_hf.bench.harness.arms import OWN, ROOF, TRAINING, Options
from moe_hf.bench.harness.goals import judge
from moe_hf.bench.harness.runner import run_cases
from moe_hf.bench.speed.growth import FEW, MANY, at
from moe_hf.bench.speed.model_case import EVERY_LAYER, EVERY_OTHER
from moe_hf.bench.speed.suites import CASES, CPU_GOALS, GPU_GOALS, SPEED_SUITES, case_of, cpu_cases
from tests.bench.measured import PLAN, SIZE, arm, group, measure


@pytest.mark.parametrize("case", ["experts", "layer", "block", "model"])
def test_backends_are_right_in_bfloat16_too(case):
    size = SIZE._replace(tokens=40, dtype="bfloat16", activation="gelu_new")
    group = measure(CASES[case].build, size, TRAINING, backends=("eager", "grouped_mm", "sorted"))
    assert {"eager", "grouped_mm", "sorted"} <= {arm.name for arm in group.arms}


@pytest.mark.parametrize("case", ["router", "layer", "block", "model"])
def test_every_case_measures_its_modes(case):
    size = SIZE._replace(tokens=8, hidden_size=8)
    for mode in CASES[case].modes:
        options = Options(backends=("eager", "sorted"))
        group = run_cases([case_of(case, size, mode, memory=case != "model")], options, PLAN, "cpu").groups[0]
        names = {arm.name for arm in group.arms}
        assert group.first_of(ROOF) is not None
        assert names >= ({"top_k", "sigmoid_bias"} if case == "router" else {"eager", "sorted"})


def test_cpu_suite_has_groups_for_every_row_of_its_table():
    for quick in (True, False):
        groups = []
        for one in cpu_cases(quick):
            made = group(one.name, one.mode, one.size, saved=640 if one.memory else None, peaks=2**30)
            if one.name == "growth":
                arms = [arm(at("auto", count), OWN, 1.0, peak=2**40) for count in (FEW, MANY)]
                made = made._replace(arms=arms)
            if one.name == "model":
                made = made._replace(arms=[arm(n, OWN, 1.0) for n in ("auto", "dense twin", "transformers' GPT-2")])
            if one.name == "step":
                made = made._replace(arms=[arm(n, OWN, 1.0) for n in (EVERY_OTHER, EVERY_LAYER, "dense twin")])
            if one.mode == "decode":
                made = made._replace(arms=[*made.arms, *(arm(n, OWN, 1.0) for n in ("8 bits", "4 bits"))])
            groups.append(made)
        assert [verdict.goal.quantity for verdict in judge(CPU_GOALS, groups) if not verdict.values] == []


def test_suites_name_their_device_and_goals():
    assert (SPEED_SUITES["cpu"].goals, SPEED_SUITES["gpu"].goals) == (CPU_GOALS, GPU_GOALS)
    assert all(one.size.dtype == "bfloat16" for one in SPEED_SUITES["gpu"].cases(False))
