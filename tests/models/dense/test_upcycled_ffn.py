"""The FFN of an upcycled layer: experts from the dense one, a router from its seed, and nothing else moves."""

import pytest
import torch

from moe_hf import GPT2WithMoEConfig
from moe_hf.layers.ffn.routers import ROUTERS
from moe_hf.models.dense.checkpoint_files import open_slices
from moe_hf.models.dense.gpt2 import DenseGPT2
from moe_hf.models.dense.lazy_tensors import Held, LazyTensor


@pytest.fixture
def slices(dense_folder):
    return open_slices([str(dense_folder / "model.safetensors")])


@pytest.fixture
def make_config(dense_folder):
    return lambda **overrides: GPT2WithMoEConfig.from_pretrained(dense_folder, **overrides)


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
