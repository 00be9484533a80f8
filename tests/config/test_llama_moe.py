"""Llama's configuration reads those of the dense models that are built like it, and refuses what it cannot keep."""

import json
from pathlib import Path
from typing import Any

import pytest
from transformers import (
    GraniteConfig,
    LlamaConfig,
    MistralConfig,
    Olmo2Config,
    Phi3Config,
    PreTrainedConfig,
    Qwen2Config,
    Qwen3Config,
    SmolLM3Config,
)

from moe_hf import CheckpointError, ConfigError, LlamaWithMoEConfig


def read(config: PreTrainedConfig, folder: Path, **fields: Any) -> LlamaWithMoEConfig:
    config.save_pretrained(folder)
    return LlamaWithMoEConfig.from_pretrained(folder, **fields)


def test_defaults_are_llama_s() -> None:
    config = LlamaWithMoEConfig()
    assert (config.norm_type, config.mlp_gated, config.mlp_bias, config.attention_bias) == ("rms", True, False, False)
    assert (config.intermediate_size, config.num_key_value_heads, config.head_dim) == (2048, 12, 64)
    assert (config.rms_norm_eps, config.hidden_act) == (1e-6, "silu")


def test_a_llama_is_read(tmp_path: Path) -> None:
    dense = LlamaConfig(num_key_value_heads=8, rms_norm_eps=1e-5, rope_parameters={"rope_theta": 5e5})
    config = read(dense, tmp_path, num_experts=3)
    assert (config.num_key_value_heads, config.head_dim, config.layer_norm_epsilon) == (8, 128, 1e-5)
    assert (config.rope_theta, config.rope_parameters) == (5e5, {"rope_type": "default"})
    assert (config.num_experts, config.sliding_window, config.eos_token_id) == (3, None, 2)


def test_windows_of_mistral_and_qwen_are_read(tmp_path: Path) -> None:
    assert read(MistralConfig(), tmp_path).layer_types == ["sliding_attention"] * 32
    kinds = ["full_attention", "sliding_attention"]
    one_kind = Phi3Config(num_hidden_layers=2, sliding_window=5, layer_types=kinds, pad_token_id=0)
    assert read(one_kind, tmp_path).layer_types == ["sliding_attention"] * 2
    assert read(MistralConfig(sliding_window=None), tmp_path).layer_types == ["full_attention"] * 32
    shape = {"num_hidden_layers": 3, "max_window_layers": 2}
    # Its window is written down even where it is not used.
    assert read(Qwen2Config(**shape), tmp_path).layer_types == ["full_attention"] * 3
    config = read(Qwen3Config(**shape, use_sliding_window=True), tmp_path)
    assert config.layer_types == ["full_attention", "full_attention", "sliding_attention"]
    assert (config.sliding_window, config.sliding_window_layers) == (4096, [2])


def test_a_norm_over_the_whole_width_leaves_attention_whole_under_tensor_parallelism(tmp_path: Path) -> None:
    plan = read(Olmo2Config(), tmp_path).base_model_tp_plan
    assert {name.split(".")[2] for name in plan if name.startswith("layers")} == {"mlp"}
    assert "layers.*.mixer.q_proj" in LlamaWithMoEConfig().base_model_tp_plan
    LlamaWithMoEConfig(attention_qk_norm="width").save_pretrained(tmp_path)
    assert "base_model_tp_plan" not in json.loads((tmp_path / "config.json").read_text())


def test_what_sets_the_dense_models_apart_is_read(tmp_path: Path) -> None:
    qwen2, qwen3 = read(Qwen2Config(), tmp_path), read(Qwen3Config(), tmp_path)
    assert (qwen2.attention_bias, qwen2.attention_output_bias, qwen2.attention_qk_norm) == (True, False, "none")
    assert (qwen3.attention_bias, qwen3.attention_output_bias, qwen3.attention_qk_norm) == (False, False, "head")
    olmo2 = read(Olmo2Config(), tmp_path)
    assert (olmo2.attention_qk_norm, olmo2.norm_placement, olmo2.head_dim) == ("width", "behind", 128)
    smollm3 = read(SmolLM3Config(num_hidden_layers=8), tmp_path)
    assert (smollm3.rotary_layers, smollm3.tie_word_embeddings) == ([0, 1, 2, 4, 5, 6], True)
    granite = read(GraniteConfig(attention_multiplier=0.1, logits_scaling=8.0), tmp_path)
    assert (granite.attention_multiplier, granite.logits_scaling, granite.residual_multiplier) == (0.1, 8.0, 1.0)
    biased = read(LlamaConfig(attention_bias=True, mlp_bias=True), tmp_path)
    assert (biased.attention_output_bias, biased.mlp_bias) == (True, True)


@pytest.mark.parametrize(
    ("fields", "text"),
    [
        ({"rope_parameters": {"rope_type": "spiral"}}, "rope_type='spiral'; only default, linear"),
        ({"rope_parameters": {"rope_type": "linear", "factor": 2.0, "partial_rotary_factor": 0.5}}, "partial_rotary"),
        ({"per_layer_config": {"1": {"hidden_act": "relu"}}}, "per_layer_config"),
        ({"rope_parameters": {"rope_type": "llama3"}}, "can't be read by transformers"),
        ({"num_attention_heads": "many"}, "can't be read by transformers"),
    ],
)
def test_what_cannot_be_kept_is_refused(tmp_path: Path, fields: dict[str, Any], text: str) -> None:
    LlamaConfig(num_hidden_layers=2).save_pretrained(tmp_path)
    stored = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**stored, **fields}))
    with pytest.raises(CheckpointError, match=text):
        LlamaWithMoEConfig.from_pretrained(tmp_path)


def test_relatives_that_compute_something_else_are_refused_by_type(tmp_path: Path) -> None:
    for kind in ("gemma2", "cohere", "mixtral"):
        (tmp_path / "config.json").write_text(json.dumps({"model_type": kind}))
        with pytest.raises(CheckpointError, match=f"'{kind}'; this family reads 'llama_moe' and dense 'llama'"):
            LlamaWithMoEConfig.from_pretrained(tmp_path)


def test_it_is_saved_and_read_again_and_overrides_reach_the_base_of_the_angles(tmp_path: Path) -> None:
    given = {"rope_type": "linear", "factor": 2.0, "rope_theta": 300.0}
    config = LlamaWithMoEConfig(rope_parameters=given, num_key_value_heads=3, sliding_window=7)
    assert (config.rope_theta, config.rope_parameters) == (300.0, {"rope_type": "linear", "factor": 2.0})
    config.save_pretrained(tmp_path)
    assert json.loads((tmp_path / "config.json").read_text())["rope_parameters"] == given
    again = LlamaWithMoEConfig.from_pretrained(tmp_path)
    assert again.to_dict() == config.to_dict()
    other = LlamaWithMoEConfig.from_pretrained(tmp_path, rope_theta=900.0)
    assert (other.rope_theta, other.rope_parameters) == (900.0, {"rope_type": "linear", "factor": 2.0})


def test_one_field_by_two_names_is_refused() -> None:
    with pytest.raises(ConfigError, match="head_dim=8 and attention_head_dim=4 name the same field"):
        LlamaWithMoEConfig(head_dim=8, attention_head_dim=4)
