"""Turns a dense GPT-2's state dict into that of a Mixture of Experts, lazily: nothing is read before it is needed.

Komatsuzaki et al. 2023, Sparse Upcycling: every expert starts as the dense FFN, so the function is kept exactly as
long as the weights of a token's experts sum to 1.
"""

import re
from collections.abc import Iterable, Mapping
from typing import Any, ClassVar

import torch
from transformers.utils import logging

from moe_hf.config.decoder import MoEDecoderConfig
from moe_hf.layers.ffn.routers import ROUTERS, LearnedRouter, SigmoidBiasRouter, SwitchRouter
from moe_hf.models.dense.lazy_tensors import Drawn, LazyTensor
from moe_hf.models.dense.source import DenseFormat, DenseSource
from moe_hf.models.dense.upcycled_ffn import ffn_from_dense

logger = logging.get_logger(__name__)

_ANY_ATTENTION = re.compile(r"(^|\.)h\.\d+\.attn\.c_attn\.weight$")
# The causal mask and what it hides keys with, which old checkpoints hold.
_MASKS = re.compile(r"(^|\.)h\.\d+\.attn\.(bias|masked_bias)$")


class DenseGPT2(DenseFormat):
    """transformers' `GPT2LMHeadModel`, with or without its "transformer." prefix."""

    name = "dense GPT-2"
    fixed_fields: ClassVar[tuple[str, ...]] = (
        "layer_norm_epsilon",
        "hidden_act",
        "num_attention_heads",
        "scale_attn_by_inverse_layer_idx",
    )

    def recognises(self, names: Iterable[str]) -> bool:
        """Whether tensor names are those of a dense GPT-2.

        >>> DenseGPT2().recognises(["transformer.h.0.attn.c_attn.weight"])
        True
        """
        return any(_ANY_ATTENTION.search(name) for name in names)

    def state_dict(
        self,
        dense: Mapping[str, Any],
        config: MoEDecoderConfig,
        with_head: bool = True,
        head_was_tied: bool = False,
        dtype: torch.dtype | None = None,
    ) -> dict[str, LazyTensor]:
        """As in DenseFormat."""
        source = DenseSource(dense, self.name, prefix="transformer.", ignored=_MASKS)
        _check_shape(source, dense, config)
        rows, width = config.vocab_size, config.hidden_size
        positions = (config.max_position_embeddings, width)
        state: dict[str, LazyTensor] = {
            "model.embed_tokens.weight": source.sliced("wte.weight", (rows, width)),
            "model.embed_positions.weight": source.sliced("wpe.weight", positions),
            "model.norm.weight": source.sliced("ln_f.weight"),
            "model.norm.bias": source.sliced("ln_f.bias"),
        }
        for layer in range(config.num_hidden_layers):
            parts = _layer(source, config, layer, dtype)
            state |= {f"model.layers.{layer}.{name}": value for name, value in parts.items()}
        embedding = state["model.embed_tokens.weight"]
        state |= source.head("lm_head.weight", embedding, config, with_head, head_was_tied)
        if "score.weight" in dense:
            state["score.weight"] = source.sliced("score.weight")
        source.raise_if_incomplete()
        warn_if_logits_change(config)
        return state


def warn_if_logits_change(config: MoEDecoderConfig) -> None:
    """Warn where experts that are copies will not give the dense model's logits."""
    reasons = why_logits_change(config)
    if reasons:
        logger.warning_once(
            "the upcycled model will not give the dense model's logits at step 0, since the weights of a token's "
            f"experts do not sum to 1: {'; '.join(reasons)}"
        )


def why_logits_change(config: MoEDecoderConfig) -> list[str]:
    """Why the weights of a token's experts do not sum to 1, and what to change; empty where they do.

    Experts that are copies keep the dense model's logits exactly where it is empty.
    """
    reasons = []
    for kind in dict.fromkeys(config.router_of_sparse_layer):
        router = ROUTERS[kind]
        # Softmax over all experts sums to 1 by itself.
        whole = router.score == "softmax" and config.num_experts_per_tok == config.num_experts
        if issubclass(router, SwitchRouter):
            if not whole:
                reasons.append('router_type="switch" weighs its expert by a probability; "top_k" keeps the logits')
        elif issubclass(router, LearnedRouter) and not config.norm_topk_prob and not whole:
            reasons.append("norm_topk_prob=False leaves the weights as they are; True keeps the logits")
        if issubclass(router, SigmoidBiasRouter) and config.router_scale != 1:
            reasons.append(f"router_scale={config.router_scale} multiplies the weights; 1.0 keeps the logits")
    return reasons


def _check_shape(source: DenseSource, dense: Mapping[str, Any], config: MoEDecoderConfig) -> None:
    layers = {int(match[1]) for name in dense if (match := re.search(r"(?:^|\.)h\.(\d+)\.", name))}
    if len(layers) > config.num_hidden_layers:
        source.misfit(f"{len(layers)} layers, but num_hidden_layers={config.num_hidden_layers}")
    if config.position_embedding_type != "learned":
        source.misfit(f"learned positions, but position_embedding_type is {config.position_embedding_type!r}")
    if set(config.mixer_of_layer) != {"attention"}:
        source.misfit(f"attention in every layer, but mixer={config.mixer!r}, mlp_placement={config.mlp_placement!r}")
    source.require(config, norm_type="layer", mlp_gated=False, mlp_bias=True, attention_bias=True)
    source.require(config, embedding_norm=False, mlp_token_shift="none", mlp_placement="each")
    inner = config.intermediate_size
    if config.sparse_layers and config.moe_intermediate_size != inner:
        source.misfit(f"FFNs of width {inner}, but moe_intermediate_size={config.moe_intermediate_size}")


def _layer(
    source: DenseSource, config: MoEDecoderConfig, layer: int, dtype: torch.dtype | None
) -> dict[str, LazyTensor]:
    dense, width, inner = f"h.{layer}", config.hidden_size, config.ffn_width
    state: dict[str, LazyTensor] = {}
    for ours, theirs in (("input_layernorm", "ln_1"), ("post_attention_layernorm", "ln_2")):
        state[f"{ours}.weight"] = source.sliced(f"{dense}.{theirs}.weight")
        state[f"{ours}.bias"] = source.sliced(f"{dense}.{theirs}.bias")
    for index, name in enumerate(("q_proj", "k_proj", "v_proj")):
        third = (index, 3)
        joined = source.sliced(f"{dense}.attn.c_attn.weight", (width, 3 * width), transpose=True, part=third)
        state[f"mixer.{name}.weight"] = joined
        state[f"mixer.{name}.bias"] = source.sliced(f"{dense}.attn.c_attn.bias", part=third)
    state["mixer.o_proj.weight"] = source.sliced(f"{dense}.attn.c_proj.weight", (width, width), transpose=True)
    state["mixer.o_proj.bias"] = source.sliced(f"{dense}.attn.c_proj.bias")
    if config.mixer_short_conv:
        state["mixer.short_conv.weight"] = Drawn((3 * width, config.mixer_short_conv), 0.0, 0)
    ffn = {
        "up_proj.weight": source.sliced(f"{dense}.mlp.c_fc.weight", (width, inner), transpose=True),
        "up_proj.bias": source.sliced(f"{dense}.mlp.c_fc.bias"),
        "down_proj.weight": source.sliced(f"{dense}.mlp.c_proj.weight", (inner, width), transpose=True),
        "down_proj.bias": source.sliced(f"{dense}.mlp.c_proj.bias"),
    }
    return state | ffn_from_dense(ffn, config, layer, dtype)
