"""Balance and z-losses by hand-computed values, per layer, masked, with gradients."""

import math

import pytest
import torch

from moe_hf.config.validation import ROUTER_BALANCE_LOSSES
from moe_hf.ops.routing.balance import BALANCE_LOSSES, Routed, expert_counts, load_balance_loss, router_z_loss

SIZES = [(2, 1), (4, 1), (4, 2), (7, 3), (8, 8), (16, 2)]


def perfectly_balanced(experts: int, k: int) -> torch.Tensor:
    """One token per rotation: token t prefers experts t, t+1, ..., t+k-1."""
    logits = torch.zeros(experts, experts)
    for token in range(experts):
        for rank in range(k):
            logits[token, (token + rank) % experts] = 3.0 - 0.1 * rank
    return logits


def collapsed(tokens: int, experts: int, favourite: int = 0) -> torch.Tensor:
    logits = torch.zeros(tokens, experts)
    logits[:, favourite] = 50.0
    return logits


@pytest.mark.parametrize(("experts", "k"), SIZES)
def test_perfect_balance_reads_one_whatever_the_sizes(experts: int, k: int) -> None:
    assert load_balance_loss([perfectly_balanced(experts, k)], k).item() == pytest.approx(1.0, abs=1e-6)


@pytest.mark.parametrize("experts", [2, 4, 16])
def test_full_collapse_reads_the_number_of_experts(experts: int) -> None:
    assert load_balance_loss([collapsed(9, experts)], 1).item() == pytest.approx(experts, rel=1e-6)


def test_collapse_of_more_experts_per_token_reads_less_since_they_differ() -> None:
    assert load_balance_loss([collapsed(9, 8)], 2).item() == pytest.approx(8 / 2, rel=1e-6)


def test_a_value_computed_by_hand() -> None:
    # Probabilities (3/4, 1/4) twice and (1/4, 3/4) once: load (2/3, 1/3), mean probability (7/12, 5/12).
    logits = torch.tensor([[math.log(3), 0.0], [math.log(3), 0.0], [0.0, math.log(3)]])
    expected = 2 * (2 / 3 * 7 / 12 + 1 / 3 * 5 / 12)
    assert load_balance_loss([logits], 1).item() == pytest.approx(expected, abs=1e-6)


def test_layers_are_averaged_not_pooled() -> None:
    # Two layers that collapse on different experts: pooled over layers their counts look perfectly balanced.
    layers = [collapsed(6, 2, favourite=0), collapsed(6, 2, favourite=1)]
    assert load_balance_loss([torch.cat(layers)], 1).item() == pytest.approx(1.0, abs=1e-6)
    assert load_balance_loss(layers, 1).item() == pytest.approx(2.0, abs=1e-6)


def test_the_mean_over_layers_is_the_mean_of_the_layers() -> None:
    layers = [torch.randn(12, 4, generator=torch.Generator().manual_seed(seed)) * 3 for seed in range(3)]
    single = [load_balance_loss([layer], 2) for layer in layers]
    torch.testing.assert_close(load_balance_loss(layers, 2), torch.stack(single).mean())
    single = [router_z_loss([layer]) for layer in layers]
    torch.testing.assert_close(router_z_loss(layers), torch.stack(single).mean())


@pytest.mark.parametrize("loss", [lambda logits, mask: load_balance_loss(logits, 2, mask), router_z_loss])
@pytest.mark.parametrize("dtype", [torch.long, torch.bool, torch.float32])
def test_padding_does_not_count(loss, dtype: torch.dtype) -> None:
    logits = torch.randn(2, 5, 4, generator=torch.Generator().manual_seed(0))
    mask = torch.tensor([[1, 1, 1, 0, 0], [0, 1, 1, 1, 1]])
    poisoned = logits.clone()
    poisoned[mask == 0] = 1000.0
    expected = loss([logits[mask == 1]], None)
    torch.testing.assert_close(loss([poisoned.view(10, 4)], mask.to(dtype)), expected)


