"""The GPT-2 family's configuration: GPT-2's names, and the config.json of a dense GPT-2."""

import json
from pathlib import Path
from typing import Any

import pytest
from transformers import GPT2Config

from moe_hf.base.errors import CheckpointError, ConfigError
from moe_hf.config.gpt2_moe import GPT2WithMoEConfig

GPT2_NAMES = {
    "n_embd": ("hidden_size", 24),
    "n_layer": ("num_hidden_layers", 3),
    "n_head": ("num_attention_heads", 6),
    "n_positions": ("max_position_embeddings", 33),
    "n_inner": ("intermediate_size", 40),
    "activation_function": ("hidden_act", "relu"),
    "resid_pdrop": ("resid_dropout", 0.3),
    "embd_pdrop": ("embd_dropout", 0.2),
    "attn_pdrop": ("attention_dropout", 0.4),
    "num_local_experts": ("num_experts", 5),
}


@pytest.mark.parametrize(("alias", "name", "value"), [(alias, *pair) for alias, pair in GPT2_NAMES.items()])
def test_gpt2_names_set_and_read_the_same_field(alias: str, name: str, value: Any) -> None:
    config = GPT2WithMoEConfig(**{alias: value})
    assert getattr(config, name) == getattr(config, alias) == value
    assert alias not in config.to_dict()


def test_what_is_derived_sees_values_given_under_gpt2_names() -> None:
    config = GPT2WithMoEConfig(n_embd=24, n_layer=3, n_head=2)
    assert (config.intermediate_size, config.moe_intermediate_size, len(config.mlp_layer_types)) == (96, 96, 3)
    assert GPT2WithMoEConfig(n_inner=None).intermediate_size == 3072


def test_a_wrong_value_under_an_alias_is_refused_under_the_field_s_name() -> None:
    with pytest.raises(ConfigError, match="hidden_size=25"):
        GPT2WithMoEConfig(n_embd=25)


def test_defaults_are_those_of_gpt2() -> None:
    ours, theirs = GPT2WithMoEConfig(), GPT2Config()
    for name in ("vocab_size", "n_embd", "n_layer", "n_head", "n_positions", "layer_norm_epsilon", "bos_token_id"):
        assert getattr(ours, name) == getattr(theirs, name)


@pytest.fixture
def dense_config(tmp_path: Path) -> Path:
    GPT2Config(
        vocab_size=61,
        n_embd=24,
        n_layer=3,
        n_head=2,
        n_positions=17,
        n_inner=40,
        activation_function="gelu",
        attn_pdrop=0.0,
        resid_pdrop=0.2,
        layer_norm_epsilon=1e-6,
        scale_attn_by_inverse_layer_idx=True,
        tie_word_embeddings=False,
        num_labels=4,
        bos_token_id=3,
        eos_token_id=4,
        dtype="float16",
    ).save_pretrained(tmp_path)
    return tmp_path


def test_a_dense_configuration_is_translated_field_by_field(dense_config: Path) -> None:
    config = GPT2WithMoEConfig.from_pretrained(dense_config)
    expected = {
        "model_type": "gpt2_moe",
        "vocab_size": 61,
        "hidden_size": 24,
        "num_hidden_layers": 3,
        "num_attention_heads": 2,
        "max_position_embeddings": 17,
        "intermediate_size": 40,
        "moe_intermediate_size": 40,
        "hidden_act": "gelu",
        "attention_dropout": 0.0,
        "resid_dropout": 0.2,
        "embd_dropout": 0.1,
        "layer_norm_epsilon": 1e-6,
        "scale_attn_by_inverse_layer_idx": True,
        "tie_word_embeddings": False,
        "num_labels": 4,
        "bos_token_id": 3,
        "eos_token_id": 4,
        "mlp_layer_types": ["sparse", "dense", "sparse"],
        "position_embedding_type": "learned",
        "norm_topk_prob": True,
    }
    assert {name: getattr(config, name) for name in expected} == expected
    assert str(config.dtype) == "torch.float16"


def test_overrides_go_in_before_anything_is_derived(dense_config: Path) -> None:
    config = GPT2WithMoEConfig.from_pretrained(
        dense_config, n_layer=2, num_experts=3, intermediate_size=48, mixer_short_conv=2
    )
    assert (config.num_experts, config.mlp_layer_types) == (3, ["sparse", "dense"])
    assert (config.moe_intermediate_size, config.layer_types) == (48, ["attention_with_state"] * 2)


def test_a_trimmed_dense_configuration_gets_gpt2_s_defaults(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "gpt2", "n_embd": 24, "n_head": 2}))
    config = GPT2WithMoEConfig.from_pretrained(tmp_path)
    assert (config.num_hidden_layers, config.resid_dropout, config.embd_dropout, config.attention_dropout) == (
        12,
        0.1,
        0.1,
        0.1,
    )


@pytest.mark.parametrize(
    ("name", "value"),
    [("add_cross_attention", True), ("scale_attn_weights", False)],
)
def test_a_dense_feature_that_would_change_the_logits_is_refused(tmp_path: Path, name: str, value: bool) -> None:
    GPT2Config(**{name: value}).save_pretrained(tmp_path)
    with pytest.raises(CheckpointError, match=f"{name}={value}.*only {not value}"):
        GPT2WithMoEConfig.from_pretrained(tmp_path)


def test_a_feature_that_changes_no_number_is_left_out_with_a_warning(tmp_path: Path, caplog) -> None:
    GPT2Config(reorder_and_upcast_attn=True).save_pretrained(tmp_path)
    assert GPT2WithMoEConfig.from_pretrained(tmp_path).hidden_size == 768
    assert "reorder_and_upcast_attn=True is not taken over" in caplog.text


def test_another_model_type_is_named(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "llama", "hidden_size": 8}))
    with pytest.raises(CheckpointError, match=r"type 'llama'; this family reads 'gpt2_moe' and dense 'gpt2'"):
        GPT2WithMoEConfig.from_pretrained(tmp_path)


def test_a_folder_without_a_configuration_is_not_taken_for_a_default_model(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"has no config.json"):
        GPT2WithMoEConfig.from_pretrained(tmp_path)


def test_a_field_given_under_both_its_names_must_agree() -> None:
    assert GPT2WithMoEConfig(hidden_size=24, n_embd=24, n_head=2).hidden_size == 24
    with pytest.raises(ConfigError, match="n_embd=128 and hidden_size=64 name the same field"):
        GPT2WithMoEConfig(hidden_size=64, n_embd=128)
    with pytest.raises(ConfigError, match="num_local_experts=4 and num_experts=8"):
        # The default, but given.
        GPT2WithMoEConfig(num_experts=8, num_local_experts=4)


def test_an_override_replaces_what_a_file_says_under_the_other_name(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "gpt2_moe", "num_local_experts": 4}', encoding="utf-8")
    assert GPT2WithMoEConfig.from_pretrained(tmp_path, num_experts=6).num_experts == 6
