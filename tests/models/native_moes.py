"""Tiny Mixtures of Experts of transformers' own classes, fresh."""

from collections.abc import Callable
from typing import Any

import torch
from transformers import (
    AutoModelForCausalLM,
    DeepseekV3Config,
    GptOssConfig,
    GraniteMoeConfig,
    JambaConfig,
    MixtralConfig,
    OlmoeConfig,
    PreTrainedConfig,
    PreTrainedModel,
    Qwen2MoeConfig,
    Qwen3MoeConfig,
)

_SHAPE: dict[str, Any] = {
    "vocab_size": 61,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
    "num_experts_per_tok": 2,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
    "initializer_range": 0.2,
}
_QWEN: dict[str, Any] = {**_SHAPE, "num_experts": 4, "moe_intermediate_size": 24}

NATIVE_MOES: dict[str, Callable[..., PreTrainedConfig]] = {
    "mixtral": lambda **fields: MixtralConfig(**{**_SHAPE, "num_local_experts": 4, **fields}),
    "qwen2_moe": lambda **fields: Qwen2MoeConfig(**{**_QWEN, "shared_expert_intermediate_size": 16, **fields}),
    "qwen3_moe": lambda **fields: Qwen3MoeConfig(**{**_QWEN, "head_dim": 8, **fields}),
    "olmoe": lambda **fields: OlmoeConfig(**{**_SHAPE, "num_experts": 4, **fields}),
    "granitemoe": lambda **fields: GraniteMoeConfig(**{**_SHAPE, "num_local_experts": 4, **fields}),
    "gpt_oss": lambda **fields: GptOssConfig(
        **{
            **_SHAPE,
            "num_local_experts": 4,
            "head_dim": 8,
            "rope_parameters": {"rope_type": "default", "rope_theta": 1e4},
            **fields,
        }
    ),
    "deepseek_v3": lambda **fields: DeepseekV3Config(
        **{
            **_SHAPE,
            "num_key_value_heads": 4,
            "moe_intermediate_size": 24,
            "n_routed_experts": 4,
            "n_group": 1,
            "topk_group": 1,
            "first_k_dense_replace": 1,
            "q_lora_rank": 16,
            "kv_lora_rank": 16,
            "qk_nope_head_dim": 8,
            "qk_rope_head_dim": 8,
            "v_head_dim": 8,
            **fields,
        }
    ),
    "jamba": lambda **fields: JambaConfig(
        **{
            **_SHAPE,
            "num_experts": 4,
            "use_mamba_kernels": False,
            "attn_layer_period": 2,
            "attn_layer_offset": 1,
            "expert_layer_period": 2,
            "expert_layer_offset": 1,
            "mamba_d_state": 4,
            "mamba_dt_rank": 4,
            **fields,
        }
    ),
}


def native_moe(kind: str, **fields: Any) -> PreTrainedModel:
    """A fresh model, the same each time."""
    torch.manual_seed(0)
    return AutoModelForCausalLM.from_config(NATIVE_MOES[kind](**fields))
