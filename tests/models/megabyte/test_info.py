"""MegaByte's numbers: parameters as the model has them, FLOPs per byte."""

from typing import Any

import pytest

from moe_hf.config.megabyte import MegaByteWithMoEConfig
from moe_hf.models.info import get_moe_model_info
from moe_hf.models.megabyte.info import megabyte_info
from moe_hf.models.megabyte.model import MegaByteWithMoE

FIELDS: dict[str, Any] = {"hidden_size": 48, "num_hidden_layers": 4, "num_attention_heads": 6, "patch_size": 6}
FIELDS |= {"num_experts": 4, "num_experts_per_tok": 1, "max_position_embeddings": 60, "mixer_short_conv": 3}


def info_of(**overrides: Any) -> tuple[MegaByteWithMoEConfig, dict[str, Any]]:
    config = MegaByteWithMoEConfig(**{**FIELDS, **overrides})
    parts = (get_moe_model_info(part) for part in (config.global_config, config.local_decoder_config))
    return config, megabyte_info(config, *parts)


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("positions", ["learned", "rotary"])
def test_parameters_are_those_of_the_model(tied: bool, positions: str) -> None:
    config, info = info_of(tie_word_embeddings=tied, position_embedding_type=positions)
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


def test_the_dense_twin_has_no_experts() -> None:
    _, info = info_of()
    dense = MegaByteWithMoE(MegaByteWithMoEConfig(**FIELDS, mlp_layer_types=["dense"] * 4))
    assert info["dense_twin_params"] == sum(parameter.numel() for parameter in dense.parameters())


def test_a_larger_patch_costs_fewer_operations_per_byte() -> None:
    costs = [info_of(patch_size=size, local_config={"hidden_size": 24})[1]["flops_per_token"] for size in (2, 4, 8)]
    assert costs == sorted(costs, reverse=True)
    # A byte's multiplications, written out for one dense layer each, without positions.
    _, info = info_of(
        num_hidden_layers=1, mlp_layer_types=["dense"], mixer_short_conv=0, local_config={"hidden_size": 24}
    )
    of_patch = 12 * 48 * 48 + (4 + 4 + 1) * 48 + 3 * 2 * 48 + 2 * 11 * 48
    # Six places of a patch, behind three that are looked back at.
    of_place = 12 * 24 * 24 + (4 + 4 + 1) * 24 + 3 * 2 * 24 + 2 * 9 * 24
    assert info["flops_per_token"] == pytest.approx(2 * (of_patch / 6 + of_place * 9 / 6 + 264 * 24 + 8 * 24))
