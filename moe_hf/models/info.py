"""Counts a configuration's parameters, FLOPs and bytes from the shapes of its layers, without making a weight."""

from typing import Any

import torch
from torch import nn
from transformers import PreTrainedConfig

from moe_hf.config.decoder import MoEDecoderConfig
from moe_hf.config.megabyte import MegaByteWithMoEConfig
from moe_hf.layers.experts.experts import Experts
from moe_hf.layers.ffn.dense import DenseFFN
from moe_hf.layers.ffn.moe import SparseFFN
from moe_hf.layers.norms import make_norm
from moe_hf.models.decoder import DecoderLayer
from moe_hf.models.native_info import native_counts
from moe_hf.ops.routing.hashing import MOST_HASHED_EXPERTS

_PARAMS = ("total_params", "active_params", "dense_twin_params", "embedding_params")
_FLOAT32 = 4
# AdamW keeps a weight, its gradient and two moments.
_ADAMW_COPIES = 4


def get_moe_model_info(config: PreTrainedConfig) -> dict[str, Any]:
    """How large a model is and what a token costs in it.

    Returns:
        A dictionary with, among others:
        `total_params` (equal to `sum(p.numel())`, a tied head counted once), `active_params` (what one token meets:
        all but the experts it does not visit), `dense_twin_params` (every layer dense), each also in millions as
        `..._m`; `active_fraction`; `expert_utilization` ("12.5%": share of a sparse layer's EXPERTS that a token
        visits, not of the parameters); `moe_layers`, `dense_layers`, `sparse_layers` (the numbers of the first);
        `context_length`; `embedding_params_m`; `flops_per_token` (forward, one token at full context, a multiply-add
        counted as 2); `weight_bytes` (float32) and `train_state_bytes` (weights, gradients and AdamW moments in
        float32; activations come on top).
        A token of MegaByte is a byte. The counts of a class of transformers are those of `native_counts`.
    """
    if not isinstance(config, MoEDecoderConfig):
        return _with_sizes(native_counts(config))
    if isinstance(config, MegaByteWithMoEConfig):
        return _with_sizes(_of_megabyte(config))
    width, experts = config.hidden_size, config.num_experts
    moe_layers = len(config.sparse_layers)
    embedding = config.vocab_size * width
    if config.position_embedding_type == "learned":
        embedding += config.max_position_embeddings * width
    head = 0 if config.tie_word_embeddings else config.vocab_size * width
    # Without memory or values: only shapes are looked at.
    with torch.device("meta"):
        layers = [DecoderLayer(config, i) for i in range(config.num_hidden_layers)]
        dense_ffn = _count(DenseFFN(config))
        norms = _count(make_norm(config)) * (2 if config.embedding_norm else 1)
    stacks = [module for layer in layers for module in layer.modules() if isinstance(module, Experts)]
    # The experts of all sparse layers have one size.
    expert = _count(stacks[0]) // experts if stacks else 0
    routed = moe_layers * experts * expert
    sparse_ffns = sum(_count(sparse) for layer in layers for sparse in layer.modules() if isinstance(sparse, SparseFFN))

    total = embedding + head + norms + sum(map(_count, layers))
    active = total - routed + _visited_experts(config) * expert
    # Every matrix a token meets costs a multiply-add per weight; the embedding is looked up, the head is multiplied.
    matrices = active - embedding - head + config.vocab_size * width
    mixing = sum(layer.mixer.multiply_adds(config.max_position_embeddings) for layer in layers if layer.mixer)
    return _with_sizes(
        {
            "total_params": total,
            "active_params": active,
            "dense_twin_params": total - sparse_ffns + moe_layers * dense_ffn,
            "embedding_params": embedding,
            "expert_utilization": f"{100 * config.num_experts_per_tok / experts:.1f}%",
            "num_experts": experts,
            "num_experts_per_tok": config.num_experts_per_tok,
            "moe_layers": moe_layers,
            "sparse_layers": tuple(config.sparse_layers),
            "dense_layers": config.ffn_of_layer.count("dense"),
            "context_length": config.max_position_embeddings,
            "flops_per_token": 2 * (matrices + mixing),
        }
    )


def _of_megabyte(config: MegaByteWithMoEConfig) -> dict[str, Any]:
    """The counts of a whole MegaByte, from those of its two decoders; a token is a byte."""
    size, width, local = config.patch_size, config.hidden_size, config.local_decoder_config
    of_global, of_local = get_moe_model_info(config.global_config), get_moe_model_info(local)
    added = (*_PARAMS, "moe_layers", "dense_layers")
    info = {**of_global, **{name: of_global[name] + of_local[name] for name in added}}
    # Those of the local decoder are counted on from the global one's.
    info["sparse_layers"] += tuple(config.num_hidden_layers + layer for layer in of_local["sparse_layers"])
    # The global decoder has neither the one id nor, untied, the head of one id that its configuration names.
    absent = width if config.tie_word_embeddings else 2 * width
    embedding, bridge = config.vocab_size * width // size, width // size * local.hidden_size
    for name in ("total_params", "active_params", "dense_twin_params"):
        info[name] += embedding + width + bridge + local.hidden_size - absent
    info["embedding_params"] += embedding - width
    info["context_length"] = config.max_position_embeddings
    # The global decoder runs once per patch, and multiplies by no head.
    of_patch = of_global["flops_per_token"] - 2 * width
    head = 2 * config.vocab_size * local.hidden_size
    # The local decoder reads again what it looks back at, but predicts nothing there.
    of_place = of_local["flops_per_token"] - head
    info["flops_per_token"] = of_patch / size + of_place * (size + config.lookback) / size + head + 2 * bridge
    return info


def _with_sizes(info: dict[str, Any]) -> dict[str, Any]:
    """The counts, and what follows from them."""
    total, active, embedding = info["total_params"], info["active_params"], info["embedding_params"]
    return {
        **info,
        **{f"{name}_m": info[name] / 1e6 for name in _PARAMS},
        "active_non_embedding_params_m": (active - embedding) / 1e6,
        "active_fraction": active / total,
        "weight_bytes": _FLOAT32 * total,
        "train_state_bytes": _ADAMW_COPIES * _FLOAT32 * total,
    }


def _visited_experts(config: MoEDecoderConfig) -> int:
    # Hash routing sends a token to two experts at most.
    k = config.num_experts_per_tok
    return sum(min(k, MOST_HASHED_EXPERTS) if kind == "hash" else k for kind in config.router_of_sparse_layer)


def _count(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())
