"""Turns the state dict of transformers' RWKV-4 into that of a Mixture of Experts, lazily."""

import math
import re
from collections.abc import Iterable, Mapping
from typing import Any, ClassVar

import torch

from moe_hf.config.decoder import MoEDecoderConfig
from moe_hf.models.dense.lazy_tensors import LazyTensor
from moe_hf.models.dense.source import DenseFormat, DenseSource
from moe_hf.models.dense.upcycle import warn_if_logits_change
from moe_hf.models.dense.upcycled_ffn import ffn_from_dense

_ANY_TIME_MIXING = re.compile(r"(^|\.)blocks\.\d+\.attention\.time_decay$")
_PROJECTIONS = {"r_proj": "receptance", "k_proj": "key", "v_proj": "value", "o_proj": "output"}


class Flat(LazyTensor):
    """A tensor of any shape, such as (1, 1, D), as the vector that it is."""

    def __init__(self, stored: LazyTensor) -> None:
        super().__init__((math.prod(stored.shape),), stored.get_dtype())
        self._stored = stored

    def read(self) -> torch.Tensor:
        """The values, contiguous."""
        return self._stored.read().flatten()


class DenseRWKV4(DenseFormat):
    """transformers' `RwkvForCausalLM`, with or without its "rwkv." prefix."""

    name = "dense RWKV-4"
    head_is_tied = False
    fixed_fields: ClassVar[tuple[str, ...]] = ("layer_norm_epsilon", "hidden_act")

    def recognises(self, names: Iterable[str]) -> bool:
        """Whether tensor names are those of a dense RWKV-4.

        >>> DenseRWKV4().recognises(["rwkv.blocks.0.attention.time_decay"])
        True
        """
        return any(_ANY_TIME_MIXING.search(name) for name in names)

    def state_dict(
        self,
        dense: Mapping[str, Any],
        config: MoEDecoderConfig,
        with_head: bool = True,
        head_was_tied: bool = False,
        dtype: torch.dtype | None = None,
    ) -> dict[str, LazyTensor]:
        """As in DenseFormat."""
        source = DenseSource(dense, self.name, prefix="rwkv.")
        layers = {int(match[1]) for name in dense if (match := re.search(r"(?:^|\.)blocks\.(\d+)\.", name))}
        check_fields(source, config, version=4, num_layers=len(layers))
        rows, width = config.vocab_size, config.hidden_size
        state: dict[str, LazyTensor] = {
            "model.embed_tokens.weight": source.sliced("embeddings.weight", (rows, width)),
            **norm_of(source, "model.embed_norm", "blocks.0.pre_ln"),
            **norm_of(source, "model.norm", "ln_out"),
        }
        for layer in range(config.num_hidden_layers):
            parts = _layer(source, config, layer, dtype)
            state |= {f"model.layers.{layer}.{name}": value for name, value in parts.items()}
        embedding = state["model.embed_tokens.weight"]
        state |= source.head("head.weight", embedding, config, with_head, head_was_tied)
        source.raise_if_incomplete()
        warn_if_logits_change(config)
        return state


def check_fields(source: DenseSource, config: MoEDecoderConfig, version: int, num_layers: int) -> None:
    """Note every field of the configuration with which a dense RWKV's weights would not compute what they did.

    Args:
        source: gets the notes.
        config: of the model to build.
        version: of the dense model.
        num_layers: of the dense model.
    """
    if num_layers > config.num_hidden_layers:
        source.misfit(f"{num_layers} layers, but num_hidden_layers={config.num_hidden_layers}")
    for name, needed in {
        "rwkv_version": version,
        "mlp_token_shift": f"rwkv{version}",
        "mlp_placement": "each",
        "norm_type": "layer",
    }.items():
        given = getattr(config, name)
        if given != needed:
            source.misfit(f"weights that need {name}={needed!r}, but it is {given!r}")
    if set(config.mixer_of_layer) != {"rwkv"}:
        source.misfit(f"time mixing in every layer, but mixer={config.mixer!r}")
    if config.mlp_gated or config.mlp_bias:
        source.misfit("FFNs without gates and biases, but mlp_gated or mlp_bias is True")
    if config.sparse_layers and config.moe_intermediate_size != config.intermediate_size:
        source.misfit(
            f"FFNs of width {config.intermediate_size}, but moe_intermediate_size={config.moe_intermediate_size}"
        )


def norm_of(source: DenseSource, ours: str, theirs: str) -> dict[str, LazyTensor]:
    """Weight and bias of a norm, by our name for it."""
    return {f"{ours}.{kind}": source.sliced(f"{theirs}.{kind}") for kind in ("weight", "bias")}


def _layer(
    source: DenseSource, config: MoEDecoderConfig, layer: int, dtype: torch.dtype | None
) -> dict[str, LazyTensor]:
    block, width = f"blocks.{layer}", config.hidden_size
    inner, ffn_width = config.rwkv_inner_width or width, config.ffn_width
    state = {
        **norm_of(source, "input_layernorm", f"{block}.ln1"),
        **norm_of(source, "post_attention_layernorm", f"{block}.ln2"),
    }
    for name in ("time_decay", "time_first"):
        state[f"mixer.{name}"] = source.sliced(f"{block}.attention.{name}", (inner,))
    mix_shape = (1, 1, width)
    for name in ("time_mix_key", "time_mix_value", "time_mix_receptance"):
        state[f"mixer.{name}"] = Flat(source.sliced(f"{block}.attention.{name}", mix_shape))
    for ours, theirs in _PROJECTIONS.items():
        shape = (width, inner) if theirs == "output" else (inner, width)
        state[f"mixer.{ours}.weight"] = source.sliced(f"{block}.attention.{theirs}.weight", shape)
    for name in ("time_mix_key", "time_mix_receptance"):
        state[f"mlp.{name}"] = Flat(source.sliced(f"{block}.feed_forward.{name}", mix_shape))
    state["mlp.receptance.weight"] = source.sliced(f"{block}.feed_forward.receptance.weight", (width, width))
    ffn = {
        "up_proj.weight": source.sliced(f"{block}.feed_forward.key.weight", (ffn_width, width)),
        "down_proj.weight": source.sliced(f"{block}.feed_forward.value.weight", (width, ffn_width)),
    }
    return state | ffn_from_dense(ffn, config, layer, dtype, prefix="mlp.inner.")
