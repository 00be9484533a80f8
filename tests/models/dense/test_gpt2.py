"""The state dict of an upcycled model: each tensor from its dense source, all that is wrong in one error."""

import re

import pytest
import torch

from moe_hf import CheckpointError, GPT2WithMoE, GPT2WithMoEConfig
from moe_hf.models.dense.checkpoint_files import open_slices
from moe_hf.models.dense.gpt2 import DenseGPT2


@pytest.fixture
def slices(dense_folder):
    return open_slices([str(dense_folder / "model.safetensors")])


@pytest.fixture
def make_config(dense_folder):
    return lambda **overrides: GPT2WithMoEConfig.from_pretrained(dense_folder, **overrides)


@pytest.mark.parametrize(
    "overrides",
    [
        {},
        {"mlp_layer_types": ["dense"] * 3},
        {"mixer_short_conv": 3, "shared_expert_intermediate_size": 16},
        {"num_experts": 3, "expert_init": "drop"},
    ],
)
def test_has_every_tensor_of_the_model_in_its_shape(slices, make_config, overrides) -> None:
    config = make_config(**overrides)
    state = DenseGPT2().state_dict(slices, config)
    with torch.device("meta"):
        expected = {name: list(value.shape) for name, value in GPT2WithMoE(config).state_dict().items()}
    # A tied head is not stored.
    del expected["lm_head.weight"]
    assert {name: value.get_shape() for name, value in state.items()} == expected
    for name, value in state.items():
        assert list(value.read().shape) == expected[name]


def test_each_tensor_comes_from_its_source(slices, make_config) -> None:
    state = DenseGPT2().state_dict(slices, make_config(num_experts=3))
    attention = slices["transformer.h.0.attn.c_attn.weight"][:]
    for index, name in enumerate("qkv"):
        piece = attention[:, 32 * index : 32 * (index + 1)].T
        assert state[f"model.layers.0.mixer.{name}_proj.weight"].read().equal(piece)
    assert state["model.layers.1.mlp.up_proj.weight"].read().equal(slices["transformer.h.1.mlp.c_fc.weight"][:].T)
    up = state["model.layers.0.mlp.experts.up_proj"].read()
    assert up.equal(slices["transformer.h.0.mlp.c_fc.weight"][:].T.expand(3, 128, 32))


@pytest.mark.parametrize(
    ("overrides", "text"),
    [
        ({"hidden_size": 64}, r"wte.weight of shape \(61, 32\), but the configuration asks for \(61, 64\)"),
        ({"vocab_size": 99}, r"wte.weight of shape \(61, 32\), but .* \(99, 32\)"),
        ({"num_hidden_layers": 2}, "3 layers, but num_hidden_layers=2"),
        ({"max_position_embeddings": 50}, r"wpe.weight of shape \(40, 32\)"),
        ({"intermediate_size": 64}, r"h.0.mlp.c_fc.weight of shape \(32, 128\)"),
        ({"moe_intermediate_size": 48}, "FFNs of width 128, but moe_intermediate_size=48"),
        ({"position_embedding_type": "rotary"}, "learned positions, but position_embedding_type is 'rotary'"),
    ],
)
def test_a_misfitting_override_is_named(slices, make_config, overrides, text) -> None:
    with pytest.raises(CheckpointError, match=f"{text}.*drop the override"):
        DenseGPT2().state_dict(slices, make_config(**overrides))


def test_missing_layers_are_named(slices, make_config) -> None:
    with pytest.raises(
        CheckpointError, match=r"lacks 12 that are needed: h\.3\.ln_1\.weight, .*, \.\.\.; it is incomplete"
    ):
        DenseGPT2().state_dict(slices, make_config(num_hidden_layers=4))


@pytest.mark.parametrize("name", ["wte.weight", "ln_f.bias", "h.1.attn.c_attn.bias", "h.0.mlp.c_fc.weight"])
def test_a_missing_tensor_is_named(slices, make_config, name: str) -> None:
    dense = {key: value for key, value in slices.items() if not key.endswith(name)}
    with pytest.raises(CheckpointError, match=f"has 39 tensors but lacks 1 that are needed: {re.escape(name)};"):
        DenseGPT2().state_dict(dense, make_config())


def test_an_untied_head_is_needed_only_where_there_is_one(slices, make_config) -> None:
    config = make_config(tie_word_embeddings=False)
    with pytest.raises(CheckpointError, match=r"lm_head.weight"):
        DenseGPT2().state_dict(slices, config)
    assert "lm_head.weight" not in DenseGPT2().state_dict(slices, config, with_head=False)


def test_a_head_that_was_tied_starts_as_the_embedding(slices, make_config) -> None:
    state = DenseGPT2().state_dict(slices, make_config(tie_word_embeddings=False), head_was_tied=True)
    assert state["lm_head.weight"].read().equal(slices["transformer.wte.weight"][:])


@pytest.mark.parametrize(
    ("names", "dense"),
    [
        (["transformer.h.0.attn.c_attn.weight"], True),
        (["h.11.attn.c_attn.weight", "wte.weight"], True),
        (["model.layers.0.mixer.q_proj.weight"], False),
        (["transformer.h.0.attn.q_proj.weight"], False),
        (["graph.0.attn.c_attn.weight"], False),
        ([], False),
    ],
)
def test_a_dense_gpt2_is_known_by_its_names(names: list[str], dense: bool) -> None:
    assert DenseGPT2().recognises(names) == dense
