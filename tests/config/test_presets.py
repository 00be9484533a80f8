"""The named sizes: their dimensions, their parameter counts, and overrides."""

from pathlib import Path
from typing import Any

import pytest

from moe_hf.base.errors import ConfigError
from moe_hf.config.presets import PRESETS, create_moe_config
from moe_hf.models.info import get_moe_model_info
from moe_hf.training.runs.recipes import RECIPES

# context, width, layers, heads, ffn; total and active parameters in millions with 16 experts
SEED_SIZES = {
    "500m": ((1024, 1024, 8, 16, 4096), 657.0, 186.9),
    "1b": ((1024, 1280, 12, 20, 5120), 1482.1, 380.6),
    "2b": ((2048, 1536, 16, 24, 6144), 2799.7, 684.9),
}
TRUE_SIZES = {
    "500m-active": ((1280, 16, 20, 5120), 500),
    "1b-active": ((1536, 24, 24, 6144), 1000),
    "2b-active": ((2048, 28, 32, 8192), 2000),
}


@pytest.mark.parametrize("size", SEED_SIZES)
def test_seed_sizes_have_their_dimensions_and_exact_counts(size: str) -> None:
    config = create_moe_config(size)
    shape, total_m, active_m = SEED_SIZES[size]
    assert (
        config.max_position_embeddings,
        config.hidden_size,
        config.num_hidden_layers,
        config.num_attention_heads,
        config.intermediate_size,
    ) == shape
    assert (config.num_experts, config.num_experts_per_tok, config.vocab_size) == (16, 2, 50257)
    assert config.tie_word_embeddings
    assert config.sparse_layers == list(range(0, shape[2], 2))
    info = get_moe_model_info(config)
    assert (round(info["total_params_m"], 1), round(info["active_params_m"], 1)) == (total_m, active_m)
    assert info["expert_utilization"] == "12.5%"


@pytest.mark.parametrize("size", TRUE_SIZES)
def test_size_true_presets_are_within_three_percent_of_their_name(size: str) -> None:
    config = create_moe_config(size)
    shape, millions = TRUE_SIZES[size]
    assert (
        config.hidden_size,
        config.num_hidden_layers,
        config.num_attention_heads,
        config.intermediate_size,
    ) == shape
    assert (config.num_experts, config.num_experts_per_tok) == (16, 2)
    assert get_moe_model_info(config)["active_params_m"] == pytest.approx(millions, rel=0.03)


@pytest.mark.parametrize("size", list(PRESETS))
def test_the_table_s_counts_are_the_true_ones(size: str) -> None:
    info = get_moe_model_info(create_moe_config(size))
    assert PRESETS[size].total_m == round(info["total_params_m"], 1)
    assert PRESETS[size].active_m == round(info["active_params_m"], 1)


def test_every_size_has_a_recipe_and_a_run_file() -> None:
    folder = Path(__file__).parents[2] / "configs"
    assert list(RECIPES) == list(PRESETS)
    assert {path.stem for path in folder.glob("*.yaml")} == set(PRESETS)


def test_the_sizes_are_the_promised_ones() -> None:
    assert list(PRESETS) == ["tiny", *SEED_SIZES, *TRUE_SIZES]


@pytest.mark.parametrize(("flash", "implementation"), [(True, "sdpa"), (False, "eager")])
def test_flash_attention_is_a_choice_of_kernel(flash: bool, implementation: str) -> None:
    assert create_moe_config("tiny", use_flash_attention=flash)._attn_implementation == implementation
    assert create_moe_config("tiny", flash, attn_implementation="eager")._attn_implementation == "eager"


def test_a_kernel_by_name_wins() -> None:
    config = create_moe_config("tiny", attn_implementation="flash_attention_3", experts_implementation="batched_mm")
    assert (config._attn_implementation, config._experts_implementation) == ("flash_attention_3", "batched_mm")


@pytest.mark.parametrize(
    ("overrides", "expected"),
    [
        ({"num_experts": 32}, {"num_experts": 32}),
        ({"num_local_experts": 32}, {"num_experts": 32}),
        ({"n_layer": 2}, {"num_hidden_layers": 2, "mlp_layer_types": ["sparse", "dense"]}),
        ({"hidden_size": 64}, {"hidden_size": 64, "intermediate_size": 256, "moe_intermediate_size": 64}),
        ({"n_embd": 64}, {"hidden_size": 64, "intermediate_size": 256, "shared_expert_intermediate_size": 192}),
        ({"hidden_size": 64, "n_inner": 96}, {"hidden_size": 64, "intermediate_size": 96}),
        ({"n_embd": 64, "intermediate_size": 96}, {"hidden_size": 64, "intermediate_size": 96}),
        ({"intermediate_size": 96}, {"hidden_size": 128, "intermediate_size": 96}),
        ({"num_labels": 5}, {"num_labels": 5}),
    ],
)
def test_overrides_take_either_name(overrides: dict[str, Any], expected: dict[str, Any]) -> None:
    config = create_moe_config("tiny", **overrides)
    assert {name: getattr(config, name) for name in expected} == expected


def test_making_a_configuration_leaves_the_table_alone() -> None:
    before = dict(PRESETS["tiny"].fields)
    create_moe_config("tiny", hidden_size=64, num_experts=9)
    assert PRESETS["tiny"].fields == before


def test_an_unknown_size_or_field_is_named() -> None:
    with pytest.raises(ConfigError, match=r"unknown model size '500'; allowed: .*500m.*did you mean '500m'"):
        create_moe_config("500")
    with pytest.raises(ConfigError, match=r"unknown configuration field 'num_expert'; did you mean 'num_experts'"):
        create_moe_config("tiny", num_expert=4)
    with pytest.raises(ConfigError, match="num_experts_per_tok=17"):
        create_moe_config("500m", num_experts_per_tok=17)


def test_the_tiny_megabyte_is_wider_over_patches_and_reads_bytes() -> None:
    config = create_moe_config("tiny", architecture="megabyte")
    local = config.local_decoder_config
    assert (config.vocab_size, config.max_position_embeddings, config.patch_size) == (264, 1024, 8)
    assert (config.hidden_size, config.intermediate_size, config.shared_expert_intermediate_size) == (256, 1024, 768)
    assert (local.hidden_size, local.intermediate_size, local.shared_expert_intermediate_size) == (128, 512, 384)
    assert (config.position_embedding_type, config.mixer_short_conv, local.mixer_short_conv) == ("rotary", 3, 3)
    narrow = create_moe_config("tiny", architecture="megabyte", hidden_size=64, local_config={"hidden_size": 32})
    assert (narrow.intermediate_size, narrow.local_decoder_config.intermediate_size) == (256, 128)


def test_a_large_megabyte_has_half_the_width_in_a_patch_and_four_bytes_for_a_token() -> None:
    config = create_moe_config("500m", architecture="megabyte")
    local = config.local_decoder_config
    assert (config.vocab_size, config.max_position_embeddings, config.hidden_size) == (264, 4096, 1024)
    assert (local.hidden_size, local.num_hidden_layers, local.intermediate_size) == (512, 4, 2048)
    shorter = create_moe_config("500m", architecture="megabyte", max_position_embeddings=512)
    assert shorter.max_position_embeddings == 512
