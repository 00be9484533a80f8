"""Top-k routing by hand-computed values, and its gradient."""

import math

import pytest
import torch

from moe_hf.ops.routing import top_k_routing


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
