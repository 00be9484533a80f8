"""The decoder configuration: what it refuses, what it derives, and that it survives JSON."""

import copy
import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoConfig, PreTrainedConfig

from moe_hf.base.errors import ConfigError
from moe_hf.config.decoder import MoEDecoderConfig
from moe_hf.config.gpt2_moe import GPT2WithMoEConfig

MakeConfig = Callable[..., GPT2WithMoEConfig]

WRONG = [
    # field, value, a part of the text that says what is allowed
    *[
        (name, value, "an integer >= 1")
        for name in (
            "vocab_size",
            "hidden_size",
            "num_hidden_layers",
            "num_attention_heads",
            "intermediate_size",
            "max_position_embeddings",
            "num_experts",
            "num_experts_per_tok",
            "moe_intermediate_size",
        )
        for value in (0, -1)
    ],
    *[
        (name, -1, "an integer >= 0")
        for name in ("mixer_short_conv", "shared_expert_intermediate_size", "expert_init_seed")
    ],
    ("hidden_size", 34, "a multiple of num_attention_heads=4"),
    ("num_experts_per_tok", 5, "at most num_experts=4"),
    ("position_embedding_type", "alibi", "one of learned, rotary"),
    ("router_type", "hahs", "one of top_k, switch, sigmoid_bias, hash, expert_choice, expert_threshold"),
    ("router_balance_loss", "gshard", "one of batch, global_batch, sequence, cv_squared"),
    ("router_drop_policy", "random", "one of position, weight"),
    ("router_capacity_factor", 0, "None or a finite number > 0"),
    ("router_eval_capacity_factor", -1.0, "None or a finite number > 0"),
    ("router_num_hash_layers", -1, "an integer >= 0"),
    ("router_scale", 0.0, "a finite number > 0"),
    ("router_threshold_decay", 1.0, "a number in [0, 1)"),
    ("router_bias_update_speed", -0.1, "a finite number >= 0"),
    ("expert_init", "split", "one of copy, noise, drop"),
    ("router_init", "ones", "one of random, zero"),
    ("hidden_act", "gelu_newer", "gelu_new"),
    ("mixer", "attn", "attention"),
    ("mixer", ["attention"], "4 entries"),
    ("mixer", ["attention"] * 3 + ["mambo"], "did you mean 'mamba'"),
    ("mixer", "mamba*3,attention,mamba", "whole number of times"),
    ("mixer", "mamba*x", "a number"),
    ("mlp_layer_types", ["sparse"] * 3, "4 entries"),
    ("mlp_layer_types", [], "4 entries"),
    ("mlp_layer_types", ["sparse", "dense", "moe", "dense"], "sparse, dense"),
    ("layer_types", ["full_attention"] * 3, "full_attention"),
    ("layer_types", ["recurrent"] * 4, "full_attention"),
    *[
        (name, value, "a finite number >= 0")
        for name in ("router_aux_loss_coef", "router_z_loss_coef", "expert_init_noise")
        for value in (-0.1, math.nan, math.inf)
    ],
    *[
        (name, value, "a number in [0, 1)")
        for name in ("router_jitter_noise", "attention_dropout", "resid_dropout", "embd_dropout")
        for value in (-0.1, 1.0, math.nan)
    ],
    *[
        (name, value, "a finite number > 0")
        for name in ("layer_norm_epsilon", "initializer_range", "rope_theta")
        for value in (0.0, -1.0, math.inf)
    ],
    ("expert_init_drop_ratio", 1.1, "a number in [0, 1]"),
    ("expert_init_drop_ratio", -0.1, "a number in [0, 1]"),
]


@pytest.mark.parametrize(("field", "value", "allowed"), WRONG)
def test_a_wrong_value_is_named_with_its_field_and_what_is_allowed(
    tiny_config: MakeConfig, field: str, value: Any, allowed: str
) -> None:
    with pytest.raises(ConfigError) as caught:
        tiny_config(**{field: value})
    text = str(caught.value)
    assert text.startswith(f"{field}={value!r} is not allowed; it must be ")
    assert allowed in text


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


def test_rotary_positions_need_heads_of_even_width(tiny_config: MakeConfig) -> None:
    with pytest.raises(ConfigError, match=r"hidden_size=20 .* an even multiple of num_attention_heads=4"):
        tiny_config(position_embedding_type="rotary", hidden_size=20)
    assert tiny_config(position_embedding_type="learned", hidden_size=20).head_dim == 5


@pytest.mark.parametrize(
    ("given", "meant"), [("num_expert", "num_experts"), ("router_aux_loss_coeff", "router_aux_loss_coef")]
)
def test_a_misspelt_field_names_the_nearest(tiny_config: MakeConfig, given: str, meant: str) -> None:
    with pytest.raises(ConfigError, match=f"unknown field '{given}'; did you mean '{meant}'"):
        tiny_config(**{given: 1})