def test_a_batch_of_nothing_but_padding_is_finite() -> None:
    logits, mask = torch.randn(4, 3), torch.zeros(2, 2)
    assert load_balance_loss([logits], 1, mask).item() == 0
    assert router_z_loss([logits], mask).item() == 0


def test_z_loss_is_the_mean_squared_log_partition() -> None:
    # log(1 + 1) and log(e + e).
    logits = torch.tensor([[0.0, 0.0], [1.0, 1.0]])
    expected = (math.log(2) ** 2 + (1 + math.log(2)) ** 2) / 2
    assert router_z_loss([logits]).item() == pytest.approx(expected, rel=1e-6)


def test_half_precision_logits_are_read_in_float32() -> None:
    logits = torch.randn(64, 8, generator=torch.Generator().manual_seed(0)).bfloat16()
    for loss in (load_balance_loss([logits], 2), router_z_loss([logits])):
        assert loss.dtype == torch.float32
    torch.testing.assert_close(load_balance_loss([logits], 2), load_balance_loss([logits.float()], 2))


def test_following_the_gradient_restores_balance() -> None:
    logits = torch.randn(64, 4, generator=torch.Generator().manual_seed(0))
    logits[:, 0] += 2.0
    logits.requires_grad_()
    before = load_balance_loss([logits], 1)
    before.backward()
    assert logits.grad[:, 0].min() > 0
    with torch.no_grad():
        after = load_balance_loss([logits - 200 * logits.grad], 1)
    assert 1.0 <= after < before


def test_following_the_z_gradient_shrinks_the_logits() -> None:
    logits = torch.full((3, 4), 5.0, requires_grad=True)
    router_z_loss([logits]).backward()
    assert (logits.grad > 0).all()


def test_slots_are_counted_where_they_count_and_empty_ones_nowhere() -> None:
    expert = torch.tensor([[0, 1], [0, 2], [0, 5]])
    assert expert_counts(expert, 5).tolist() == [3, 1, 1, 0, 0]
    assert expert_counts(expert, 5, torch.tensor([1.0, 0.0, 1.0])).tolist() == [2, 1, 0, 0, 0]
    assert expert_counts(expert, 5, torch.zeros(3)).tolist() == [0] * 5


def test_no_tokens_no_loss() -> None:
    logits = torch.zeros(0, 4, requires_grad=True)
    for loss in (load_balance_loss([logits], 2), router_z_loss([logits])):
        assert loss.item() == 0.0


def test_the_words_of_the_configuration_are_those_of_the_table() -> None:
    assert tuple(BALANCE_LOSSES) == ROUTER_BALANCE_LOSSES


@pytest.mark.parametrize("word", BALANCE_LOSSES)
def test_each_loss_is_at_its_least_when_balanced_and_counts_no_padding(word: str) -> None:
    # Two sequences, each of which asks two experts equally; the last token of each is padding that would tip it.
    prob = torch.tensor([[0.9, 0.1], [0.1, 0.9], [0.9, 0.1]]).repeat(2, 1)
    mask = torch.tensor([1.0, 1, 0, 1, 1, 0])
    expert = prob.argmax(dim=-1, keepdim=True)
    loss = BALANCE_LOSSES[word](Routed(prob, expert, 2, mask, lambda count: count))
    assert loss.item() == pytest.approx(0.0 if word == "cv_squared" else 1.0, abs=1e-6)
    assert BALANCE_LOSSES[word](Routed(prob, expert, 2, None, lambda count: count)).item() > loss.item() + 0.01


def test_only_the_loss_of_the_global_batch_pools_its_counts() -> None:
    prob, expert = torch.tensor([[0.9, 0.1]]), torch.tensor([[0]])
    for word, loss in BALANCE_LOSSES.items():
        alone = loss(Routed(prob, expert, 1, None, lambda count: count))
        pooled = loss(Routed(prob, expert, 1, None, lambda count: torch.ones_like(count)))
        assert torch.equal(alone, pooled) == (word != "global_batch")
