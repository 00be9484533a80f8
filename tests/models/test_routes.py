"""Freezing, recording and replaying routes, and the hash table that fits the data."""

import pytest
import torch

from moe_hf import ConfigError
from moe_hf.models.router_states import routers_of
from moe_hf.models.routes import balance_hash_routers, force_balanced, freeze_routers, record_routes, replay_routes
from moe_hf.ops.routing.load_statistics import load_balance_std


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
    with record_routes(model):
        model(token_ids)
        with pytest.raises(ConfigError, match="3 rows are recorded, but this forward has 1"):
            model(token_ids[:1])
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


class TestWhatCannotBeJoined:
    """Routes are put side by side only where each forward continues the text of the one before."""

    @pytest.mark.parametrize(
        "how",
        [
            {},
            {"cache_implementation": "static"},
            {"num_return_sequences": 2, "do_sample": True},
            {"prefill_chunk_size": 3},
        ],
        ids=lambda how: "-".join(how) or "greedy",
    )
    def test_a_generation_s_routes_are_those_of_its_text(self, tiny_model, token_ids, how) -> None:
        model = tiny_model()
        with record_routes(model) as recorded:
            text = model.generate(token_ids, **{"max_new_tokens": 6, "do_sample": False, "eos_token_id": None, **how})
        with record_routes(model) as whole:
            model(text[:, :-1])
        for got, wanted in zip(recorded.layers, whole.layers, strict=True):
            assert got.equal(wanted)

    def test_a_forward_that_does_not_continue_the_text(self, tiny_model, token_ids) -> None:
        model = tiny_model()
        with record_routes(model) as recorded:
            model(token_ids)
            with pytest.raises(ConfigError, match="7 positions are recorded, but this forward comes after 0"):
                model(token_ids)
        # What was recorded before stays as it was.
        assert [layer.shape for layer in recorded.layers] == [(3, 7, 2)] * 2

    def test_a_cache_that_was_filled_before(self, tiny_model, token_ids) -> None:
        model = tiny_model()
        cache = model(token_ids, use_cache=True).past_key_values
        with record_routes(model), pytest.raises(ConfigError, match=r"0 positions are recorded, .* comes after 7"):
            model(token_ids[:, :1], past_key_values=cache)

    def test_a_cache_of_another_text(self, tiny_model, token_ids) -> None:
        model = tiny_model()
        other = model(token_ids.flip(1), use_cache=True).past_key_values
        with record_routes(model):
            model(token_ids, use_cache=True)
            with pytest.raises(ConfigError, match=r"another cache than the 7 positions"):
                model(token_ids[:, :1], past_key_values=other)

    def test_a_model_without_routers_has_no_routes(self, tiny_model, token_ids) -> None:
        model = tiny_model(mlp_layer_types=["dense"] * 4)
        with record_routes(model) as recorded:
            model.generate(token_ids, max_new_tokens=3, do_sample=False, eos_token_id=None)
        assert recorded.layers == []

    def test_a_skeleton_called_by_position(self, tiny_model, token_ids) -> None:
        skeleton = tiny_model().model
        with record_routes(skeleton) as recorded:
            cache = skeleton(token_ids[:, :4], use_cache=True).past_key_values
            skeleton(None, None, None, cache, skeleton.embed_tokens(token_ids[:, 4:]), use_cache=True)
            with pytest.raises(ConfigError, match="3 rows are recorded, but this forward has 2"):
                skeleton(None, None, None, cache, skeleton.embed_tokens(token_ids[:2]))
            with pytest.raises(ConfigError, match="comes after 0"):
                skeleton(token_ids)
        assert [layer.shape for layer in recorded.layers] == [(3, 7, 2)] * 2

    def test_outputs_that_are_a_plain_tuple(self, tiny_model, token_ids) -> None:
        skeleton = tiny_model().model
        with record_routes(skeleton), pytest.raises(ConfigError, match="return_dict=False leaves no room"):
            skeleton(token_ids, return_dict=False)

    def test_generation_without_a_cache(self, tiny_model, token_ids) -> None:
        model = tiny_model()
        with record_routes(model), pytest.raises(ConfigError, match=r"comes after 0.*use_cache=True"):
            model.generate(token_ids, max_new_tokens=3, do_sample=False, use_cache=False)

    @pytest.mark.parametrize("new_tokens", [1, 4])
    def test_beam_search(self, tiny_model, token_ids, new_tokens) -> None:
        model = tiny_model()
        cache = model.model.new_cache()
        with record_routes(model), pytest.raises(ConfigError, match=r"beam search .* cannot be recorded; sample"):
            model.generate(token_ids, max_new_tokens=new_tokens, num_beams=2, do_sample=False, past_key_values=cache)
        # The cache itself is as it was.
        cache.reorder_cache(torch.arange(6))

    @pytest.mark.parametrize("new_tokens", [3, 12])
    def test_prompt_lookup(self, tiny_model, new_tokens) -> None:
        model = tiny_model()
        ids = torch.tensor([[5, 6, 7, 8, 5, 6, 7, 8, 5, 6]])
        generate = {"max_new_tokens": new_tokens, "do_sample": False, "eos_token_id": None}
        with pytest.raises(ConfigError, match="positions are recorded, but"), record_routes(model):
            model.generate(ids, prompt_lookup_num_tokens=3, **generate)

    def test_a_cache_that_was_cut_back_last(self, tiny_model, token_ids) -> None:
        model = tiny_model()
        cache = model.model.new_cache()
        recording = record_routes(model)
        recording.__enter__()
        model(token_ids, past_key_values=cache, use_cache=True)
        cache.crop(-2)
        with pytest.raises(ConfigError, match="7 positions are recorded, but the cache holds 5"):
            recording.__exit__(None, None, None)
        # Nothing watches any more.
        model(token_ids)

    def test_layers_that_run_twice_count_once(self, tiny_model, token_ids, checkpointed) -> None:
        model = tiny_model()
        with record_routes(model) as expected:
            model(token_ids)
        checkpointed(model).train()
        with record_routes(model) as recorded:
            model(token_ids, labels=token_ids).loss.backward()
        for got, wanted in zip(recorded.layers, expected.layers, strict=True):
            assert got.equal(wanted)

    def test_nothing_is_left_behind(self, tiny_model, token_ids) -> None:
        model = tiny_model()
        with record_routes(model) as recorded:
            model(token_ids)
        assert model(token_ids).router_experts is None
        assert recorded.layers[0].shape == (3, 7, 2)

    def test_a_model_of_another_kind(self) -> None:
        with pytest.raises(ConfigError, match="got a Linear"), record_routes(torch.nn.Linear(2, 2)):
            pass


