"""Patterns of mixers: what they expand to, and what they refuse."""

import pytest

from moe_hf import ConfigError, MambaWithMoEConfig
from moe_hf.config.pattern import mixers_of_layers


@pytest.mark.parametrize(
    ("mixer", "layers", "expected"),
    [
        ("mamba", 3, ["mamba"] * 3),
        ("mamba*2,attention", 6, ["mamba", "mamba", "attention"] * 2),
        (" hyena , none ", 4, ["hyena", "none", "hyena", "none"]),
        (["rwkv", "attention", "rwkv"], 3, ["rwkv", "attention", "rwkv"]),
    ],
)
def test_a_pattern_is_repeated_until_all_layers_have_one(mixer, layers: int, expected: list[str]) -> None:
    assert mixers_of_layers(mixer, layers) == expected


@pytest.mark.parametrize(
    ("mixer", "layers", "told"),
    [
        ("mamba*2,attention", 4, "num_hidden_layers=4"),
        ("mambo", 2, "did you mean 'mamba'"),
        ("", 2, "made of attention"),
        ("mamba*0", 2, "a number behind each"),
        (["mamba"], 2, "2 entries"),
    ],
)
def test_a_pattern_that_does_not_fit_is_refused(mixer, layers: int, told: str) -> None:
    with pytest.raises(ConfigError, match=told):
        mixers_of_layers(mixer, layers)


def test_interleaved_layers_have_a_mixer_or_an_ffn() -> None:
    config = MambaWithMoEConfig(num_hidden_layers=5, mlp_placement="interleaved", mixer="mamba,mamba,attention")
    assert config.mixer_of_layer == ["mamba", "none", "mamba", "none", "attention"]
    assert config.mlp_layer_types == ["none", "sparse", "none", "sparse", "none"]
    assert config.layer_types == ["recurrent"] * 4 + ["full_attention"]


def test_a_layer_without_mixer_and_ffn_is_refused() -> None:
    with pytest.raises(ConfigError, match="an FFN in layer 1 without mixer"):
        MambaWithMoEConfig(num_hidden_layers=2, mixer="mamba,none", mlp_layer_types=["sparse", "none"])
