"""The state dict of an upcycled model: each tensor from its dense source, all that is wrong in one error."""

import re

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

from moe_hf import CheckpointError, GPT2WithMoE, GPT2WithMoEConfig
from moe_hf.layers.ffn.routers import ROUTERS
from moe_hf.models.dense import upcycle
from moe_hf.models.dense.lazy_tensors import Held, LazyTensor
from moe_hf.models.dense.source import open_slices
from moe_hf.models.dense.upcycle import DenseGPT2


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


def test_the_router_is_drawn_from_its_seed_or_zero(slices, make_config) -> None:
    def router(layer: int = 0, **overrides) -> torch.Tensor:
        return DenseGPT2().state_dict(slices, make_config(**overrides))[f"model.layers.{layer}.mlp.gate.weight"].read()

    assert router().std().item() == pytest.approx(0.2, rel=0.2)
    assert router().equal(router())
    assert not router().equal(router(layer=2))
    assert not router().equal(router(expert_init_seed=1))
    assert router(router_init="zero").abs().max() == 0


def test_a_shared_expert_and_a_short_convolution_begin_as_nothing(slices, make_config) -> None:
    config = make_config(shared_expert_intermediate_size=16, mixer_short_conv=3)
    state = DenseGPT2().state_dict(slices, config)
    assert state["model.layers.0.mlp.shared_expert.down_proj.weight"].read().abs().max() == 0
    assert state["model.layers.0.mlp.shared_expert.up_proj.weight"].read().abs().max() > 0
    assert state["model.layers.0.mixer.short_conv.weight"].read().abs().max() == 0


@pytest.mark.parametrize(
    ("overrides", "text"),
    [
        ({"hidden_size": 64}, r"wte.weight of shape \(61, 32\), but the configuration asks for \(61, 64\)"),
        ({"vocab_size": 99}, r"wte.weight of shape \(61, 32\), but .* \(99, 32\)"),
        ({"num_hidden_layers": 2}, "3 layers, but num_hidden_layers=2"),
        ({"max_position_embeddings": 50}, r"wpe.weight of shape \(40, 32\)"),
        ({"intermediate_size": 64}, r"h.0.mlp.c_fc.weight of shape \(32, 128\)"),
        ({"moe_intermediate_size": 64}, "FFNs of width 128, but moe_intermediate_size=64"),
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


def test_only_whole_safetensors_files_are_opened(tmp_path) -> None:
    save_file({"a": torch.zeros(100)}, tmp_path / "good.safetensors")
    assert list(open_slices([str(tmp_path / "good.safetensors")])) == ["a"]
    data = (tmp_path / "good.safetensors").read_bytes()
    for name, content in (("cut", data[:-8]), ("header", data[:5]), ("empty", b""), ("text", b"hello, world" * 9)):
        (tmp_path / f"{name}.safetensors").write_bytes(content)
        with pytest.raises(CheckpointError, match=f"{name}.safetensors can't be read as safetensors"):
            open_slices([str(tmp_path / f"{name}.safetensors")])
    with pytest.raises(CheckpointError, match=r"can't be read as safetensors"):
        open_slices([str(tmp_path / "absent.safetensors")])
    with pytest.raises(CheckpointError, match=r"model.bin is not a safetensors file; pickled checkpoints can run code"):
        open_slices([str(tmp_path / "model.bin")])


@pytest.mark.parametrize(
    ("overrides", "reason"),
    [
        ({}, None),
        ({"norm_topk_prob": False}, "norm_topk_prob=False"),
        ({"norm_topk_prob": False, "num_experts": 2}, None),
        ({"norm_topk_prob": False, "num_experts": 2, "router_type": "sigmoid_bias"}, "norm_topk_prob=False"),
        ({"norm_topk_prob": False, "router_type": "hash"}, None),
        ({"router_type": "switch", "num_experts_per_tok": 1}, 'router_type="switch"'),
        ({"router_type": "switch", "num_experts_per_tok": 1, "router_num_hash_layers": 2}, None),
        ({"router_type": "sigmoid_bias"}, None),
        ({"router_type": "sigmoid_bias", "router_scale": 2.5}, "router_scale=2.5"),
        ({"router_type": "top_k", "router_scale": 2.5}, None),
        ({"norm_topk_prob": False, "mlp_layer_types": ["dense"] * 3}, None),
    ],
    ids=str,
)
def test_a_warning_exactly_where_the_function_is_not_kept(
    dense_gpt2, dense_folder, make_config, caplog, overrides, reason
) -> None:
    type(upcycle.logger).warning_once.cache_clear()
    DenseGPT2().state_dict(open_slices([str(dense_folder / "model.safetensors")]), make_config(**overrides))
    assert [reason in record.getMessage() for record in caplog.records] == ([] if reason is None else [True])
    caplog.clear()
    model = GPT2WithMoE.from_pretrained(dense_folder, **overrides)
    ids = torch.arange(3, 23)[None]
    kept = torch.allclose(model(ids).logits, dense_gpt2()(ids).logits, atol=1e-4)
    assert kept == (reason is None)


@pytest.mark.parametrize("router_type", list(ROUTERS))
def test_the_global_generator_is_left_alone(slices, make_config, router_type) -> None:
    config = make_config(router_type=router_type, num_experts_per_tok=1)
    torch.manual_seed(0)
    expected = torch.randn(3)
    torch.manual_seed(0)
    DenseGPT2().state_dict(slices, config)
    assert torch.randn(3).equal(expected)


@pytest.mark.parametrize(
    ("router_type", "dtype"), [("sigmoid_bias", "F32"), ("expert_threshold", "F32"), ("hash", "I64")]
)
def test_router_states_do_not_depend_on_the_default_type(slices, make_config, router_type, dtype) -> None:
    def states() -> dict[str, LazyTensor]:
        state = DenseGPT2().state_dict(slices, make_config(router_type=router_type))
        return {name: value for name, value in state.items() if ".gate." in name and isinstance(value, Held)}

    expected = states()
    torch.set_default_dtype(torch.bfloat16)
    try:
        with torch.device("meta"):
            got = states()
    finally:
        torch.set_default_dtype(torch.float32)
    assert len(expected) == 2
    for name, value in expected.items():
        assert got[name].get_dtype() == dtype
        assert got[name].read().equal(value.read())


def test_slices_outlive_the_call_that_opened_them(dense_folder) -> None:
    name = "transformer.wte.weight"
    value = open_slices([str(dense_folder / "model.safetensors")])[name][:]
    with safe_open(dense_folder / "model.safetensors", framework="pt") as file:
        assert value.equal(file.get_tensor(name))
