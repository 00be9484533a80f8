"""The table of dense formats: each dense model has one row, which the family that reads its configuration finds."""

import pytest

from moe_hf.models.auto import FAMILIES, dense_model_types
from moe_hf.models.dense.formats import DENSE_FORMATS, formats_of

NAMES = {
    "gpt2": ["transformer.h.0.attn.c_attn.weight"],
    "llama": ["model.layers.0.self_attn.q_proj.weight", "model.layers.0.input_layernorm.weight"],
    "olmo2": ["model.layers.0.self_attn.q_norm.weight", "model.layers.0.post_feedforward_layernorm.weight"],
    "phi3": ["model.layers.0.self_attn.qkv_proj.weight", "model.layers.0.mlp.gate_up_proj.weight"],
    "retnet": ["model.layers.0.attn.q_proj.weight"],
    "mamba": ["backbone.layers.0.norm.weight", "backbone.layers.0.mixer.x_proj.weight"],
    "mamba2": ["backbone.layers.0.norm.weight", "backbone.layers.0.mixer.dt_bias"],
    "hyenadna": ["hyena.backbone.layers.0.mixer.filter_fn.bias"],
    "rwkv4": ["rwkv.blocks.0.attention.time_decay"],
    "rwkv7": ["model.layers.0.attn.r_k"],
}


def test_every_dense_configuration_that_a_family_reads_has_one_format() -> None:
    assert sorted(name for dense in DENSE_FORMATS.values() for name in dense.model_types) == sorted(dense_model_types())


def test_each_family_has_the_formats_of_its_dense_models() -> None:
    names = {kind: [dense.name for dense in formats_of(family.config)] for kind, family in FAMILIES.items()}
    assert names == {
        "gpt2_moe": ["dense GPT-2"],
        "llama_moe": ["dense Llama", "dense OLMo-2", "dense Phi-3"],
        "retnet_moe": ["dense RetNet"],
        "mamba_moe": ["dense Mamba", "dense Mamba-2"],
        "hyena_moe": ["dense HyenaDNA"],
        "rwkv_moe": ["dense RWKV-4", "dense RWKV-7"],
        "megabyte_moe": [],
    }
    for family in FAMILIES.values():
        assert family.model.dense_formats == formats_of(family.config)


@pytest.mark.parametrize("kind", list(DENSE_FORMATS))
def test_names_of_tensors_are_those_of_one_format_only(kind: str) -> None:
    assert [name for name, dense in DENSE_FORMATS.items() if dense.recognises(NAMES[kind])] == [kind]
