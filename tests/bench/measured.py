"""What the tests of the bench measure: tiny sizes, arms of made-up samples, and one case at a time."""

from collections.abc import Callable
from functools import partial
from typing import Any

import torch

from moe_hf.bench.harness.arms import GEMM, OWN, ROOF, TRANSFORMERS, Group, Options, Skipped
from moe_hf.bench.harness.cases import Case
from moe_hf.bench.harness.goals import judge
from moe_hf.bench.harness.results import ArmResult, GroupResult, Report
from moe_hf.bench.harness.runner import run_cases
from moe_hf.bench.harness.timing import Samples, SamplingPlan
from moe_hf.bench.speed.sizes import Size
from moe_hf.bench.speed.suites import CPU_GOALS

SIZE = Size(tokens=24, hidden_size=16, expert_width=32, num_experts=4, k=2)
SMALL = Size(tokens=64, hidden_size=8, expert_width=16, num_experts=4, k=2)
PLAN = SamplingPlan(budget=0.0, min_rounds=2, min_sample=0.0)


def measure(build: Callable[[Size, str, Options], Group], size: Size, mode: str, **options: Any) -> GroupResult:
    """The result of one case of a builder, memory included."""
    case = Case("experts", mode, size, partial(build, size, mode), memory=True)
    measured = run_cases([case], Options(**options), PLAN, "cpu")
    assert not measured.interrupted
    return measured.groups[0]


def reasons(group: Any) -> dict[str, str]:
    return {skipped.name: skipped.reason for skipped in group.skipped}


def arm(name, family, *milliseconds, flops=1e6, saved=None, peak=None, returned=0):
    seconds = [1e-3 * value for value in milliseconds]
    return ArmResult(name, family, Samples(1, seconds, list(range(len(seconds)))), flops, 0.0, saved, peak, returned)


def group(case="experts", mode="forward", size=SMALL, auto=(2.0, 2.0, 2.0), saved=None, peaks=None):
    arms = [
        arm("eager", TRANSFORMERS, 6.0, 6.0, 6.0),
        arm("grouped_mm", TRANSFORMERS, 3.0, 3.0, 3.3, saved=saved and 4 * saved),
        arm("auto", OWN, *auto, saved=saved, peak=peaks),
        arm("sorted packed", OWN, 1.5, 1.5, 1.5),
        arm("dense MLP", ROOF, 2.5, 2.5, 2.5),
        arm("plain GEMM", GEMM, 0.5, 0.5, 0.5, flops=5e5),
    ]
    return GroupResult(case, mode, size, "cpu", arms, [Skipped("batched_mm", "gathers | too much")])


def report(*groups, **fields):
    return Report("title", "moe-hf bench x", 3, {"processor": "one", "load": [0.1, 0.2]}, list(groups), **fields)


def numbers(quantity, *groups):
    verdicts = judge([goal for goal in CPU_GOALS if goal.quantity == quantity], groups)
    return [round(value.number, 4) for value in verdicts[0].values]


def close(got: torch.Tensor, wanted: torch.Tensor) -> bool:
    return bool((got - wanted).detach().norm() <= 1e-5 * wanted.detach().norm())
