"""Hashed experts: fixed, different, evenly spread; and tables balanced for how often ids occur."""

import pytest
import torch

from moe_hf.ops.routing.hashing import balanced_hash_table, hash_experts, ids_of_vectors
from moe_hf.ops.routing.load_statistics import load_balance_std, load_statistics, slots_per_expert

IDS = torch.arange(5000)


def zipf(size: int) -> torch.Tensor:
    """Counts as in a text: the n-th most frequent id occurs 1 / n as often; the ids are shuffled."""
    counts = (1e5 / torch.arange(1, size + 1)).long()
    return counts[torch.randperm(size, generator=torch.Generator().manual_seed(0))]


def weighted_load(table_VK: torch.Tensor, counts: torch.Tensor, experts: int) -> torch.Tensor:
    """Slots per expert of a text in which each id occurs as often as its count."""
    load = torch.zeros(experts, dtype=torch.double)
    for slot in table_VK.unbind(dim=-1):
        load.index_add_(0, slot, counts.double())
    return load


def test_the_assignment_never_changes() -> None:
    # Saved models depend on these very numbers.
    assert hash_experts(torch.arange(6), num_experts=8, k=2, seed=0).tolist() == [
        [5, 6],
        [3, 0],
        [6, 3],
        [4, 1],
        [1, 6],
        [5, 3],
    ]


@pytest.mark.parametrize(("experts", "k"), [(8, 1), (7, 2), (2, 2), (64, 2)])
def test_experts_are_in_range_and_different(experts: int, k: int) -> None:
    expert = hash_experts(IDS.view(50, 100), experts, k)
    assert expert.shape == (50, 100, k)
    assert expert.min() >= 0
    assert expert.max() < experts
    if k == 2:
        assert (expert[..., 0] != expert[..., 1]).all()


@pytest.mark.parametrize(("experts", "k"), [(8, 1), (7, 2), (64, 2)])
def test_ids_spread_as_evenly_as_chance(experts: int, k: int) -> None:
    for slot in hash_experts(IDS, experts, k).unbind(dim=-1):
        assert load_statistics(slots_per_expert(slot, experts)).p_value > 1e-3


def test_neighbouring_ids_and_multiples_do_not_share_experts() -> None:
    # A plain remainder would send multiples of E to one expert.
    assert load_balance_std(hash_experts(torch.arange(0, 40_000, 8), 8), 8) < 0.1


def test_seeds_are_unrelated() -> None:
    agree = (hash_experts(IDS, 8, seed=0) == hash_experts(IDS, 8, seed=1)).float().mean().item()
    assert agree == pytest.approx(1 / 8, abs=0.02)
    # The second expert is made with the next seed's hash, and must not follow the next seed's first.
    second = hash_experts(IDS, 8, 2, seed=0)[:, 1]
    assert (second == hash_experts(IDS, 8, seed=1)[:, 0]).float().mean().item() == pytest.approx(1 / 8, abs=0.02)


def test_large_and_negative_ids_are_hashed_too() -> None:
    expert = hash_experts(torch.tensor([2**31 - 1, 2**40 + 3, -1]), 8, 2)
    assert expert.shape == (3, 2)
    assert ((expert >= 0) & (expert < 8)).all()


def test_equal_vectors_have_equal_ids_and_any_change_shows() -> None:
    x_TD = torch.randn(6, 33, generator=torch.Generator().manual_seed(0))
    ids_T = ids_of_vectors(x_TD)
    assert ids_T.unique().numel() == 6
    assert torch.equal(ids_of_vectors(x_TD.clone().t().contiguous().t()), ids_T)
    for column in (0, 17, 32):
        changed = x_TD.clone()
        changed[2, column] = torch.nextafter(changed[2, column], torch.tensor(9.0))
        same = ids_of_vectors(changed) == ids_T
        assert same.tolist() == [True, True, False, True, True, True]
    # Order within the vector counts.
    assert not torch.equal(ids_of_vectors(x_TD.flip(-1)), ids_T)


def test_half_precision_vectors_hash_like_their_float32_values() -> None:
    x_TD = torch.randn(4, 8, generator=torch.Generator().manual_seed(0)).bfloat16()
    assert torch.equal(ids_of_vectors(x_TD), ids_of_vectors(x_TD.float()))


@pytest.mark.parametrize("k", [1, 2])
def test_a_balanced_table_beats_the_hash_on_text_like_frequencies(k: int) -> None:
    counts, experts = zipf(3000), 8
    table_VK = balanced_hash_table(counts, experts, k)
    assert table_VK.shape == (3000, k)
    balanced = load_statistics(weighted_load(table_VK, counts, experts))
    hashed = load_statistics(weighted_load(hash_experts(torch.arange(3000), experts, k), counts, experts))
    assert balanced.relative_std < 0.01
    assert hashed.relative_std > 10 * balanced.relative_std
    if k == 2:
        assert (table_VK[:, 0] != table_VK[:, 1]).all()


def test_no_expert_can_have_less_than_the_most_frequent_id() -> None:
    counts = torch.tensor([900, 30, 30, 30, 5, 5])
    load = weighted_load(balanced_hash_table(counts, 4), counts, 4)
    assert load.max() == 900
    assert sorted(load.tolist()) == [30, 35, 35, 900]


def test_ids_that_never_occurred_are_spread_as_well() -> None:
    table = balanced_hash_table(torch.zeros(800), 8)
    assert slots_per_expert(table, 8).tolist() == [100] * 8


def test_the_seed_breaks_ties_only() -> None:
    counts = zipf(500)
    first, second = balanced_hash_table(counts, 8, seed=0), balanced_hash_table(counts, 8, seed=1)
    assert not torch.equal(first, second)
    assert torch.equal(first, balanced_hash_table(counts, 8, seed=0))
    loads = [weighted_load(table, counts, 8).sort().values for table in (first, second)]
    torch.testing.assert_close(*loads)
