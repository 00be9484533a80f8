"""Rotary positions are said in llama.cpp's words, or refused."""

from typing import Any

import pytest
import torch
from transformers import LlamaConfig
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

from moe_hf.base.errors import CheckpointError
from moe_hf.export.architectures import ARCHITECTURES
from moe_hf.export.rotation import Rotation, rotation_of

LLAMA3 = {"factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 64}


def config_of(**rope: Any) -> LlamaConfig:
    return LlamaConfig(
        hidden_size=64,
        num_attention_heads=2,
        max_position_embeddings=512,
        rope_parameters={"rope_type": "default", "rope_theta": 5e5, **rope},
    )


@pytest.mark.parametrize(
    ("rope", "rotation"),
    [
        ({}, Rotation(5e5)),
        ({"rope_type": "linear", "factor": 4.0}, Rotation(5e5, "linear", 4.0)),
        (
            {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 128},
            Rotation(5e5, "yarn", 4.0, 128),
        ),
    ],
)
def test_scalings_have_names(rope: dict[str, Any], rotation: Rotation) -> None:
    assert rotation_of(config_of(**rope), ARCHITECTURES["qwen2"]) == rotation


def test_llama3_becomes_a_factor_for_each_frequency() -> None:
    config = config_of(rope_type="llama3", **LLAMA3)
    factors = rotation_of(config, ARCHITECTURES["llama"]).frequency_factors
    assert factors is not None
    plain = 5e5 ** -(torch.arange(0, 32, 2) / 32)
    stretched, _ = ROPE_INIT_FUNCTIONS["llama3"](config, torch.device("cpu"))
    assert torch.allclose(plain / factors, stretched)
    # High frequencies stay, low ones are as slow as the factor says.
    assert factors[0] == pytest.approx(1.0)
    assert factors[-1] == pytest.approx(8.0)


@pytest.mark.parametrize(
    ("rope", "model_type"),
    [
        ({"rope_type": "dynamic", "factor": 4.0}, "llama"),
        ({"rope_type": "llama3", **LLAMA3}, "qwen2"),
        ({"rope_type": "yarn", "factor": 4.0, "attention_factor": 2.0}, "llama"),
        ({"partial_rotary_factor": 0.5}, "llama"),
    ],
)
def test_others_are_refused(rope: dict[str, Any], model_type: str) -> None:
    with pytest.raises(CheckpointError, match="can't be exported to GGUF"):
        rotation_of(config_of(**rope), ARCHITECTURES[model_type])
