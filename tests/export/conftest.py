"""Models to export, and GGUF files read back by the package gguf."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, PreTrainedModel

from tests.models.native_moes import NATIVE_MOES, native_moe
from tests.models.upcycling.conftest import CONFIGS, save_dense

SaveModel = Callable[..., Path]

# What transformers' reader of GGUF takes for granted, and, for all, what llama.cpp computes.
FIELDS: dict[str, dict[str, Any]] = {
    "mixtral": {},
    "granitemoe": {"embedding_multiplier": 3.0, "logits_scaling": 2.0, "attention_multiplier": 0.3},
    "qwen2_moe": {"moe_intermediate_size": 1408, "shared_expert_intermediate_size": 5632},
    "qwen3_moe": {"moe_intermediate_size": 768, "norm_topk_prob": True},
    "llama": {},
    "mistral": {"sliding_window": None},
    "qwen2": {},
    "qwen3": {"head_dim": 128},
    "granite": {},
}


def save_model(kind: str, folder: Path, **fields: Any) -> Path:
    """A small model of a kind with weights so large that an error in any of them shows, in a folder."""
    fields = {**FIELDS.get(kind, {}), **fields}
    if kind in NATIVE_MOES:
        dtype = fields.pop("dtype", torch.float32)
        native_moe(kind, **fields).to(dtype).save_pretrained(folder)
        return folder
    dtype = fields.pop("dtype", torch.float32)
    return save_dense(CONFIGS[kind](**fields), folder, dtype)


@pytest.fixture
def saved(tmp_path: Path) -> SaveModel:
    """Saves a model of a kind and gives its folder."""
    pytest.importorskip("gguf", reason="gguf is in the gguf extra")
    return lambda kind, name="model", **fields: save_model(kind, tmp_path / name, **fields)


def load(folder: Path, **options: Any) -> PreTrainedModel:
    """The model of a folder."""
    return AutoModelForCausalLM.from_pretrained(folder, **options).eval()


@torch.no_grad()
def logits(model: PreTrainedModel, length: int = 20) -> torch.Tensor:
    """What a model says of some ids; none of them the padding's, whose embedding is 0."""
    return model(torch.arange(1, length + 1)[None]).logits[0]


class ReadBack:
    """A GGUF file as the package gguf reads it.

    Attributes:
        fields: the values by key.
        tensors: the numbers by name, in float32.
        types: the names of the tensors' types.
    """

    def __init__(self, path: Path) -> None:
        import gguf

        reader = gguf.GGUFReader(path)
        self.fields = {key: field.contents() for key, field in reader.fields.items()}
        self.types = {tensor.name: tensor.tensor_type.name for tensor in reader.tensors}
        self.tensors = {
            tensor.name: torch.from_numpy(gguf.quants.dequantize(tensor.data, tensor.tensor_type).copy())
            for tensor in reader.tensors
        }
