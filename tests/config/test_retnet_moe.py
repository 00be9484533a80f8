"""The RetNet family's configuration: its fields, flash-linear-attention's names, a dense RetNet's config.json."""

import json
from pathlib import Path
from typing import Any

import pytest

from moe_hf.base.errors import CheckpointError
from moe_hf.config.retnet_moe import RetNetWithMoEConfig

# As flash-linear-attention writes it for fla-hub/retnet-1.3B-100B, what does not matter here left out.
DENSE = {
    "model_type": "retnet",
    "attn": None,
    "attn_mode": "chunk",
    "bos_token_id": 1,
    "eos_token_id": 2,
    "elementwise_affine": True,
    "expand_k": 1,
    "expand_v": 2,
    "feature_map": None,
    "fuse_norm": True,
    "hidden_act": "swish",
    "hidden_ratio": 2,
    "hidden_size": 2048,
    "initializer_range": 0.02,
    "intermediate_size": None,
    "max_position_embeddings": 2048,
    "norm_eps": 1e-06,
    "num_heads": 8,
    "num_hidden_layers": 24,
    "num_kv_heads": None,
    "tie_word_embeddings": False,
    "use_cache": True,
    "use_output_gate": True,
    "use_short_conv": False,
    "vocab_size": 32000,
}


def read(folder: Path, dense: dict[str, Any], **overrides: Any) -> RetNetWithMoEConfig:
    (folder / "config.json").write_text(json.dumps(dense))
    return RetNetWithMoEConfig.from_pretrained(folder, **overrides)


@pytest.mark.parametrize(
    ("alias", "name", "value"),
    [
        ("num_heads", "num_attention_heads", 3),
        ("expand_k", "retention_expand_k", 0.5),
        ("expand_v", "retention_expand_v", 1),
        ("use_output_gate", "retention_gate", False),
        ("elementwise_affine", "retention_norm_affine", False),
        ("norm_eps", "layer_norm_epsilon", 1e-3),
    ],
)
def test_names_of_flash_linear_attention_set_the_same_field(alias: str, name: str, value: Any) -> None:
    config = RetNetWithMoEConfig(**{alias: value})
    assert getattr(config, name) == getattr(config, alias) == value
    assert alias not in config.to_dict()


def test_a_dense_norm_without_a_word_on_weights_has_none() -> None:
    found = RetNetWithMoEConfig.dict_from_dense({"model_type": "retnet", "elementwise_affine": None})
    assert found["retention_norm_affine"] is False


def test_the_defaults_are_retnet_s() -> None:
    config = RetNetWithMoEConfig()
    assert config.mixer_of_layer == ["retention"] * 12
    assert config.layer_types == ["recurrent"] * 12
    assert (config.norm_type, config.mlp_gated, config.mlp_bias, config.hidden_act) == ("rms", True, False, "silu")
    assert (config.retention_heads, config.retention_key_width, config.retention_value_width) == (6, 768, 1536)
    assert (config.intermediate_size, config.position_embedding_type, config.tie_word_embeddings) == (
        1024,
        "none",
        False,
    )


def test_a_dense_retnet_s_config_is_read(tmp_path) -> None:
    config = read(tmp_path, DENSE, num_experts=4)
    assert (config.hidden_size, config.num_hidden_layers, config.retention_heads) == (2048, 24, 8)
    # flash-linear-attention's own arithmetic: int(2048 * 2 * 2 / 3) = 2730, up to a multiple of 256.
    assert config.intermediate_size == config.moe_intermediate_size == 2816
    assert (config.retention_value_width, config.layer_norm_epsilon, config.vocab_size) == (4096, 1e-6, 32000)
    assert (config.retention_rotation, config.retention_norm, config.retention_bias) == ("half", "rms", False)
    assert (config.num_experts, config.tie_word_embeddings, config.bos_token_id) == (4, False, 1)


def test_what_a_dense_config_leaves_out_has_flash_linear_attention_s_default(tmp_path) -> None:
    short = read(tmp_path, {"model_type": "retnet", "hidden_ratio": None})
    long = read(tmp_path, {**DENSE, "hidden_ratio": 4})
    assert short.to_dict() == long.to_dict()


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("feature_map", "relu"),
        ("hidden_act", "powlu"),
        ("use_short_conv", True),
        ("attn", {"layers": [0], "num_heads": 8}),
        ("attnres_block_size", 4),
        ("num_kv_heads", 2),
    ],
)
def test_what_cannot_be_carried_over_is_refused(tmp_path, name: str, value: Any) -> None:
    with pytest.raises(CheckpointError, match=name):
        read(tmp_path, {**DENSE, name: value})


def test_round_trip(tmp_path) -> None:
    config = RetNetWithMoEConfig(hidden_size=48, num_heads=4, retention_expand_v=1.5, retention_rotation="interleaved")
    config.save_pretrained(tmp_path)
    assert RetNetWithMoEConfig.from_pretrained(tmp_path).to_dict() == config.to_dict()
