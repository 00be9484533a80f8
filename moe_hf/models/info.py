"""Counts a configuration's parameters, FLOPs and bytes, exactly, without building the model."""

from typing import Any

from moe_hf.config.decoder import MoEDecoderConfig
from moe_hf.ops.hashing import MOST_HASHED_EXPERTS

_FLOAT32 = 4
# AdamW keeps a weight, its gradient and two moments.
_ADAMW_COPIES = 4


def get_moe_model_info(config: MoEDecoderConfig) -> dict[str, Any]:
    """How large a model is and what a token costs in it.

    Returns:
        A dictionary with, among others:
        `total_params` (equal to `sum(p.numel())`, a tied head counted once), `active_params` (what one token meets:
        all but the experts it does not visit), `dense_twin_params` (every layer dense), each also in millions as
        `..._m`; `active_fraction`; `expert_utilization` ("12.5%": share of a sparse layer's EXPERTS that a token
        visits, not of the parameters); `moe_layers`, `dense_layers`; `context_length`; `embedding_params_m`;
        `flops_per_token` (forward, one token at full context, a multiply-add counted as 2); `weight_bytes` (float32)
        and `train_state_bytes` (weights, gradients and AdamW moments in float32; activations come on top).
    """
    width, inner, experts = config.hidden_size, config.expert_width, config.num_experts
    moe_layers = len(config.sparse_layers)
    dense_layers = config.num_hidden_layers - moe_layers

    embedding = config.vocab_size * width
    if config.position_embedding_type == "learned":
        embedding += config.max_position_embeddings * width
    head = 0 if config.tie_word_embeddings else config.vocab_size * width
    mixers = config.num_hidden_layers * _mixer_params(config)
    norms = (2 * config.num_hidden_layers + 1) * 2 * width
    dense_ffn = _ffn_params(width, config.ffn_width)
    expert = _ffn_params(width, inner)
    shared = config.shared_expert_intermediate_size
    shared_rest = _ffn_params(width, shared) + (width if config.shared_expert_gate else 0) if shared else 0
    # A hash router has no parameters.
    routers = sum(experts * width for kind in config.router_of_sparse_layer if kind != "hash")
    sparse_rest = routers + moe_layers * shared_rest

    base = embedding + head + mixers + norms + dense_layers * dense_ffn
    total = base + moe_layers * experts * expert + sparse_rest
    active = base + _visited_experts(config) * expert + sparse_rest
    twin = base + moe_layers * dense_ffn

    # Every matrix a token meets costs a multiply-add per weight; the embedding is looked up, the head is multiplied.
    matrices = active - embedding - head + config.vocab_size * width
    attention = 2 * config.num_hidden_layers * config.max_position_embeddings * width
    return {
        "total_params": total,
        "active_params": active,
        "dense_twin_params": twin,
        "embedding_params": embedding,
        "total_params_m": total / 1e6,
        "active_params_m": active / 1e6,
        "dense_twin_params_m": twin / 1e6,
        "embedding_params_m": embedding / 1e6,
        "active_non_embedding_params_m": (active - embedding) / 1e6,
        "active_fraction": active / total,
        "expert_utilization": f"{100 * config.num_experts_per_tok / experts:.1f}%",
        "num_experts": experts,
        "num_experts_per_tok": config.num_experts_per_tok,
        "moe_layers": moe_layers,
        "dense_layers": dense_layers,
        "context_length": config.max_position_embeddings,
        "flops_per_token": 2 * (matrices + attention),
        "weight_bytes": _FLOAT32 * total,
        "train_state_bytes": _ADAMW_COPIES * _FLOAT32 * total,
    }


def _visited_experts(config: MoEDecoderConfig) -> int:
    # Hash routing sends a token to two experts at most.
    k = config.num_experts_per_tok
    return sum(min(k, MOST_HASHED_EXPERTS) if kind == "hash" else k for kind in config.router_of_sparse_layer)


def _ffn_params(width: int, inner: int) -> int:
    return 2 * width * inner + inner + width


def _mixer_params(config: MoEDecoderConfig) -> int:
    width = config.hidden_size
    return 4 * (width * width + width) + config.mixer_short_conv * 3 * width
