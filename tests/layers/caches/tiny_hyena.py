"""A small Hyena for the tests of its histories."""

import torch

from moe_hf import HyenaWithMoE, HyenaWithMoEConfig

CLOSE = {"rtol": 1e-4, "atol": 2e-5}


def make(**overrides) -> HyenaWithMoE:
    torch.manual_seed(0)
    config = HyenaWithMoEConfig(
        **{
            "vocab_size": 41,
            "hidden_size": 16,
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
            "intermediate_size": 24,
            "num_experts": 3,
            "max_position_embeddings": 120,
            "hyena_filter_embedding": 5,
            "hyena_filter_width": 8,
            "initializer_range": 0.3,
            **overrides,
        }
    )
    return HyenaWithMoE(config).eval()


def run(model: HyenaWithMoE, ids: torch.Tensor, cache, **kwargs) -> torch.Tensor:
    with torch.no_grad():
        return model(ids, past_key_values=cache, use_cache=cache is not None, **kwargs).logits
