"""A decoder's configuration refuses wrong values by name, and its words are those that the layers' tables have."""

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch

from moe_hf.base.errors import ConfigError
from moe_hf.base.optional import OPTIONAL_PACKAGES
from moe_hf.config import validation
from moe_hf.config.decoder import MoEDecoderConfig
from moe_hf.config.gpt2_moe import GPT2WithMoEConfig
from moe_hf.config.pattern import MIXER_NAMES
from moe_hf.layers.experts.activations import activation
from moe_hf.layers.ffn import FFNS
from moe_hf.layers.ffn.routers import ROUTERS
from moe_hf.layers.mixers import MIXERS
from moe_hf.models.dense.expert_init import EXPERT_MAKERS

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


def test_rotary_positions_need_heads_of_even_width(tiny_config: MakeConfig) -> None:
    with pytest.raises(ConfigError, match=r"hidden_size=20 .* an even multiple of num_attention_heads=4"):
        tiny_config(position_embedding_type="rotary", hidden_size=20)
    assert tiny_config(position_embedding_type="learned", hidden_size=20).head_dim == 5


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


@pytest.mark.parametrize("dtype", ["bfloat16", torch.bfloat16])
def test_half_precision_by_name_or_by_type_needs_the_same_widths(tiny_config: MakeConfig, dtype: Any) -> None:
    with pytest.raises(ConfigError, match="a multiple of 8"):
        tiny_config(hidden_size=12).require_grouped_mm_widths(dtype)
    tiny_config(hidden_size=12).require_grouped_mm_widths(torch.float32)


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


@pytest.mark.parametrize(
    ("words", "table"),
    [
        (validation.ROUTER_TYPES, ROUTERS),
        (MIXER_NAMES, [*MIXERS, "none"]),
        (validation.FFN_LAYER_TYPES, [*FFNS, "none"]),
        (validation.EXPERT_INITS, EXPERT_MAKERS),
        (validation.MIXER_BACKENDS, ["auto", "torch", *(set(OPTIONAL_PACKAGES) & {"fla", "mamba_ssm"})]),
    ],
    ids=["routers", "mixers", "ffns", "expert_init", "backends"],
)
def test_the_words_are_those_of_the_tables_that_know_them(words, table) -> None:
    assert sorted(words) == sorted(table)


@pytest.mark.parametrize("words", [validation.ROUTER_TYPES, validation.ROUTER_BALANCE_LOSSES])
def test_the_docstring_of_the_configuration_says_what_each_word_means(words) -> None:
    assert [word for word in words if f'"{word}"' not in str(MoEDecoderConfig.__doc__)] == []


def test_every_activation_that_is_allowed_can_be_made(tiny_config: MakeConfig) -> None:
    with pytest.raises(ConfigError, match="it must be one of") as caught:
        tiny_config(hidden_act="no such")
    allowed = str(caught.value).partition("one of ")[2].split(", ")
    assert {"gelu_new", "silu", "relu2"} <= set(allowed)
    assert all(callable(activation(name)) for name in allowed)
