"""The decoder configuration: what it refuses, what it derives, and that it survives JSON."""

import copy
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoConfig

from moe_hf.base.errors import ConfigError
from moe_hf.config.decoder import MoEDecoderConfig
from moe_hf.config.gpt2_moe import GPT2WithMoEConfig

MakeConfig = Callable[..., GPT2WithMoEConfig]


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("num_experts", 2.0),
        ("num_experts", "4"),
        ("num_experts", True),
        ("hidden_size", None),
        ("tie_word_embeddings", "yes"),
        ("norm_topk_prob", 1),
        ("hidden_act", None),
        ("mlp_layer_types", "sparse"),
        ("mlp_layer_types", ["sparse", 2, "sparse", "dense"]),
        ("mixer", 3),
        ("router_aux_loss_coef", "0.01"),
        ("use_cache", None),
    ],
)
def test_a_value_of_the_wrong_type_is_named_with_its_field(tiny_config: MakeConfig, field: str, value: Any) -> None:
    with pytest.raises(ConfigError) as caught:
        tiny_config(**{field: value})
    assert f"'{field}'" in str(caught.value)
    assert "expected" in str(caught.value)
    assert str(value) in str(caught.value)


def test_lists_are_derived_from_the_number_of_layers(tiny_config: MakeConfig) -> None:
    config = tiny_config(num_hidden_layers=5)
    assert config.mlp_layer_types == ["sparse", "dense", "sparse", "dense", "sparse"]
    assert config.sparse_layers == [0, 2, 4]
    assert config.layer_types == ["full_attention"] * 5
    assert config.mixer_of_layer == ["attention"] * 5


def test_a_short_convolution_gives_the_cache_a_state(tiny_config: MakeConfig) -> None:
    assert tiny_config(mixer_short_conv=3).layer_types == ["attention_with_state"] * 4


@pytest.mark.parametrize(
    "overrides",
    [
        {},
        {"mixer_short_conv": 3, "position_embedding_type": "rotary"},
        {"mlp_layer_types": ["dense", "dense", "sparse", "dense"], "mixer": ["attention"] * 4},
        {"shared_expert_intermediate_size": 16, "norm_topk_prob": False, "router_aux_loss_coef": 0},
        {"eos_token_id": [2, 3], "dtype": "bfloat16", "num_labels": 5},
    ],
)
def test_survives_json(tiny_config: MakeConfig, tmp_path: Path, overrides: dict[str, Any]) -> None:
    config = tiny_config(**overrides)
    config.save_pretrained(tmp_path)
    for back in (
        GPT2WithMoEConfig.from_pretrained(tmp_path),
        AutoConfig.from_pretrained(tmp_path),
        GPT2WithMoEConfig.from_dict(json.loads(config.to_json_string(use_diff=False))),
    ):
        assert type(back) is GPT2WithMoEConfig
        assert _plain(back) == _plain(config)


def _plain(config: GPT2WithMoEConfig) -> dict[str, Any]:
    values = config.to_dict()
    return {name: value for name, value in values.items() if name not in ("transformers_version", "_name_or_path")}


@pytest.mark.parametrize("setting", ["attn_implementation", "experts_implementation"])
def test_the_choice_of_kernels_is_not_saved(tiny_config: MakeConfig, tmp_path: Path, setting: str) -> None:
    tiny_config(**{setting: "eager"}).save_pretrained(tmp_path)
    assert "eager" not in (tmp_path / "config.json").read_text()


def test_a_deep_copy_has_kernels_of_its_own(tiny_config: MakeConfig) -> None:
    config = tiny_config(attn_implementation="sdpa")
    twin = copy.deepcopy(config)
    twin._attn_implementation = "eager"
    assert config._attn_implementation == "sdpa"


def test_the_base_takes_the_names_that_other_models_use() -> None:
    config = MoEDecoderConfig(num_local_experts=3, activation_function="relu", vocab_size=11)
    assert (config.num_experts, config.hidden_act) == (3, "relu")
    assert config.num_local_experts == 3


def test_the_first_sparse_layers_may_be_hash_routed(tiny_config: MakeConfig) -> None:
    config = tiny_config(
        router_num_hash_layers=2, num_hidden_layers=5, mlp_layer_types=["dense", "sparse", "sparse", "dense", "sparse"]
    )
    assert config.router_of_sparse_layer == ["hash", "hash", "top_k"]
    assert config.router_of_layer(4) == "top_k"


def test_each_layer_has_a_kind_of_ffn_be_it_said_or_left_out(tiny_config: MakeConfig) -> None:
    assert tiny_config(num_hidden_layers=3).ffn_of_layer == ["sparse", "dense", "sparse"]
    assert tiny_config(num_hidden_layers=2, mlp_layer_types=["none", "dense"]).ffn_of_layer == ["none", "dense"]
