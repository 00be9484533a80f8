"""Makes the configuration of a model, or of one layer of it, from a size of the sweep."""

from typing import Any

from moe_hf.bench.speed.sizes import Size
from moe_hf.config.gpt2_moe import GPT2WithMoEConfig

CONTEXT = 256
_HEAD_WIDTH = 64


def moe_config(size: Size, **overrides: Any) -> GPT2WithMoEConfig:
    """One sparse layer of `size`, without special tokens, so that generation goes on until it is told to stop.

    Args:
        size: width, experts, routing, activation and dtype.
        **overrides: further fields of `GPT2WithMoEConfig`.

    Raises:
        ConfigError: the size, or the backend among the overrides, asks for something that is not possible.
    """
    heads = size.hidden_size // _HEAD_WIDTH if size.hidden_size % _HEAD_WIDTH == 0 else 1
    fields = {
        "vocab_size": 4096,
        "hidden_size": size.hidden_size,
        "num_attention_heads": heads,
        "num_hidden_layers": 1,
        "mlp_layer_types": ["sparse"],
        "intermediate_size": size.expert_width,
        "moe_intermediate_size": size.expert_width,
        "num_experts": size.num_experts,
        "num_experts_per_tok": size.k,
        "hidden_act": size.activation,
        "router_type": size.router_type,
        "router_capacity_factor": size.capacity_factor,
        "router_eval_capacity_factor": size.capacity_factor,
        "max_position_embeddings": max(CONTEXT, size.tokens),
        "bos_token_id": None,
        "eos_token_id": None,
        "dtype": size.dtype,
        "attn_implementation": "sdpa",
    }
    return GPT2WithMoEConfig(**{**fields, **overrides})


def batch_shape(size: Size) -> tuple[int, int]:
    """Sequences and positions that hold the tokens: full contexts where they divide, else one sequence.

    >>> batch_shape(Size(tokens=2048)), batch_shape(Size(tokens=100))
    ((8, 256), (1, 100))
    """
    if size.tokens % CONTEXT == 0:
        return size.tokens // CONTEXT, CONTEXT
    return 1, size.tokens
