"""The RWKV family: both versions, with and without attention beside them."""

import pytest
import torch

from moe_hf import RWKVWithMoE, RWKVWithMoEConfig, RWKVWithMoEForSequenceClassification, RWKVWithMoEModel
from moe_hf.layers.ffn.channel_mix import ChannelMix
from moe_hf.layers.mixers.rwkv4 import RWKV4
from moe_hf.layers.mixers.rwkv7 import RWKV7
from tests.models.families import tiny_family


@pytest.mark.parametrize(("kind", "mixer"), [("rwkv4", RWKV4), ("rwkv7", RWKV7)])
def test_every_layer_mixes_time_and_channels(kind: str, mixer: type) -> None:
    model = tiny_family(kind)
    assert isinstance(model, RWKVWithMoE)
    assert all(isinstance(layer.mixer, mixer) and isinstance(layer.mlp, ChannelMix) for layer in model.model.layers)
    assert model.model.embed_norm is not None


@pytest.mark.parametrize("model_class", [RWKVWithMoEModel, RWKVWithMoE, RWKVWithMoEForSequenceClassification])
def test_all_classes_read_the_family_s_configuration_and_keep_rates_in_float32(model_class) -> None:
    assert model_class.config_class is RWKVWithMoEConfig
    assert {"time_decay", "time_first"} <= model_class._keep_in_fp32_modules_strict


def test_the_first_rwkv_layer_gives_its_value_to_all_later_ones() -> None:
    model = tiny_family("rwkv7-attention")
    ids = torch.randint(3, 61, (2, 9), generator=torch.Generator().manual_seed(1))
    values = []
    for layer in model.model.layers:
        layer.register_forward_pre_hook(lambda _, args: values.append(args[1].first_value))
    with torch.no_grad():
        model(ids)
    # Attention stands first and third.
    assert [value is None for value in values] == [True, True, False, False]
    assert values[2] is values[3]
