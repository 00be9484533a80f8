"""Tiny models of every kind of mixer, for the table of tests that all of them pass."""

from typing import Any

import torch
from transformers import PreTrainedModel

from moe_hf.models.auto import FAMILIES

# A name for the test -> (model type, fields of the configuration).
KINDS: dict[str, tuple[str, dict[str, Any]]] = {
    "gpt2": ("gpt2_moe", {}),
    "llama": (
        "llama_moe",
        {
            "num_key_value_heads": 2,
            "rope_parameters": {
                **{"rope_type": "llama3", "factor": 4.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0},
                "original_max_position_embeddings": 16,
            },
        },
    ),
    "llama-window": (
        "llama_moe",
        {
            **{"num_key_value_heads": 1, "attention_head_dim": 10, "attention_bias": True, "attention_qk_norm": "head"},
            **{"sliding_window": 5, "sliding_window_layers": [1], "attention_output_bias": False},
        },
    ),
    "llama-behind": (
        "llama_moe",
        {
            **{"norm_placement": "behind", "attention_qk_norm": "width", "num_key_value_heads": 2},
            **{
                "rotary_layers": [1],
                "embedding_multiplier": 2.0,
                "residual_multiplier": 0.5,
                "attention_multiplier": 0.3,
            },
            **{"logits_scaling": 3.0},
        },
    ),
    "mamba-llama": (
        "llama_moe",
        {"mixer": "mamba,attention", "num_key_value_heads": 2, "mamba_version": 1, "sliding_window": 6},
    ),
    "megabyte": ("megabyte_moe", {"patch_size": 4, "local_config": {"hidden_size": 24, "num_attention_heads": 2}}),
    "mamba1": ("mamba_moe", {"mamba_version": 1, "mamba_state_size": 5}),
    "mamba2": ("mamba_moe", {"mamba_state_size": 7, "mamba_head_dim": 16, "mamba_num_groups": 2}),
    "mamba-interleaved": ("mamba_moe", {"mamba_version": 1, "mamba_state_size": 5, "mlp_placement": "interleaved"}),
    "mamba-attention": ("mamba_moe", {"mamba_head_dim": 8, "mamba_state_size": 6, "mixer": "mamba,attention"}),
    "hyena": ("hyena_moe", {"hyena_filter_embedding": 5, "hyena_filter_width": 8}),
    "hyena-order3": (
        "hyena_moe",
        {"hyena_order": 3, "hyena_filter_learned_features": True, "hyena_filter_embedding": 5, "hyena_filter_width": 8},
    ),
    "hyena-attention": (
        "hyena_moe",
        {"mixer": "hyena,attention", "hyena_filter_embedding": 5, "hyena_filter_width": 8},
    ),
    "gpt2-rotary-conv": ("gpt2_moe", {"position_embedding_type": "rotary", "mixer_short_conv": 3}),
    "retnet": ("retnet_moe", {}),
    "retnet-layer-interleaved": ("retnet_moe", {"retention_rotation": "interleaved", "retention_norm": "layer"}),
    "retnet-attention": ("retnet_moe", {"mixer": "retention,attention", "position_embedding_type": "rotary"}),
    "rwkv7": ("rwkv_moe", {}),
    "rwkv4": ("rwkv_moe", {"rwkv_version": 4, "rwkv_inner_width": 40}),
    "rwkv7-attention": ("rwkv_moe", {"mixer": "attention,rwkv"}),
}

TINY: dict[str, Any] = {
    "vocab_size": 61,
    "hidden_size": 32,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "intermediate_size": 48,
    "max_position_embeddings": 96,
    "num_experts": 4,
    "num_experts_per_tok": 2,
    "initializer_range": 0.2,
    "tie_word_embeddings": False,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
}


def tiny_family(kind: str, seed: int = 0, **overrides: Any) -> PreTrainedModel:
    """A small causal LM in eval mode that generates without ever stopping early.

    Every parameter is moved away from the zero or one it may start at, so that each has a share in the logits.
    """
    model_type, fields = KINDS[kind]
    family = FAMILIES[model_type]
    torch.manual_seed(seed)
    model = family.causal_lm(family.config(**{**TINY, **fields, **overrides})).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 1:
                parameter += 0.1 * torch.randn_like(parameter)
    model.generation_config.eos_token_id = None
    return model
