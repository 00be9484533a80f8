"""Parameter counts and FLOPs: equal to the built model, for every preset."""

from typing import Any

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from moe_hf import GPT2WithMoE, create_moe_config, get_moe_model_info
from moe_hf.config.megabyte import MegaByteWithMoEConfig
from moe_hf.config.presets import PRESETS
from moe_hf.models.megabyte.model import MegaByteWithMoE

VARIANTS = [
    {},
    {"mixer_short_conv": 3, "position_embedding_type": "rotary"},
    {"shared_expert_intermediate_size": 20, "moe_intermediate_size": 24},
    {"mlp_layer_types": ["dense", "sparse", "sparse", "dense"], "tie_word_embeddings": False},
    {"mlp_layer_types": ["dense"] * 4},
    {"num_experts": 1, "num_experts_per_tok": 1},
    {"num_experts_per_tok": 4},
]


def on_meta(config) -> GPT2WithMoE:
    with torch.device("meta"):
        return GPT2WithMoE(config)


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("experts", [8, 10, 16, 32])
@pytest.mark.parametrize("size", list(PRESETS))
def test_total_is_the_built_model_s_to_the_parameter(size: str, experts: int, tied: bool) -> None:
    config = create_moe_config(size, num_experts=experts, tie_word_embeddings=tied)
    assert get_moe_model_info(config)["total_params"] == sum(p.numel() for p in on_meta(config).parameters())


@pytest.mark.parametrize("size", ["tiny", "500m", "2b-active"])
def test_megabyte_is_counted_as_it_is_built(size: str) -> None:
    config = create_moe_config(size, architecture="megabyte", num_experts=8)
    info = get_moe_model_info(config)
    with torch.device("meta"):
        assert info["total_params"] == sum(p.numel() for p in MegaByteWithMoE(config).parameters())
        config.make_dense()
        assert info["dense_twin_params"] == sum(p.numel() for p in MegaByteWithMoE(config).parameters())
    assert get_moe_model_info(config)["total_params"] == info["dense_twin_params"]


@pytest.mark.parametrize("overrides", VARIANTS)
def test_active_is_what_a_token_s_gradient_can_touch(tiny_model, overrides) -> None:
    # Counted from the model that ran: all parameters, but of the experts only those that the one token visited.
    model = tiny_model(**overrides)
    model.set_experts_implementation("eager")
    token = torch.tensor([[5]])
    out = model(token, output_router_logits=True)
    routed = iter(out.router_logits or ())
    active = 0
    for name, parameter in model.named_parameters():
        if "mlp.experts." not in name:
            active += parameter.numel()
    for layer in model.config.sparse_layers:
        visited = next(routed).topk(model.config.num_experts_per_tok).indices.flatten().tolist()
        experts = model.model.layers[layer].mlp.experts
        active += sum(stack[e].numel() for e in visited for stack in experts.parameters())
    info = get_moe_model_info(model.config)
    assert info["active_params"] == active
    assert info["total_params"] == sum(p.numel() for p in model.parameters())
    assert info["active_fraction"] == active / info["total_params"]


@pytest.mark.parametrize("overrides", VARIANTS)
def test_the_dense_twin_is_the_model_with_every_layer_dense(tiny_config, overrides) -> None:
    twin = on_meta(tiny_config(**{**overrides, "mlp_layer_types": ["dense"] * 4}))
    info = get_moe_model_info(tiny_config(**overrides))
    assert info["dense_twin_params"] == sum(p.numel() for p in twin.parameters())


@pytest.mark.parametrize("overrides", VARIANTS)
def test_flops_per_token_are_those_that_torch_counts(tiny_config, overrides) -> None:
    # A context of one full length; the formula also counts biases and norms, which torch's counter leaves out.
    fields = {"hidden_size": 64, "intermediate_size": 128, "moe_intermediate_size": 128, "max_position_embeddings": 32}
    shape = {**fields, "attn_implementation": "eager", "experts_implementation": "eager", **overrides}
    config = tiny_config(**shape)
    model = GPT2WithMoE(config).eval()
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model(torch.randint(0, 61, (1, 32)), use_cache=False)
    # A multiply-add per tap and channel of q, k and v, which the counter does not see: it counts matrix products.
    convolution = 2 * 3 * config.mixer_short_conv * config.hidden_size * config.num_hidden_layers
    counted = counter.get_total_flops() / 32 + convolution
    assert get_moe_model_info(config)["flops_per_token"] == pytest.approx(counted, rel=0.03)


