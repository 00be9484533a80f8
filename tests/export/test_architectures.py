"""Each family goes to the architecture of llama.cpp that computes it; what none computes is refused by name."""

from typing import Any

import pytest
from transformers import LlamaConfig, Qwen2MoeConfig, Qwen3Config, Qwen3MoeConfig

from moe_hf.base.errors import CheckpointError
from moe_hf.export.architectures import ARCHITECTURES, architecture_of, require_computable
from moe_hf.models.upcycling.native_formats import NATIVE_FORMATS

gguf = pytest.importorskip("gguf", reason="gguf is in the gguf extra")


def test_every_name_is_one_of_llama_cpps() -> None:
    assert {row.name for row in ARCHITECTURES.values()} <= set(gguf.MODEL_ARCH_NAMES.values())


def test_all_that_upcycling_makes_can_be_exported_but_flex_olmo() -> None:
    assert {native.moe_type for native in NATIVE_FORMATS.values()} - set(ARCHITECTURES) == {"flex_olmo"}


@pytest.mark.parametrize(
    ("model_type", "why"),
    [
        ("flex_olmo", "llama.cpp has no architecture that computes it"),
        ("gpt2_moe", "llama.cpp has no architecture that computes it"),
        ("olmoe", r"convert_hf_to_gguf\.py does it"),
    ],
)
def test_others_are_refused_by_name(model_type: str, why: str) -> None:
    with pytest.raises(CheckpointError, match=f"o holds a model of type '{model_type}', .*{why}; allowed are llama, "):
        architecture_of("o", model_type)


@pytest.mark.parametrize(
    ("config", "text"),
    [
        (LlamaConfig(hidden_act="gelu"), "hidden_act='gelu' .* llama computes silu alone"),
        (Qwen2MoeConfig(norm_topk_prob=True), "norm_topk_prob=True .* qwen2moe never divides"),
        (Qwen3MoeConfig(norm_topk_prob=False), "norm_topk_prob=False .* qwen3moe always divides"),
        (Qwen2MoeConfig(mlp_only_layers=[3]), r"mlp_only_layers=\[3\] .* has experts in every layer"),
        (Qwen3MoeConfig(norm_topk_prob=True, decoder_sparse_step=2), "decoder_sparse_step=2 .* has experts in every"),
        (Qwen3Config(attention_bias=True), "attention_bias=True .* qwen3 has no place for biases"),
    ],
)
def test_what_llama_cpp_would_compute_otherwise_is_refused(config: Any, text: str) -> None:
    with pytest.raises(CheckpointError, match=text):
        require_computable(config, ARCHITECTURES[config.model_type])


def test_sums_of_all_experts_are_one_already() -> None:
    config = Qwen2MoeConfig(norm_topk_prob=True, num_experts=4, num_experts_per_tok=3)
    with pytest.raises(CheckpointError, match="norm_topk_prob=True"):
        require_computable(config, ARCHITECTURES["qwen2_moe"])
    config.num_experts_per_tok = 4
    assert require_computable(config, ARCHITECTURES["qwen2_moe"]) is None
