"""Reads a dense RetNet in flash-linear-attention's layout, such as fla-hub's, as the start of a Mixture of Experts.

Komatsuzaki et al. 2023, Sparse Upcycling: every expert starts as the dense FFN, so the function is kept exactly as
long as the weights of a token's experts sum to 1.
"""

import re
from collections.abc import Iterable, Mapping
from typing import Any, ClassVar

import torch

from moe_hf.config.decoder import MoEDecoderConfig
from moe_hf.models.dense.lazy_tensors import LazyTensor
from moe_hf.models.dense.source import DenseFormat, DenseSource
from moe_hf.models.dense.upcycle import warn_if_logits_change
from moe_hf.models.dense.upcycled_ffn import ffn_from_dense

_ANY_RETENTION = re.compile(r"(^|\.)layers\.\d+\.attn\.q_proj\.weight$")


class DenseRetNet(DenseFormat):
    """flash-linear-attention's `RetNetForCausalLM`, with or without its "model." prefix."""

    name = "dense RetNet"
    head_is_tied = False
    fixed_fields: ClassVar[tuple[str, ...]] = (
        "layer_norm_epsilon",
        "hidden_act",
        "retention_heads",
        "retention_rotation",
        "retention_rope_theta",
        "retention_norm",
    )

    def recognises(self, names: Iterable[str]) -> bool:
        """Whether tensor names are those of a dense RetNet.

        >>> DenseRetNet().recognises(["model.layers.0.attn.q_proj.weight"])
        True
        >>> DenseRetNet().recognises(["model.layers.0.mixer.q_proj.weight"])
        False
        """
        return any(_ANY_RETENTION.search(name) for name in names)

    def state_dict(
        self,
        dense: Mapping[str, Any],
        config: MoEDecoderConfig,
        with_head: bool = True,
        head_was_tied: bool = False,
        dtype: torch.dtype | None = None,
    ) -> dict[str, LazyTensor]:
        """As in DenseFormat."""
        source = DenseSource(dense, self.name, prefix="model.")
        _check_shape(source, dense, config)
        embedding = (config.vocab_size, config.hidden_size)
        state: dict[str, LazyTensor] = {
            "model.embed_tokens.weight": source.sliced("embeddings.weight", embedding),
            "model.norm.weight": source.sliced("norm.weight"),
        }
        for layer in range(config.num_hidden_layers):
            parts = _layer(source, config, layer, dtype)
            state |= {f"model.layers.{layer}.{name}": value for name, value in parts.items()}
        table = state["model.embed_tokens.weight"]
        state |= source.head("lm_head.weight", table, config, with_head, head_was_tied)
        if "score.weight" in dense:
            state["score.weight"] = source.sliced("score.weight")
        source.raise_if_incomplete()
        warn_if_logits_change(config)
        return state


def _check_shape(source: DenseSource, dense: Mapping[str, Any], config: MoEDecoderConfig) -> None:
    layers = {int(match[1]) for name in dense if (match := re.search(r"(?:^|\.)layers\.(\d+)\.", name))}
    if len(layers) > config.num_hidden_layers:
        source.misfit(f"{len(layers)} layers, but num_hidden_layers={config.num_hidden_layers}")
    if set(config.mixer_of_layer) != {"retention"}:
        source.misfit(f"retention in every layer, but mixer={config.mixer!r}")
    source.require(config, norm_type="rms", mlp_gated=True, mlp_bias=False, retention_bias=False)
    source.require(config, embedding_norm=False, mlp_token_shift="none", mlp_placement="each")
    if config.position_embedding_type == "learned":
        source.misfit("no learned positions, but position_embedding_type is 'learned'")
    inner = config.intermediate_size
    if config.sparse_layers and config.moe_intermediate_size != inner:
        source.misfit(f"FFNs of width {inner}, but moe_intermediate_size={config.moe_intermediate_size}")


def _layer(
    source: DenseSource, config: MoEDecoderConfig, layer: int, dtype: torch.dtype | None
) -> dict[str, LazyTensor]:
    theirs, width, inner = f"layers.{layer}", config.hidden_size, config.ffn_width
    keys, values = config.retention_key_width, config.retention_value_width
    shapes = {"q_proj": (keys, width), "k_proj": (keys, width), "v_proj": (values, width), "o_proj": (width, values)}
    if config.retention_gate:
        shapes["g_proj"] = (values, width)
    state: dict[str, LazyTensor] = {
        "input_layernorm.weight": source.sliced(f"{theirs}.attn_norm.weight"),
        "post_attention_layernorm.weight": source.sliced(f"{theirs}.mlp_norm.weight"),
    }
    for name, shape in shapes.items():
        state[f"mixer.{name}.weight"] = source.sliced(f"{theirs}.attn.{name}.weight", shape)
    if config.retention_norm_affine:
        # One name with the gate fused into the norm, another without.
        fused, plain = (f"{theirs}.attn.{name}.weight" for name in ("g_norm_swish_gate", "g_norm"))
        columns = (values // config.retention_heads,)
        state["mixer.g_norm.weight"] = source.sliced(plain if source.has(plain) else fused, columns)
    ffn_shapes = {"gate_proj": (inner, width), "up_proj": (inner, width), "down_proj": (width, inner)}
    ffn = {f"{name}.weight": source.sliced(f"{theirs}.mlp.{name}.weight", shape) for name, shape in ffn_shapes.items()}
    return state | ffn_from_dense(ffn, config, layer, dtype)
