"""Turns the state dict of an RWKV-7 in flash-linear-attention's layout into that of a Mixture of Experts, lazily."""

import re
from collections.abc import Iterable, Mapping
from typing import Any, ClassVar

import torch

from moe_hf.config.decoder import MoEDecoderConfig
from moe_hf.models.dense.lazy_tensors import LazyTensor
from moe_hf.models.dense.rwkv import Flat, check_fields, norm_of
from moe_hf.models.dense.source import DenseFormat, DenseSource
from moe_hf.models.dense.upcycle import warn_if_logits_change
from moe_hf.models.dense.upcycled_ffn import ffn_from_dense

# The first layer's values are mixed with nothing.
_UNUSED = re.compile(r"(^|\.)layers\.0\.attn\.v_lora\.")
_ANY_TIME_MIXING = re.compile(r"(^|\.)layers\.\d+\.attn\.r_k$")
# In the order in which old checkpoints hold them as the rows of one tensor.
_MIXES = ("r", "w", "k", "v", "a", "g")
_RANK_OF_LORA = {"w_lora": "decay", "v_lora": "value", "a_lora": "rate", "g_lora": "gate"}


class DenseRWKV7(DenseFormat):
    """flash-linear-attention's `RWKV7ForCausalLM`, as fla-hub's rwkv7 and RWKV7-Goose checkpoints are stored."""

    name = "dense RWKV-7"
    head_is_tied = False
    fixed_fields: ClassVar[tuple[str, ...]] = ("layer_norm_epsilon", "hidden_act", "num_attention_heads")

    def recognises(self, names: Iterable[str]) -> bool:
        """Whether tensor names are those of a dense RWKV-7.

        >>> DenseRWKV7().recognises(["model.layers.0.attn.r_k"])
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
        source = DenseSource(dense, self.name, prefix="model.", ignored=_UNUSED)
        layers = {int(match[1]) for name in dense if (match := re.search(r"(?:^|\.)layers\.(\d+)\.", name))}
        check_fields(source, config, version=7, num_layers=len(layers))
        rows, width = config.vocab_size, config.hidden_size
        state: dict[str, LazyTensor] = {
            "model.embed_tokens.weight": source.sliced("embeddings.weight", (rows, width)),
            **norm_of(source, "model.norm", "norm"),
        }
        if config.embedding_norm:
            state |= norm_of(source, "model.embed_norm", "layers.0.pre_norm")
        for layer in range(config.num_hidden_layers):
            parts = _layer(source, config, layer, dtype)
            state |= {f"model.layers.{layer}.{name}": value for name, value in parts.items()}
        embedding = state["model.embed_tokens.weight"]
        state |= source.head("lm_head.weight", embedding, config, with_head, head_was_tied)
        source.raise_if_incomplete()
        warn_if_logits_change(config)
        return state


def _layer(
    source: DenseSource, config: MoEDecoderConfig, layer: int, dtype: torch.dtype | None
) -> dict[str, LazyTensor]:
    block, width, ffn_width = f"layers.{layer}", config.hidden_size, config.ffn_width
    state = {
        **norm_of(source, "input_layernorm", f"{block}.attn_norm"),
        **norm_of(source, "post_attention_layernorm", f"{block}.ffn_norm"),
        **norm_of(source, "mixer.g_norm", f"{block}.attn.g_norm"),
    }
    for name in _MIXES:
        state[f"mixer.x_{name}"] = Flat(source.sliced(f"{block}.attn.x_{name}", (1, 1, width)))
    for name in ("k_k", "k_a", "r_k"):
        heads = (config.num_attention_heads, config.head_dim)
        state[f"mixer.{name}"] = Flat(source.sliced(f"{block}.attn.{name}", heads if name == "r_k" else (width,)))
    for name in ("r_proj", "k_proj", "v_proj", "o_proj"):
        state[f"mixer.{name}.weight"] = source.sliced(f"{block}.attn.{name}.weight", (width, width))
    for name, what in _RANK_OF_LORA.items():
        if name == "v_lora" and layer == 0:
            continue
        rank, lora = config.rwkv_rank(what), f"{block}.attn.{name}.lora"
        state[f"mixer.{name}.down.weight"] = source.sliced(f"{lora}.0.weight", (rank, width))
        state[f"mixer.{name}.up.weight"] = source.sliced(f"{lora}.2.weight", (width, rank))
        if name != "g_lora":
            state[f"mixer.{name}.up.bias"] = source.sliced(f"{lora}.2.bias", (width,))
    state["mlp.time_mix_key"] = source.sliced(f"{block}.ffn.x_k", (width,))
    ffn = {
        "up_proj.weight": source.sliced(f"{block}.ffn.key.weight", (ffn_width, width)),
        "down_proj.weight": source.sliced(f"{block}.ffn.value.weight", (width, ffn_width)),
    }
    return state | ffn_from_dense(ffn, config, layer, dtype, prefix="mlp.inner.")
