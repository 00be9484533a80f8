"""Counts of transformers' own classes are those of the models themselves."""

import pytest
from transformers import AutoModelForCausalLM, LlamaConfig

from moe_hf import get_moe_model_info
from tests.models.native_moes import NATIVE_MOES, native_moe


@pytest.mark.parametrize("kind", list(NATIVE_MOES))
@pytest.mark.parametrize("tied", [False, True])
def test_counts_are_exact(kind: str, tied: bool) -> None:
    model = native_moe(kind, tie_word_embeddings=tied)
    info = get_moe_model_info(model.config)
    assert info["total_params"] == model.num_parameters()
    experts = sum(x.numel() for name, x in model.named_parameters() if ".experts." in name)
    # Two of four experts.
    assert info["active_params"] == info["total_params"] - experts // 2
    assert info["embedding_params"] == 61 * 32
    assert (info["num_experts"], info["num_experts_per_tok"]) == (4, 2)
    assert info["sparse_layers"] == ((1,) if kind in ("deepseek_v3", "jamba") else (0, 1))
    assert info["moe_layers"] + info["dense_layers"] == 2
    assert info["flops_per_token"] > 2 * (info["active_params"] - info["embedding_params"])


def test_the_dense_twin_of_a_mixtral_is_a_llama_of_its_shape() -> None:
    config = NATIVE_MOES["mixtral"]()
    shape = ("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads")
    fields = {name: getattr(config, name) for name in (*shape, "num_key_value_heads", "tie_word_embeddings")}
    twin = LlamaConfig(**fields)
    dense = AutoModelForCausalLM.from_config(twin).num_parameters()
    assert get_moe_model_info(config)["dense_twin_params"] == dense
    info = get_moe_model_info(twin)
    assert info["total_params"] == info["active_params"] == info["dense_twin_params"] == dense
    assert (info["moe_layers"], info["sparse_layers"]) == (0, ())
