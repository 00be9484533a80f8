"""Freezing, recording and replaying routes, and the hash table that fits the data."""

import pytest
import torch

from moe_hf import ConfigError
from moe_hf.models.router_states import routers_of
from moe_hf.models.routes import balance_hash_routers, force_balanced, freeze_routers, record_routes, replay_routes
from moe_hf.ops.load_statistics import load_balance_std


def test_frozen_routers_learn_nothing_until_thawed(tiny_model, token_ids) -> None:
    model = tiny_model().train()
    freeze_routers(model)
    model(token_ids, labels=token_ids).loss.backward()
    assert all(router.weight.grad is None for router in routers_of(model))
    freeze_routers(model, frozen=False)
    model(token_ids, labels=token_ids).loss.backward()
    assert all(router.weight.grad is not None for router in routers_of(model))


def test_forced_balance_is_exact_and_can_be_undone(tiny_model) -> None:
    model = tiny_model()
    ids = torch.randint(3, 61, (2, 8), generator=torch.Generator().manual_seed(0))
    force_balanced(model)
    for expert in model(ids, output_router_logits=True).router_experts:
        assert load_balance_std(expert, 4) == 0
    force_balanced(model, forced=False)
    assert any(load_balance_std(e, 4) > 0 for e in model(ids, output_router_logits=True).router_experts)


def test_a_rollout_s_routes_are_replayed_in_training(tiny_model, token_ids, checkpointed) -> None:
    # The rollout came from other weights: without replay the trained model would route differently.
    old, new = tiny_model(seed=0), tiny_model(seed=1)
    with record_routes(old) as recorded:
        text = old.generate(token_ids, max_new_tokens=6, do_sample=False)
    # The last token was never fed back.
    seen = text[:, :-1]
    assert [layer.shape for layer in recorded.layers] == [(3, 12, 2)] * 2
    new.train()
    free = new(seen, labels=seen)
    with replay_routes(new, recorded.layers):
        checkpointed(new)
        replayed = new(seen, labels=seen)
        replayed.loss.backward()
    for got, wanted, other in zip(replayed.router_experts, recorded.layers, free.router_experts, strict=True):
        assert got.equal(wanted.flatten(0, 1))
        assert not got.equal(other)
    assert all(router.weight.grad.abs().max() > 0 for router in routers_of(new))
    torch.testing.assert_close(new(seen, labels=seen).loss, free.loss)


def test_replaying_a_model_s_own_routes_changes_nothing(tiny_model, token_ids) -> None:
    model = tiny_model()
    with record_routes(model) as recorded:
        expected = model(token_ids).logits
    with replay_routes(model, recorded.layers):
        torch.testing.assert_close(model(token_ids).logits, expected)


def test_misuse_is_named(tiny_model, token_ids) -> None:
    model = tiny_model()
    with record_routes(model) as recorded:
        pass
    with pytest.raises(ConfigError, match="no routes were recorded"):
        _ = recorded.layers
    with record_routes(model) as recorded:
        model(token_ids)
        model(token_ids[:1])
    with pytest.raises(ConfigError, match=r"batches of \[1, 3\] rows"):
        _ = recorded.layers
    with pytest.raises(ConfigError, match="routes of 1 layers for 2 routers"), replay_routes(model, [token_ids]):
        pass
    with pytest.raises(ConfigError, match="no layer is hash-routed"):
        balance_hash_routers(model, torch.ones(61))
    with pytest.raises(ConfigError, match="got 60 token counts; the router's vocabulary has 61 ids"):
        balance_hash_routers(tiny_model(router_type="hash"), torch.ones(60))


def test_the_balanced_hash_spreads_what_the_plain_one_does_not(tiny_model, tmp_path) -> None:
    model = tiny_model(router_type="hash", num_experts_per_tok=1)
    # Few very frequent ids, as words are.
    counts = 1000 / torch.arange(1, 62)
    ids = torch.multinomial(counts, 3000, replacement=True, generator=torch.Generator().manual_seed(0)).view(100, 30)
    plain = load_balance_std(model(ids, output_router_logits=True).router_experts[0], 4)
    balance_hash_routers(model, counts)
    balanced = model(ids, output_router_logits=True).router_experts[0]
    assert load_balance_std(balanced, 4) < 0.1 < plain
    model.save_pretrained(tmp_path)
    again = type(model).from_pretrained(tmp_path)(ids, output_router_logits=True).router_experts[0]
    assert again.equal(balanced)
