"""What both versions of RWKV share: the token shift, the first layer, where a layer stands."""

import pytest
import torch

from moe_hf import RWKVWithMoEConfig
from moe_hf.layers.inputs import LayerInputs
from moe_hf.layers.mixers import MIXERS
from moe_hf.layers.mixers.rwkv import RWKVState, channel_ramp, depth_of

D, H = 8, 2


@pytest.mark.parametrize(("mixer", "first"), [("rwkv", 0), ("attention,rwkv,rwkv,rwkv", 1)])
def test_the_first_rwkv_layer_gives_its_value_to_the_later_ones(mixer: str, first: int) -> None:
    config = RWKVWithMoEConfig(hidden_size=D, num_attention_heads=H, num_hidden_layers=4, mixer=mixer)
    for layer in range(first, 4):
        assert (MIXERS["rwkv"](config, layer).v_lora is None) == (layer == first)


@pytest.mark.parametrize("version", [4, 7])
def test_the_table_knows_both_versions(version: int) -> None:
    config = RWKVWithMoEConfig(hidden_size=D, num_attention_heads=H, num_hidden_layers=2, rwkv_version=version)
    assert type(MIXERS["rwkv"](config, 0)).__name__ == f"RWKV{version}"


def test_the_token_before_comes_from_the_last_call_and_is_kept_by_itself() -> None:
    config = RWKVWithMoEConfig(hidden_size=D, num_attention_heads=H, num_hidden_layers=2)
    mixer, x_BSD = MIXERS["rwkv"](config, 0), torch.randn(2, 5, D)
    shifted_BSD, last = mixer.shifted(x_BSD, LayerInputs(), RWKVState(time_mix_last=torch.ones(2, 1, D)))
    assert shifted_BSD.equal(torch.cat([torch.ones(2, 1, D), x_BSD[:, :-1]], dim=1))
    assert last.equal(x_BSD[:, -1:])
    assert last.untyped_storage().nbytes() < x_BSD.untyped_storage().nbytes()


def test_depth_goes_from_the_first_layer_to_the_last() -> None:
    config = RWKVWithMoEConfig(hidden_size=D, num_attention_heads=H, num_hidden_layers=5)
    assert [depth_of(config, layer) for layer in (0, 2, 4)] == [(0.0, 1.0), (0.5, 0.6), (1.0, pytest.approx(0.2))]
    assert channel_ramp(torch.zeros(4)).tolist() == [0, 0.25, 0.5, 0.75]
