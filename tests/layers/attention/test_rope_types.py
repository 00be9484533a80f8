"""Frequencies of every rope type are transformers' own; what depends on the length depends on the call alone."""

import copy
from typing import Any

import pytest
import torch
from transformers import LlamaConfig
from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

from moe_hf.layers.attention.positions import RotaryEmbedding
from moe_hf.layers.attention.rope_types import RopeFrequencies

LONG = {"long_factor": [1.0, 2.0, 3.0, 9.0], "short_factor": [1.0, 1.1, 1.3, 1.7]}
TYPES: dict[str, dict[str, Any]] = {
    "default": {},
    "linear": {"factor": 2.5},
    "dynamic": {"factor": 3.3},
    "yarn": {"factor": 4.0, "original_max_position_embeddings": 32},
    "longrope": {"factor": 4.0, "original_max_position_embeddings": 32, **LONG},
    "llama3": {
        **{"factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0},
        "original_max_position_embeddings": 32,
    },
    "proportional": {"partial_rotary_factor": 0.5},
}


def frequencies(kind: str) -> RopeFrequencies:
    return RopeFrequencies({"rope_type": kind, **TYPES[kind]}, 8, 1000.0, 64)


@pytest.mark.parametrize("kind", list(TYPES))
@pytest.mark.parametrize("length", [20, 64, 300])
def test_cosines_and_sines_are_those_of_llama(kind: str, length: int) -> None:
    parameters = {"rope_type": kind, **TYPES[kind], "rope_theta": 1000.0}
    config = LlamaConfig(hidden_size=16, num_attention_heads=2, max_position_embeddings=64, rope_parameters=parameters)
    places = torch.arange(length)[None]
    cos, sin = LlamaRotaryEmbedding(config)(torch.zeros(1), places)
    rotation = RotaryEmbedding(8, 1000.0, frequencies(kind))(places, torch.float32)
    torch.testing.assert_close(rotation.cos_BSC, cos, rtol=0, atol=1e-6)
    torch.testing.assert_close(rotation.sin_BSC, sin, rtol=0, atol=1e-6)


@pytest.mark.parametrize("kind", ["dynamic", "longrope"])
def test_a_long_call_leaves_no_trace_in_a_shorter_one(kind: str) -> None:
    rope, places = frequencies(kind), torch.arange(65)[None]
    alone = rope(places)
    assert not rope(torch.arange(300)[None]).equal(rope(places[:, :8]))
    assert rope(places).equal(alone)


def test_made_on_the_meta_device_and_copied_they_keep_their_values() -> None:
    with torch.device("meta"):
        rope = copy.deepcopy(frequencies("llama3"))
    assert rope(torch.arange(3)[None]).equal(frequencies("llama3")(torch.arange(3)[None]))
    assert rope(torch.arange(3, device="meta")[None]).device.type == "meta"
    assert rope(torch.arange(3)[None]).device.type == "cpu"


def test_a_part_of_a_head_may_be_turned() -> None:
    rope = RopeFrequencies({"rope_type": "default", "partial_rotary_factor": 0.5}, 8, 1000.0, 64)
    assert rope(torch.arange(3)[None]).tolist() == pytest.approx([1.0, 1000.0**-0.5])
