"""Timing in turns."""

import gc

import pytest
import torch

from moe_hf.base.errors import ConfigError
from moe_hf.bench.harness.timing import SamplingPlan, in_turns, require_clock

CPU = torch.device("cpu")


def busy(count):
    return lambda: sum(range(count))


def test_arms_run_in_turns_in_an_order_that_the_seed_decides():
    def orders(seed):
        seen = []
        arms = {name: (lambda name=name: seen.append(name)) for name in "abcd"}
        plan = SamplingPlan(budget=0.0, min_rounds=6, min_sample=0.0)
        *_, samples = in_turns(arms, plan, "cpu", CPU, seed)
        assert all(len(of.seconds) == 6 for of in samples.values())
        rounds = [seen[8:][i : i + 4] for i in range(0, 24, 4)]
        assert all(sorted(names) == list("abcd") for names in rounds)
        return rounds

    assert orders(1) == orders(1) != orders(2)
    assert len({tuple(names) for names in orders(1)}) > 1


def test_slow_opponents_are_sampled_less_and_own_arms_never():
    arms = {"fast": busy(1), "slow opponent": busy(300_000), "slow own": busy(300_000)}
    plan = SamplingPlan(budget=0.0, min_rounds=4, min_sample=0.0)
    *_, samples = in_turns(arms, plan, "cpu", CPU, 0, opponents=frozenset({"slow opponent"}))
    assert {name: of.rounds for name, of in samples.items()} == {
        "fast": [0, 1, 2, 3],
        "slow opponent": [0, 1],
        "slow own": [0, 1, 2, 3],
    }


def test_short_calls_are_repeated():
    calls = []
    plan = SamplingPlan(budget=0.0, min_rounds=1, min_sample=0.002)
    *_, samples = in_turns({"short": lambda: calls.append(1)}, plan, "cpu", CPU, 0)
    assert samples["short"].calls > 100
    assert len(calls) == samples["short"].calls + 2


def test_without_arms_there_is_nothing_to_measure() -> None:
    assert list(in_turns({}, SamplingPlan(), "cpu", CPU, 0)) == []


def test_garbage_collection_is_back_on_afterwards():
    list(in_turns({"a": busy(1)}, SamplingPlan(min_rounds=1, max_rounds=1), "wall", CPU, 0))
    assert gc.isenabled()
    assert gc.get_freeze_count() == 0


def test_cpu_clock_with_threads_needs_passive_waiting(monkeypatch):
    monkeypatch.delenv("OMP_WAIT_POLICY", raising=False)
    with pytest.raises(ConfigError, match="OMP_WAIT_POLICY=PASSIVE"):
        require_clock("cpu", threads=2)
    monkeypatch.setenv("OMP_WAIT_POLICY", "passive")
    require_clock("cpu", threads=2)
    with pytest.raises(ConfigError, match="clock='sun' is not allowed"):
        require_clock("sun", threads=1)
