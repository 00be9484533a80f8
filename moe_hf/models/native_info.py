"""Counts the parameters and FLOPs of transformers' own models, dense or with experts, without making a weight."""

import re
from typing import Any

import torch
from torch import nn
from transformers import AutoModelForCausalLM, PreTrainedConfig

from moe_hf.base.errors import reading
from moe_hf.models.found_routers import find_routers

# Of models whose configuration names no limit.
_CONTEXT = 2048


def native_counts(config: PreTrainedConfig) -> dict[str, Any]:
    """The counts of `get_moe_model_info` that the others follow from, for a class of transformers.

    `dense_twin_params` has an FFN of `intermediate_size` in place of each layer's experts and router; `sparse_layers`
    holds the numbers of those layers.
    """
    # Without memory or values: only shapes are looked at.
    with reading("the configuration"), torch.device("meta"):
        model: Any = AutoModelForCausalLM.from_config(config)
    text = config.get_text_config()
    routers = find_routers(model)
    parameters = dict(model.named_parameters())
    routed = sum(value.numel() for name, value in parameters.items() if ".experts." in name)
    num_experts = next((len(value) for name, value in parameters.items() if ".experts." in name), 1)
    per_token = getattr(text, "num_experts_per_tok", None) or 1
    total = sum(value.numel() for value in parameters.values())
    active = total - routed + routed * per_token // num_experts
    embedding = model.get_input_embeddings().weight.numel()
    layers, width = text.num_hidden_layers, text.hidden_size
    # Every matrix a token meets costs a multiply-add per weight; the embedding is looked up, the head is multiplied.
    matrices = active - embedding
    head = model.get_output_embeddings()
    if head is not None and head.weight is model.get_input_embeddings().weight:
        matrices += head.weight.numel()
    attention_width = getattr(text, "head_dim", None) or width // text.num_attention_heads
    # Some know no limit.
    context = getattr(text, "max_position_embeddings", None) or _CONTEXT
    mixing = layers * 2 * context * text.num_attention_heads * attention_width
    blocks = [model.get_submodule(name.rpartition(".")[0]) for name in routers]
    # Gate, up and down.
    dense_ffn = 3 * width * (getattr(text, "intermediate_size", None) or 0)
    return {
        "total_params": total,
        "active_params": active,
        "dense_twin_params": total - sum(map(_count, blocks)) + len(blocks) * dense_ffn,
        "embedding_params": embedding,
        "expert_utilization": f"{100 * per_token / num_experts:.1f}%",
        "num_experts": num_experts,
        "num_experts_per_tok": per_token,
        "moe_layers": len(blocks),
        "dense_layers": layers - len(blocks),
        "sparse_layers": tuple(_layer_of(name) for name in routers),
        "context_length": context,
        "flops_per_token": 2 * (matrices + mixing),
    }


def _layer_of(name: str) -> int:
    number = re.search(r"\.(\d+)\.", name)
    return int(number[1]) if number else 0


def _count(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())
