"""Load statistics by hand-computed values, against simulated uniform routing, and in the forms that callers use."""

import math

import pytest
import torch

from moe_hf import HashRouter, SwitchRouter, expert_utilization, load_balance_std
from moe_hf.base.errors import ConfigError
from moe_hf.ops.routing.load_statistics import load_statistics, slots_per_expert


def uniform_counts(tokens: int, experts: int, k: int, repeats: int = 300) -> torch.Tensor:
    """Counts (repeats, E) of tokens that each draw k different experts."""
    generator = torch.Generator().manual_seed(0)
    chosen = torch.rand(repeats, tokens, experts, generator=generator).topk(k, dim=-1).indices.flatten(1)
    return torch.zeros(repeats, experts, dtype=torch.long).scatter_add(1, chosen, torch.ones_like(chosen))


def test_even_loads_are_perfect() -> None:
    even = load_statistics(torch.tensor([6, 6, 6]))
    assert even == (18, 0.0, math.sqrt(2 / 18), 1.0, 1.0, pytest.approx(1.0), 0)


def test_values_computed_by_hand() -> None:
    # Mean 4, deviations 4, 0, -4: std sqrt(32 / 3); chi-square (16 + 0 + 16) / 4 = 8 with 2 degrees of freedom.
    uneven = load_statistics(torch.tensor([8, 4, 0]))
    assert uneven.num_slots == 12
    assert uneven.relative_std == pytest.approx(math.sqrt(32 / 3) / 4)
    assert uneven.sampling_floor == pytest.approx(math.sqrt(2 / 12))
    # With 2 degrees of freedom the tail is exp(-x / 2).
    assert uneven.p_value == pytest.approx(math.exp(-4))
    assert uneven.max_over_mean == 2.0
    assert uneven.entropy == pytest.approx(-(2 / 3 * math.log(2 / 3) + 1 / 3 * math.log(1 / 3)) / math.log(3))
    assert uneven.dead_experts == 1


def test_one_expert_that_takes_all_is_as_uneven_as_it_gets() -> None:
    collapsed = load_statistics(torch.tensor([0, 50, 0, 0, 0]))
    assert collapsed.relative_std == pytest.approx(2.0)
    assert collapsed.max_over_mean == 5.0
    assert collapsed.entropy == pytest.approx(0.0)
    assert collapsed.dead_experts == 4
    assert collapsed.p_value < 1e-30


def test_nothing_counted_is_no_division_by_zero() -> None:
    assert load_statistics(torch.zeros(4)) == (0, 0.0, 0.0, 1.0, 0.0, 0.0, 4)


def test_a_single_expert_is_balanced() -> None:
    assert load_statistics(torch.tensor([9])) == (9, 0.0, 0.0, 1.0, 1.0, 1.0, 0)


def test_the_notes_floor_for_the_example() -> None:
    floor = load_statistics(torch.full((16,), 4 * 512 * 2 // 16)).sampling_floor
    assert floor == pytest.approx(0.0605, abs=5e-5)


@pytest.mark.parametrize(("tokens", "experts", "k"), [(200, 8, 1), (100, 8, 2), (60, 8, 6), (40, 16, 4)])
def test_uniform_random_routing_reaches_the_floor_and_not_less(tokens: int, experts: int, k: int) -> None:
    statistics = [load_statistics(count, k) for count in uniform_counts(tokens, experts, k)]
    squares = [each.relative_std**2 for each in statistics]
    assert math.sqrt(sum(squares) / len(squares)) == pytest.approx(statistics[0].sampling_floor, rel=0.05)


@pytest.mark.parametrize(("experts", "k"), [(8, 1), (8, 6)])
def test_p_values_of_uniform_random_routing_are_uniform(experts: int, k: int) -> None:
    p = torch.tensor([load_statistics(count, k).p_value for count in uniform_counts(200, experts, k)])
    for share in (0.1, 0.5, 0.9):
        assert (p < share).float().mean().item() == pytest.approx(share, abs=0.08)


def test_every_expert_for_every_token_leaves_nothing_to_chance() -> None:
    whole = load_statistics(torch.tensor([7, 7, 7]), k=3)
    assert (whole.relative_std, whole.sampling_floor, whole.p_value) == (0.0, 0.0, 1.0)


@pytest.mark.parametrize("k", [0, 4])
def test_an_impossible_number_of_experts_per_token_is_refused(k: int) -> None:
    with pytest.raises(ConfigError, match=rf"k={k} different experts .* with 3 experts"):
        load_statistics(torch.tensor([1, 2, 3]), k)


def test_empty_slots_count_for_nobody() -> None:
    assign = torch.tensor([[0, 3], [1, 3], [2, 3]])
    assert slots_per_expert(assign, num_experts=3).tolist() == [1, 1, 1]
    assert load_balance_std(assign, num_experts=3) == 0.0
    assert expert_utilization(torch.full((2, 2), 3), num_experts=3).tolist() == [0.0, 0.0, 0.0]


def test_experts_without_a_token_are_in_the_answer() -> None:
    assert expert_utilization(torch.tensor([1, 1, 0, 1]), num_experts=4).tolist() == [0.25, 0.75, 0.0, 0.0]
    assert load_balance_std(torch.tensor([1, 1]), num_experts=4) == pytest.approx(math.sqrt(3))


@pytest.mark.parametrize("router", [HashRouter(num_experts=16), SwitchRouter(10, num_experts=5)])
def test_methods_and_functions_say_the_same_of_whatever_form(router: HashRouter | SwitchRouter) -> None:
    assign = router(torch.randn(4, 6, 10, generator=torch.Generator().manual_seed(0)))
    std, used = router.load_balance_std(assign), router.expert_utilization(assign)
    assert used.sum().item() == pytest.approx(1.0)
    assert std > 0
    for same in (
        load_balance_std(assign),
        load_balance_std(assign.expert_TK, router.num_experts),
        router.load_balance_std(assign.expert_TK),
    ):
        assert same == std
    for same in (expert_utilization(assign), expert_utilization(assign.expert_TK, router.num_experts)):
        torch.testing.assert_close(same, used)


def test_the_notes_example_runs() -> None:
    router = HashRouter(num_experts=16)
    assign = router(torch.randn(4, 512, 256, generator=torch.Generator().manual_seed(0)))
    assert expert_utilization(assign).shape == (16,)
    # Hashed independent vectors are uniform random routing: near the floor, neither far above nor at 0.
    assert 0.03 < load_balance_std(assign) < 0.1


def test_a_bare_tensor_needs_the_number_of_experts() -> None:
    with pytest.raises(ConfigError, match=r"num_experts is missing.*second argument"):
        load_balance_std(torch.tensor([0, 1]))


def test_an_expert_that_does_not_exist_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"assign holds expert 9, but with num_experts=4 ids go from 0 to 3"):
        expert_utilization(torch.tensor([0, 9]), num_experts=4)
