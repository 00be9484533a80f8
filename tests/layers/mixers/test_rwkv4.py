"""RWKV-4's time mixing: that of transformers, also in pieces, and an emptied cache that is really empty."""

import pytest
import torch
from transformers import DynamicCache, StaticCache
from transformers.models.rwkv.configuration_rwkv import RwkvConfig
from transformers.models.rwkv.modeling_rwkv import RwkvSelfAttention

from moe_hf import RWKVWithMoEConfig
from moe_hf.layers.caches.states import states_of
from moe_hf.layers.inputs import LayerInputs
from moe_hf.layers.mixers import MIXERS
from moe_hf.layers.mixers.rwkv4 import RWKV4
from moe_hf.ops.sequence.wkv import empty_wkv_state

B, S, D, INNER = 2, 13, 16, 20


def config() -> RWKVWithMoEConfig:
    return RWKVWithMoEConfig(
        hidden_size=D, num_attention_heads=2, num_hidden_layers=2, rwkv_version=4, rwkv_inner_width=INNER
    )


def mixer() -> RWKV4:
    torch.manual_seed(0)
    made = MIXERS["rwkv"](config(), 0)
    assert isinstance(made, RWKV4)
    made.draw_weights(0.3, 0.3)
    with torch.no_grad():
        for parameter in made.parameters():
            parameter += 0.3 * torch.randn_like(parameter)
    return made


def inputs() -> torch.Tensor:
    return torch.randn(B, S, D, generator=torch.Generator().manual_seed(1))


def run(mixer: RWKV4, x: torch.Tensor, cache=None) -> torch.Tensor:
    return mixer(x, LayerInputs(cache=cache))[0]


@torch.no_grad()
def test_it_is_that_of_transformers() -> None:
    ours = mixer()
    theirs = RwkvSelfAttention(RwkvConfig(hidden_size=D, attention_hidden_size=INNER))
    for name in ("time_decay", "time_first", "time_mix_key", "time_mix_value", "time_mix_receptance"):
        target = getattr(theirs, name)
        target.copy_(getattr(ours, name).view_as(target))
    for name, part in {"r_proj": "receptance", "k_proj": "key", "v_proj": "value", "o_proj": "output"}.items():
        getattr(theirs, part).weight.copy_(getattr(ours, name).weight)
    torch.testing.assert_close(run(ours, inputs()), theirs(inputs())[0], rtol=1e-5, atol=1e-6)


@torch.no_grad()
def test_long_inputs_in_stretches_give_the_same(monkeypatch) -> None:
    whole = run(mixer(), inputs())
    monkeypatch.setattr(RWKV4, "stretch_length", 5)
    torch.testing.assert_close(run(mixer(), inputs()), whole, rtol=1e-5, atol=1e-6)


@torch.no_grad()
@pytest.mark.parametrize("static", [False, True])
def test_an_emptied_cache_is_an_empty_one(static: bool) -> None:
    made = mixer()
    cache = StaticCache(config=config(), max_cache_len=32) if static else DynamicCache(config=config())
    first = run(made, inputs(), cache)
    states = states_of(cache, 0)
    assert states is not None
    kept = states.read("memory")
    assert kept is not None
    assert kept.dtype == torch.float32
    cache.reset()
    # The maximum of an empty state is below every key; zeros would be a token with the key 0.
    assert torch.equal(run(made, inputs(), cache), first)
    cache.reset()
    mask = torch.zeros(B, 3, dtype=torch.long)
    made(inputs()[:, :3], LayerInputs(cache=cache, padding_mask=mask))
    assert torch.equal(states.read("memory"), empty_wkv_state(B, INNER))