@pytest.mark.parametrize("name", ["auto_map", "_name_or_path", "transformers_version", "something_else"])
def test_foreign_keys_of_a_hub_config_are_kept(tiny_config: MakeConfig, name: str) -> None:
    assert getattr(tiny_config(**{name: "x"}), name) == "x"


@pytest.mark.parametrize(
    ("dtype", "width", "fits"),
    [
        ("float32", 12, True),
        ("float32", 10, False),
        ("bfloat16", 16, True),
        ("bfloat16", 12, False),
        ("float16", 12, False),
    ],
)
@pytest.mark.parametrize("field", ["hidden_size", "moe_intermediate_size"])
def test_grouped_mm_by_name_needs_rows_of_sixteen_bytes(
    tiny_config: MakeConfig, field: str, dtype: str, width: int, fits: bool
) -> None:
    fields = {field: width, "num_attention_heads": 2, "dtype": dtype, "experts_implementation": "grouped_mm"}
    if fits:
        tiny_config(**fields)
        return
    with pytest.raises(ConfigError, match=rf"{field}={width} .* a multiple of \d for grouped_mm .*leave experts"):
        tiny_config(**fields)


@pytest.mark.parametrize("other", [{"experts_implementation": "eager"}, {}, {"mlp_layer_types": ["dense"] * 4}])
def test_odd_widths_are_fine_without_grouped_mm(tiny_config: MakeConfig, other: dict[str, Any]) -> None:
    assert tiny_config(hidden_size=12, dtype="bfloat16", **other).hidden_size == 12


def test_a_dense_twin_may_have_any_width_with_any_backend(tiny_config: MakeConfig) -> None:
    shape = {"hidden_size": 10, "num_attention_heads": 2, "mlp_layer_types": ["dense"] * 4}
    assert tiny_config(**shape, experts_implementation="grouped_mm").hidden_size == 10


def test_lists_are_derived_from_the_number_of_layers(tiny_config: MakeConfig) -> None:
    config = tiny_config(num_hidden_layers=5)
    assert config.mlp_layer_types == ["sparse", "dense", "sparse", "dense", "sparse"]
    assert config.sparse_layers == [0, 2, 4]
    assert config.layer_types == ["full_attention"] * 5
    assert config.mixer_of_layer == ["attention"] * 5


def test_a_short_convolution_gives_the_cache_a_state(tiny_config: MakeConfig) -> None:
    assert tiny_config(mixer_short_conv=3).layer_types == ["attention_with_state"] * 4


def test_widths_are_derived(tiny_config: MakeConfig) -> None:
    config = tiny_config(intermediate_size=None)
    assert (config.intermediate_size, config.moe_intermediate_size) == (128, 128)
    config = tiny_config(intermediate_size=40)
    assert (config.intermediate_size, config.moe_intermediate_size) == (40, 40)
    config = tiny_config(intermediate_size=40, moe_intermediate_size=24)
    assert (config.intermediate_size, config.moe_intermediate_size) == (40, 24)


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


def test_overrides_of_a_saved_configuration_are_validated(tiny_config: MakeConfig, tmp_path: Path) -> None:
    tiny_config().save_pretrained(tmp_path)
    with pytest.raises(ConfigError, match="num_experts_per_tok=9"):
        GPT2WithMoEConfig.from_pretrained(tmp_path, num_experts_per_tok=9)
    with pytest.raises(ConfigError, match="mlp_layer_types"):
        GPT2WithMoEConfig.from_pretrained(tmp_path, mlp_layer_types=["sparse"] * 2)


def test_a_usual_list_of_ffns_follows_the_number_of_layers_and_their_placement(
    tiny_config: MakeConfig, tmp_path: Path
) -> None:
    tiny_config().save_pretrained(tmp_path)
    assert GPT2WithMoEConfig.from_pretrained(tmp_path, num_hidden_layers=2).mlp_layer_types == ["sparse", "dense"]
    moved = GPT2WithMoEConfig.from_pretrained(tmp_path, mlp_placement="interleaved")
    assert moved.mlp_layer_types == ["none", "sparse"] * 2
    tiny_config(mlp_layer_types=["dense", "sparse", "sparse", "dense"]).save_pretrained(tmp_path)
    with pytest.raises(ConfigError, match="2 entries"):
        GPT2WithMoEConfig.from_pretrained(tmp_path, num_hidden_layers=2)


def test_a_saved_configuration_is_read_by_transformers_base_class_and_from_older_files(
    tiny_config: MakeConfig, tmp_path: Path
) -> None:
    # Trainer resumes through the base class, which refuses names of layer types that it does not know.
    tiny_config(mixer_short_conv=3).save_pretrained(tmp_path)
    PreTrainedConfig.from_json_file(tmp_path / "config.json")
    old = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**old, "layer_types": ["hybrid"] * 4}))
    assert GPT2WithMoEConfig.from_pretrained(tmp_path).layer_types == ["attention_with_state"] * 4