@pytest.mark.parametrize(
    ("change", "text"),
    [
        (lambda layers: [layers[0].flatten(0, 1), layers[1]], r"shape \(21, 2\) and torch\.int64 for router 0"),
        (lambda layers: [layers[0], layers[1][:, :5]], r"routes of \(3, 7\) and of \(3, 5\) tokens"),
        (lambda layers: [layers[0], layers[1] + 3], r"experts from 3 to 6 for router 1.*\[0, 4\]"),
        (lambda layers: [layers[0] - 1, layers[1]], r"experts from -1 to 2 for router 0"),
        (lambda layers: [layers[0], layers[1].float()], r"torch\.float32 for router 1"),
    ],
    ids=["flat", "lengths", "above", "below", "float"],
)
def test_routes_that_do_not_fit_are_refused_before_any_forward(tiny_model, change, text) -> None:
    model = tiny_model()
    layers = change([torch.arange(42).view(3, 7, 2) % 4, torch.arange(42).view(3, 7, 2) % 4])
    with pytest.raises(ConfigError, match=text), replay_routes(model, layers):
        pass
    assert all(router.fixed_expert_TK is None for router in routers_of(model))


def test_empty_slots_may_be_replayed(tiny_model, token_ids) -> None:
    model = tiny_model()
    empty = torch.full((3, 7, 2), 4)
    with replay_routes(model, [empty, empty]):
        experts = model(token_ids, output_router_logits=True).router_experts
    assert all(expert.eq(4).all() for expert in experts)
