"""Routers in which experts pick: balance by rank in training, thresholds that follow, causal eval."""

import pytest
import torch

from moe_hf.layers.ffn.routers import ExpertChoiceRouter, ExpertThresholdRouter

T, D, E, K = 64, 12, 8, 2
KINDS = [ExpertChoiceRouter, ExpertThresholdRouter]


def made(kind, **arguments):
    torch.manual_seed(0)
    router = kind(D, E, K, **arguments)
    torch.nn.init.normal_(router.weight, std=0.4)
    return router


def tokens(seed: int = 1, num: int = T) -> torch.Tensor:
    return torch.randn(num, D, generator=torch.Generator().manual_seed(seed)) + 0.3


@pytest.mark.parametrize("factor", [1.0, 1.5])
@pytest.mark.parametrize("kind", KINDS)
def test_in_the_first_steps_every_expert_takes_its_share_of_the_batch(kind, factor: float) -> None:
    router = made(kind, capacity_factor=factor).train()
    expert = router(tokens()).expert_TK
    assert [(expert == e).sum().item() for e in range(E)] == [int(factor * T * K / E)] * E


def test_expert_choice_takes_the_best_tokens_of_each_expert() -> None:
    router = made(ExpertChoiceRouter).train()
    logits, weight, expert = router(tokens())
    prob = logits.softmax(-1)
    for e in range(E):
        taken = (expert == e).any(-1)
        assert prob[taken, e].min() >= prob[~taken, e].max()
    torch.testing.assert_close(weight.sum(-1), (prob * (expert < E)).sum(-1))


@pytest.mark.parametrize("kind", KINDS)
def test_before_the_thresholds_are_known_a_token_takes_its_k_best(kind) -> None:
    logits, _, expert = made(kind).eval()(tokens())
    assert (expert < E).sum(-1).tolist() == [K] * T
    assert all((expert[t] < E).nonzero()[:, 0].tolist() == sorted(logits[t].topk(K).indices.tolist()) for t in range(T))


@pytest.mark.parametrize("kind", KINDS)
def test_thresholds_that_follow_the_batches_keep_new_tokens_balanced(kind) -> None:
    router = made(kind, decay=0.8).train()
    for seed in range(30):
        x = tokens(seed)
        logits, _, expert = router(x)
        router.adjust(router.observe(logits, expert, None), num_forwards=1)
    expert = router.eval()(tokens(99, num=4000)).expert_TK
    load = torch.tensor([(expert == e).sum().item() for e in range(E)]) / 4000
    torch.testing.assert_close(load, torch.full((E,), K / E), atol=0.06, rtol=0)


@pytest.mark.parametrize("kind", KINDS)
def test_the_first_observation_is_taken_whole_and_later_ones_by_the_decay(kind) -> None:
    router = made(kind, decay=0.75)
    router.adjust(torch.full((E,), 0.8), num_forwards=2)
    torch.testing.assert_close(router.score_threshold, torch.full((E,), 0.4))
    router.adjust(torch.full((E,), 0.8), num_forwards=1)
    torch.testing.assert_close(router.score_threshold, torch.full((E,), 0.75 * 0.4 + 0.25 * 0.8))


@pytest.mark.parametrize("kind", KINDS)
def test_padding_is_neither_taken_nor_observed(kind) -> None:
    router = made(kind).train()
    mask = (torch.arange(T) % 2 == 0).long()
    logits, _, expert = router(tokens(), None, mask)
    assert (expert[mask == 0] == E).all()
    real = mask == 1
    torch.testing.assert_close(router.observe(logits, expert, mask), router.observe(logits[real], expert[real], None))


def test_a_capacity_factor_is_a_share_for_expert_choice_and_a_limit_for_thresholds(tiny_config) -> None:
    fields = {"router_capacity_factor": 2.0, "num_experts_per_tok": 1}
    shares = [kind.from_config(tiny_config(**fields)).tokens_per_expert(torch.tensor(100.0)).item() for kind in KINDS]
    assert shares == [50, 25]
