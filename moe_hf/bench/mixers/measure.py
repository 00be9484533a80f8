"""Measures cases: compares what the arms compute, then times them in turns, or counts what each holds at once."""

import gc
from collections.abc import Callable, Iterator
from typing import NamedTuple

import torch

from moe_hf.bench.harness.memory import step_memory
from moe_hf.bench.harness.timing import Samples, SamplingPlan, in_turns, seconds_per_call
from moe_hf.bench.mixers.cases import Arm, ArmResult, Case, CaseResult
from moe_hf.bench.speed.comparison import CANNOT_RUN, reason_text, relative_errors

MOST_ERROR = 1e-3
"""The relative error between arms of one case that float32 explains over thousands of tokens."""

_CPU = torch.device("cpu")


class Effort(NamedTuple):
    """How much is measured: rounds of each case, seconds of sampling that may be spent on more of them."""

    rounds: int = 3
    budget: float = 1.0


def measure(cases: list[Case], effort: Effort, seed: int, on_case: Callable[[Case], None]) -> Iterator[CaseResult]:
    """The results one after the other; a case that cannot run has no arms.

    Args:
        cases: what to measure, in this order, on one thread by CPU time.
        effort: how much.
        seed: of the order within the rounds.
        on_case: called with each case before it is measured.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        for case in cases:
            on_case(case)
            skipped: dict[str, str] = {}
            arms: list[ArmResult] = []
            try:
                made = case.build()
                arms = _held(made) if case.memory else list(_timed(made, effort, seed, skipped))
            except CANNOT_RUN as error:
                skipped["the whole case"] = reason_text(error)
            yield CaseResult(case.name, case.mode, case.width, case.length, case.label, arms, skipped)
            gc.collect()
    finally:
        torch.set_num_threads(threads)


def _held(arms: list[Arm]) -> list[ArmResult]:
    found = []
    for arm in arms:
        if not arm.once:
            arm.step()
        found.append(ArmResult(arm.name, peak_bytes=step_memory(arm.step, _CPU).peak))
    return found


def _timed(arms: list[Arm], effort: Effort, seed: int, skipped: dict[str, str]) -> Iterator[ArmResult]:
    errors = _errors([arm for arm in arms if not arm.once])
    right = []
    for arm in arms:
        error = errors.get(arm.name)
        # Written so that a NaN is wrong.
        if error is None or error <= MOST_ERROR:
            right.append(arm)
        else:
            skipped[arm.name] = f"WRONG: off by {error:.1e}, float32 explains {MOST_ERROR:.0e}"
    plan = SamplingPlan(budget=effort.budget, min_rounds=effort.rounds, slow_rounds=1)
    steps = {arm.name: arm.step for arm in right if not arm.once}
    rounds = in_turns(steps, plan, "cpu", _CPU, seed, opponents=frozenset(steps))
    samples = list(rounds)[-1]
    for arm in right:
        if arm.once:
            samples[arm.name] = Samples(1, [seconds_per_call(arm.step, 1, "cpu", _CPU)], [0])
        seconds = [value / arm.tokens for value in samples[arm.name].seconds]
        yield ArmResult(arm.name, samples[arm.name]._replace(seconds=seconds), error=errors.get(arm.name))


def _errors(arms: list[Arm]) -> dict[str, float]:
    """The relative error of each arm that has an output, against the first of them."""
    expected: torch.Tensor | None = None
    errors = {}
    for arm in arms:
        if arm.output is None:
            continue
        if expected is None:
            expected = arm.output()
        else:
            errors[arm.name] = relative_errors([arm.output()], [expected])[0]
    return errors
