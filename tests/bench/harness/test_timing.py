import gc

import pytest
import torch

from moe_hf.base.errors import ConfigError
from moe_hf.bench.harness.memory import saved_bytes, step_memory
from moe_hf.bench.harness.spread import ratio, spread
from moe_hf.bench.harness.timing import Samples, SamplingPlan, in_turns, require_clock

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


def test_paired_ratio_ignores_a_burst_of_load_that_both_arms_saw():
    # The third round was three times slower for both; the fourth has one of them only.
    above = Samples(1, [2.0, 2.2, 6.0], [0, 1, 2])
    below = Samples(1, [1.0, 1.0, 3.0, 9.0], [0, 1, 2, 3])
    found = ratio(above, below)
    assert found.of_medians == pytest.approx(2.2 / 2.0)
    assert found.paired == pytest.approx(2.0)


def test_spread_of_one_sample_is_that_sample():
    assert spread([4.0]) == (4.0, 4.0, 4.0, 1)


def test_saved_bytes_count_each_storage_once_and_not_what_is_known():
    x_TD, weight_DD = torch.randn(5, 4, requires_grad=True), torch.randn(4, 4, requires_grad=True)

    def forward():
        h_TD = x_TD @ weight_DD
        # Keeps h once as an input of gelu; the view of it by transposing adds nothing.
        return torch.nn.functional.gelu(h_TD).sum() + torch.nn.functional.gelu(h_TD.T).sum()

    assert saved_bytes(forward, [x_TD, weight_DD]) == 5 * 4 * 4
    assert saved_bytes(forward, []) == 5 * 4 * 4 + x_TD.numel() * 4 + weight_DD.numel() * 4


def test_peak_memory_is_the_most_held_at_once():
    kept = []

    def step():
        first = torch.empty(1000, dtype=torch.uint8)
        second = torch.empty(500, dtype=torch.uint8)
        del first
        kept.append(torch.empty(200, dtype=torch.uint8))
        del second

    found = step_memory(step, CPU)
    assert (found.peak, found.left) == (1500, 200)
