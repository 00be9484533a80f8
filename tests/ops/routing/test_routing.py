"""Top-k routing by hand-computed values, and its gradient."""

import math

import pytest
import torch

from moe_hf.ops.routing.routing import (
    balanced_assignment,
    best_tokens,
    group_limited_top_k,
    nth_best_score,
    routing_weights,
    top_k_routing,
)


def test_weights_are_the_probabilities_of_the_chosen() -> None:
    # Probabilities 1/8, 4/8, 2/8, 1/8.
    logits = torch.tensor([[0.0, math.log(4), math.log(2), 0.0]])
    weight, expert = top_k_routing(logits, k=2, normalize=False)
    torch.testing.assert_close(weight, torch.tensor([[0.5, 0.25]]))
    assert expert.tolist() == [[1, 2]]


def test_normalised_weights_sum_to_one() -> None:
    logits = torch.tensor([[0.0, math.log(4), math.log(2), 0.0]])
    torch.testing.assert_close(top_k_routing(logits, k=2).weight_TK, torch.tensor([[2 / 3, 1 / 3]]))
    logits = torch.randn(50, 7, generator=torch.Generator().manual_seed(0)) * 5
    torch.testing.assert_close(top_k_routing(logits, k=3).weight_TK.sum(-1), torch.ones(50))


@pytest.mark.parametrize("normalize", [True, False])
def test_all_experts_chosen_is_a_sorted_softmax(normalize: bool) -> None:
    logits = torch.randn(5, 4, generator=torch.Generator().manual_seed(0))
    routes = top_k_routing(logits, k=4, normalize=normalize)
    torch.testing.assert_close(routes.weight_TK, logits.softmax(-1).sort(descending=True).values)
    assert routes.expert_TK.sort(-1).values.tolist() == [[0, 1, 2, 3]] * 5


def test_no_token_visits_an_expert_twice_even_at_ties() -> None:
    expert = top_k_routing(torch.zeros(9, 6), k=3).expert_TK
    assert all(len(set(row)) == 3 for row in expert.tolist())


def test_a_constant_added_to_the_logits_changes_nothing() -> None:
    logits = torch.randn(5, 4, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(top_k_routing(logits + 100, 2).weight_TK, top_k_routing(logits, 2).weight_TK)


@pytest.mark.parametrize(
    ("k", "normalize", "flows"), [(2, True, True), (2, False, True), (1, False, True), (1, True, False)]
)
def test_the_gradient_reaches_the_logits_unless_a_single_weight_is_always_one(
    k: int, normalize: bool, flows: bool
) -> None:
    logits = torch.randn(5, 4, generator=torch.Generator().manual_seed(0), requires_grad=True)
    (top_k_routing(logits, k, normalize).weight_TK[:, 0]).sum().backward()
    assert (logits.grad.abs().max().item() > 1e-6) == flows


def test_the_gradient_is_right() -> None:
    logits = torch.randn(3, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x: top_k_routing(x, 2).weight_TK, logits)


@pytest.mark.parametrize("normalize", [True, False])
def test_weights_are_the_same_where_nobody_looks_for_empty_slots(normalize: bool) -> None:
    score, expert = torch.rand(3, 4), torch.tensor([[0, 3], [2, 1], [1, 2]])
    found = routing_weights(score, expert, normalize, may_be_empty=False)
    assert torch.equal(found, routing_weights(score, expert, normalize))


def test_weights_of_any_choice_are_scores_and_nothing_in_empty_slots() -> None:
    score = torch.rand(3, 4, generator=torch.Generator().manual_seed(0))
    expert = torch.tensor([[0, 3], [4, 1], [4, 4]])
    weight = routing_weights(score, expert, normalize=False)
    torch.testing.assert_close(
        weight, torch.stack([score[0, [0, 3]], torch.tensor([0.0, score[1, 1]]), torch.zeros(2)])
    )
    torch.testing.assert_close(routing_weights(score, expert, normalize=True).sum(-1), torch.tensor([1.0, 1.0, 0.0]))


def test_empty_slots_have_no_gradient_and_no_nan() -> None:
    score = torch.rand(2, 4, requires_grad=True)
    routing_weights(score, torch.tensor([[4, 4], [1, 4]]), normalize=True).square().sum().backward()
    assert score.grad.isfinite().all()
    assert score.grad[0].abs().sum() == 0


def test_groups_limit_where_a_token_may_go() -> None:
    score = torch.tensor([[0.9, 0.0, 0.5, 0.6, 0.8, 0.1, 0.0, 0.0]])
    assert group_limited_top_k(score, 3, num_groups=1, groups_per_token=1)[0].tolist() == [0, 4, 3]
    # Pairs score 0.9, 1.1, 0.9, 0.0.
    assert group_limited_top_k(score, 2, num_groups=4, groups_per_token=1)[0].tolist() == [3, 2]


def test_each_expert_takes_its_best_tokens() -> None:
    score = torch.tensor([[0.1, 0.9], [0.8, 0.2], [0.7, 0.3], [0.95, 0.99]])
    assert best_tokens(score, 2).tolist() == [[False, True], [True, False], [False, False], [True, True]]
    mask = torch.tensor([True, True, True, False])
    assert best_tokens(score, 2, mask).tolist() == [[False, True], [True, False], [True, True], [False, False]]
    assert nth_best_score(score, 2).tolist() == pytest.approx([0.8, 0.9])
    assert nth_best_score(score, 2, mask).tolist() == pytest.approx([0.7, 0.3])
    assert nth_best_score(score[:0], 2).tolist() == [0, 0]


@pytest.mark.parametrize(("tokens", "k", "experts"), [(12, 2, 4), (5, 2, 3), (7, 1, 8)])
def test_dealt_out_experts_are_even_and_distinct(tokens: int, k: int, experts: int) -> None:
    expert = balanced_assignment(tokens, k, experts)
    count = torch.bincount(expert.flatten(), minlength=experts)
    assert count.max() - count.min() <= 1
    assert all(len(set(row)) == k for row in expert.tolist())