def test_an_override_under_an_alias_wins_over_the_saved_value(tiny_config: MakeConfig, tmp_path: Path) -> None:
    tiny_config().save_pretrained(tmp_path)
    config = GPT2WithMoEConfig.from_pretrained(tmp_path, num_local_experts=7, n_positions=99)
    assert (config.num_experts, config.max_position_embeddings) == (7, 99)


@pytest.mark.parametrize("dtype", ["bfloat16", torch.bfloat16])
def test_half_precision_by_name_or_by_type_needs_the_same_widths(tiny_config: MakeConfig, dtype: Any) -> None:
    with pytest.raises(ConfigError, match="a multiple of 8"):
        tiny_config(hidden_size=12).require_grouped_mm_widths(dtype)
    tiny_config(hidden_size=12).require_grouped_mm_widths(torch.float32)


def test_overriding_what_a_list_was_derived_from_derives_it_again(tiny_config: MakeConfig, tmp_path: Path) -> None:
    tiny_config().save_pretrained(tmp_path)
    assert GPT2WithMoEConfig.from_pretrained(tmp_path, mixer_short_conv=2).layer_types == ["attention_with_state"] * 4
    deeper = GPT2WithMoEConfig.from_pretrained(tmp_path, num_hidden_layers=2, mlp_layer_types=["sparse"] * 2)
    assert deeper.layer_types == ["full_attention"] * 2


def test_unused_overrides_come_back(tiny_config: MakeConfig, tmp_path: Path) -> None:
    tiny_config().save_pretrained(tmp_path)
    config, unused = GPT2WithMoEConfig.from_pretrained(
        tmp_path, num_experts=6, device_map="cpu", return_unused_kwargs=True
    )
    assert config.num_experts == 6
    assert unused == {"device_map": "cpu"}


def test_labels_are_set_by_their_number(tiny_config: MakeConfig, tmp_path: Path) -> None:
    tiny_config().save_pretrained(tmp_path)
    assert len(GPT2WithMoEConfig.from_pretrained(tmp_path, num_labels=5).id2label) == 5


def test_a_deep_copy_has_kernels_of_its_own(tiny_config: MakeConfig) -> None:
    config = tiny_config(attn_implementation="sdpa")
    twin = copy.deepcopy(config)
    twin._attn_implementation = "eager"
    assert config._attn_implementation == "sdpa"


def test_the_base_takes_the_names_that_other_models_use() -> None:
    config = MoEDecoderConfig(num_local_experts=3, activation_function="relu", vocab_size=11)
    assert (config.num_experts, config.hidden_act) == (3, "relu")
    assert config.num_local_experts == 3


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"router_type": "switch", "num_experts_per_tok": 2}, 'exactly 1 with router_type="switch"'),
        ({"router_type": "hash", "num_experts_per_tok": 3}, "at most 2 with router_type"),
        ({"router_type": "expert_choice", "router_eval_capacity_factor": 1.0}, "None with expert_choice"),
        ({"router_type": "sigmoid_bias", "router_num_groups": 3}, "a divisor of 4 experts"),
        ({"router_type": "sigmoid_bias", "router_num_groups": 2, "router_groups_per_tok": 3}, r"in \[1, 2\]"),
        (
            {"router_type": "sigmoid_bias", "router_num_groups": 4, "num_experts_per_tok": 2},
            "at most 1, the experts of the groups",
        ),
    ],
)
def test_routers_say_what_does_not_fit_them(tiny_config: MakeConfig, fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        tiny_config(**fields)


def test_the_balance_loss_of_a_router_that_balances_itself_is_small(tiny_config: MakeConfig, tmp_path: Path) -> None:
    assert tiny_config().router_aux_loss_coef == 0.01
    config = tiny_config(router_type="sigmoid_bias")
    assert config.router_aux_loss_coef == 1e-4
    config.save_pretrained(tmp_path)
    # A weight that was derived follows the router; one that was chosen stays.
    assert GPT2WithMoEConfig.from_pretrained(tmp_path, router_type="top_k").router_aux_loss_coef == 0.01
    tiny_config(router_aux_loss_coef=0.3).save_pretrained(tmp_path)
    assert GPT2WithMoEConfig.from_pretrained(tmp_path, router_type="sigmoid_bias").router_aux_loss_coef == 0.3


def test_the_first_sparse_layers_may_be_hash_routed(tiny_config: MakeConfig) -> None:
    config = tiny_config(
        router_num_hash_layers=2, num_hidden_layers=5, mlp_layer_types=["dense", "sparse", "sparse", "dense", "sparse"]
    )
    assert config.router_of_sparse_layer == ["hash", "hash", "top_k"]
    assert config.router_of_layer(4) == "top_k"