def test_what_a_reader_finds(tiny_config) -> None:
    info = get_moe_model_info(tiny_config(num_experts=8))
    assert (info["moe_layers"], info["dense_layers"], info["context_length"]) == (2, 2, 40)
    assert (info["num_experts"], info["num_experts_per_tok"], info["expert_utilization"]) == (8, 2, "25.0%")
    assert info["embedding_params"] == (61 + 40) * 32
    assert info["weight_bytes"] == 4 * info["total_params"]
    assert info["train_state_bytes"] == 16 * info["total_params"]
    for name in ("total_params", "active_params", "dense_twin_params", "embedding_params"):
        assert info[f"{name}_m"] == info[name] / 1e6
    assert info["active_non_embedding_params_m"] == (info["active_params"] - info["embedding_params"]) / 1e6


MEGABYTE: dict[str, Any] = {"hidden_size": 48, "num_hidden_layers": 4, "num_attention_heads": 6, "patch_size": 6}
MEGABYTE |= {"num_experts": 4, "num_experts_per_tok": 1, "max_position_embeddings": 60, "mixer_short_conv": 3}


def info_of_megabyte(**overrides: Any) -> tuple[MegaByteWithMoEConfig, dict[str, Any]]:
    config = MegaByteWithMoEConfig(**{**MEGABYTE, **overrides})
    return config, get_moe_model_info(config)


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("positions", ["learned", "rotary"])
def test_megabyte_parameters_are_those_of_the_model(tied: bool, positions: str) -> None:
    config, info = info_of_megabyte(tie_word_embeddings=tied, position_embedding_type=positions)
    model = MegaByteWithMoE(config)
    parameters = dict(model.named_parameters())
    total = sum(parameter.numel() for parameter in parameters.values())
    experts = sum(parameter.numel() for name, parameter in parameters.items() if ".experts." in name)
    assert info["total_params"] == total
    assert info["active_params"] == total - experts * 3 // 4
    assert info["embedding_params"] == sum(
        parameters[name].numel() for name in parameters if "embed" in name and "lm_head" not in name
    )
    assert info["weight_bytes"] == 4 * total
    assert info["train_state_bytes"] == 16 * total
    assert (info["moe_layers"], info["dense_layers"], info["context_length"]) == (3, 3, 60)
    assert info["total_params_m"] == total / 1e6


def test_megabyte_the_dense_twin_has_no_experts() -> None:
    _, info = info_of_megabyte()
    dense = MegaByteWithMoE(MegaByteWithMoEConfig(**MEGABYTE, mlp_layer_types=["dense"] * 4))
    assert info["dense_twin_params"] == sum(parameter.numel() for parameter in dense.parameters())


def test_megabyte_a_larger_patch_costs_fewer_operations_per_byte() -> None:
    costs = [
        info_of_megabyte(patch_size=size, local_config={"hidden_size": 24})[1]["flops_per_token"] for size in (2, 4, 8)
    ]
    assert costs == sorted(costs, reverse=True)
    # A byte's multiplications, written out for one dense layer each, without positions.
    _, info = info_of_megabyte(
        num_hidden_layers=1, mlp_layer_types=["dense"], mixer_short_conv=0, local_config={"hidden_size": 24}
    )
    of_patch = 12 * 48 * 48 + (4 + 4 + 1) * 48 + 3 * 2 * 48 + 2 * 11 * 48
    # Six places of a patch, behind three that are looked back at.
    of_place = 12 * 24 * 24 + (4 + 4 + 1) * 24 + 3 * 2 * 24 + 2 * 9 * 24
    assert info["flops_per_token"] == pytest.approx(2 * (of_patch / 6 + of_place * 9 / 6 + 264 * 24 + 8 * 24))
