"""Named states in transformers' caches: kept, counted, rearranged, emptied, moved, and refused where they cannot be."""

import pytest
import torch
from transformers import DynamicCache, StaticCache
from transformers.cache_utils import DYNAMIC_LAYER_TYPE_MAPPING, STATIC_LAYER_TYPE_MAPPING, StaticLayer

from moe_hf import ConfigError, MambaWithMoEConfig
from moe_hf.layers.caches.states import (
    StateLayer,
    StaticStateLayer,
    add_layer_type,
    advance,
    claim_layer_types,
    detach_states,
    states_of,
)
from tests.models.families import tiny_family


@pytest.fixture
def config() -> MambaWithMoEConfig:
    return MambaWithMoEConfig(
        hidden_size=32, num_hidden_layers=2, num_attention_heads=4, mixer="mamba,attention", mamba_head_dim=16
    )


@pytest.fixture
def state() -> torch.Tensor:
    return torch.arange(6.0).view(3, 2)


def test_a_state_is_absent_until_it_is_written(config, state) -> None:
    states = states_of(DynamicCache(config=config), 0)
    assert states.read("state") is None
    states.write("state", state)
    assert states.read("state") is state


def test_no_cache_has_no_states() -> None:
    assert states_of(None, 0) is None


def test_a_layer_of_keys_and_values_has_no_place_for_states(config) -> None:
    with pytest.raises(ConfigError, match="no place for the state of layer 1"):
        states_of(DynamicCache(config=config), 1)


def test_tokens_are_counted_where_there_are_no_keys(config) -> None:
    for cache in (DynamicCache(config=config), StaticCache(config, max_cache_len=9)):
        advance(cache, 4)
        advance(cache, 1)
        assert int(cache.get_seq_length()) == 5
        cache.reset()
        assert int(cache.get_seq_length()) == 0


def test_rows_follow_beams(config, state) -> None:
    cache = DynamicCache(config=config)
    states_of(cache, 0).write("state", state)
    cache.reorder_cache(torch.tensor([2, 0, 0]))
    assert states_of(cache, 0).read("state").equal(state[[2, 0, 0]])


def test_emptying_forgets_states_instead_of_zeroing_them(config, state) -> None:
    # RWKV-4's running maximum is empty at -1e38; a zero would be a weight.
    cache = DynamicCache(config=config)
    states_of(cache, 0).write("state", state)
    cache.reset()
    assert states_of(cache, 0).read("state") is None
    assert state.max() == 5


def test_a_static_state_keeps_its_place(config, state) -> None:
    states = states_of(StaticCache(config, max_cache_len=9), 0)
    states.write("state", state)
    place = states.read("state").data_ptr()
    states.write("state", state + 1)
    assert states.read("state").data_ptr() == place
    assert states.read("state").equal(torch.arange(6.0).view(3, 2) + 1)
    assert state.equal(torch.arange(6.0).view(3, 2))


def test_detaching_cuts_the_gradient(config, state) -> None:
    cache = DynamicCache(config=config)
    states_of(cache, 0).write("state", state.requires_grad_() * 2)
    detach_states(cache)
    assert not states_of(cache, 0).read("state").requires_grad


def test_a_state_cannot_be_cropped_or_hold_keys(config) -> None:
    cache = DynamicCache(config=config)
    assert not cache.is_croppable
    with pytest.raises(ConfigError, match="assisted decoding"):
        cache.crop(1)
    with pytest.raises(ConfigError, match="keeps no keys and values"):
        cache.update(torch.zeros(1, 1, 1, 1), torch.zeros(1, 1, 1, 1), 0)


def test_moving_a_layer_away_and_back_keeps_its_state(config, state) -> None:
    layer = DynamicCache(config=config).layers[0]
    layer.write("state", state)
    layer.offload()
    layer.prefetch()
    assert layer.read("state").equal(state)


@pytest.fixture
def taken(monkeypatch: pytest.MonkeyPatch) -> None:
    """The names of the layer types belong to somebody else, as after loading an exported model's copy of this file."""
    for name in ("recurrent", "history"):
        monkeypatch.setitem(DYNAMIC_LAYER_TYPE_MAPPING, name, StaticLayer)
        monkeypatch.setitem(STATIC_LAYER_TYPE_MAPPING, name, StaticLayer)


@pytest.mark.usefixtures("taken")
@pytest.mark.parametrize("kind", ["retnet", "hyena", "rwkv7"])
def test_generation_makes_caches_of_this_copy(kind: str) -> None:
    model = tiny_family(kind)
    ids = torch.tensor([[5, 3, 9, 4]])
    options = {"max_new_tokens": 4, "do_sample": False, "pad_token_id": 0}
    uncached = model.generate(ids, use_cache=False, **options)
    for more in ({}, {"cache_implementation": "static"}):
        assert torch.equal(model.generate(ids, **options, **more), uncached)


@pytest.mark.usefixtures("taken")
def test_a_new_cache_is_of_this_copy() -> None:
    cache = tiny_family("retnet").model.new_cache()
    assert {type(layer) for layer in cache.layers} == {StateLayer}
    assert STATIC_LAYER_TYPE_MAPPING["recurrent"] is StaticStateLayer


def test_a_layer_type_that_was_added_can_be_claimed_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("moe_hf.layers.caches.states._LAYER_TYPES", {})
    for table in (DYNAMIC_LAYER_TYPE_MAPPING, STATIC_LAYER_TYPE_MAPPING):
        monkeypatch.setitem(table, "test_added", StaticLayer)
    add_layer_type("test_added", StateLayer, StaticStateLayer)
    assert DYNAMIC_LAYER_TYPE_MAPPING["test_added"] is StateLayer
    DYNAMIC_LAYER_TYPE_MAPPING["test_added"] = StaticLayer
    claim_layer_types()
    assert DYNAMIC_LAYER_TYPE_MAPPING["test_added"] is StateLayer
    assert STATIC_LAYER_TYPE_MAPPING["test_added"] is StaticStateLayer
