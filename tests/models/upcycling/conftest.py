"""Small dense models as transformers makes them, of every architecture that has an exact Mixture of Experts there."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import (
    AutoModelForCausalLM,
    GraniteConfig,
    LlamaConfig,
    MistralConfig,
    Olmo2Config,
    PreTrainedConfig,
    Qwen2Config,
    Qwen3Config,
)

MakeDense = Callable[..., Path]

# Odd on purpose: a width that no power of two divides, heads that share keys, a head wider than its share.
SHAPE: dict[str, Any] = {
    "vocab_size": 67,
    "hidden_size": 36,
    "intermediate_size": 60,
    "num_hidden_layers": 3,
    "num_attention_heads": 6,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
}
CONFIGS: dict[str, Callable[..., PreTrainedConfig]] = {
    "llama": lambda **fields: LlamaConfig(**{**SHAPE, "head_dim": 8, **fields}),
    "mistral": lambda **fields: MistralConfig(**{**SHAPE, "sliding_window": 5, **fields}),
    "qwen2": lambda **fields: Qwen2Config(**{**SHAPE, **fields}),
    "qwen3": lambda **fields: Qwen3Config(**{**SHAPE, "head_dim": 8, **fields}),
    "granite": lambda **fields: GraniteConfig(
        **{
            **SHAPE,
            "embedding_multiplier": 3.0,
            "logits_scaling": 2.0,
            "residual_multiplier": 0.4,
            "attention_multiplier": 0.3,
            **fields,
        }
    ),
    "olmo2": lambda **fields: Olmo2Config(**{**SHAPE, **fields}),
}


def save_dense(config: PreTrainedConfig, folder: Path, dtype: torch.dtype = torch.float32, **kwargs: Any) -> Path:
    """A model with weights so large that an error in any of them shows."""
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.dim() > 1 or name.endswith("bias"):
                parameter.normal_(std=0.3)
    model.to(dtype).save_pretrained(folder, **kwargs)
    return folder


@pytest.fixture
def dense(tmp_path: Path) -> MakeDense:
    """Saves a dense model of a type and gives its folder."""

    def make(kind: str, dtype: torch.dtype = torch.float32, shard: str = "5GB", **fields: Any) -> Path:
        return save_dense(CONFIGS[kind](**fields), tmp_path / "dense", dtype, max_shard_size=shard)

    return make


@torch.no_grad()
def logits(folder: Path, length: int = 20, **kwargs: Any) -> torch.Tensor:
    """What the model of a folder says of some ids, in its own type."""
    model = AutoModelForCausalLM.from_pretrained(folder, **kwargs).eval()
    ids = torch.arange(2 * length).view(2, length) % model.config.vocab_size
    return model(ids).logits


def difference(a: torch.Tensor, b: torch.Tensor) -> float:
    """The largest difference, relative to the largest value."""
    return float((a - b).abs().max() / b.abs().max())
