"""Reads an RWKV-7 in flash-linear-attention's layout."""

import re
from typing import Any, ClassVar

from moe_hf.config.decoder import MoEDecoderConfig
from moe_hf.models.dense.decoder_format import DecoderFormat
from moe_hf.models.dense.lazy_tensors import LazyTensor, Sliced
from moe_hf.models.dense.source import DenseSource

# In the order in which old checkpoints hold them as the rows of one tensor.
_MIXES = ("r", "w", "k", "v", "a", "g")
_RANK_OF_LORA = {"w_lora": "decay", "v_lora": "value", "a_lora": "rate", "g_lora": "gate"}


class DenseRWKV7(DecoderFormat):
    """flash-linear-attention's `RWKV7ForCausalLM`, as fla-hub's rwkv7 and RWKV7-Goose checkpoints are stored.

    >>> DenseRWKV7().recognises(["model.layers.0.attn.r_k"])
    True
    """

    name = "dense RWKV-7"
    model_types = ("rwkv7", "rwkv7_fla")
    head_is_tied = False
    fixed_fields: ClassVar[tuple[str, ...]] = ("layer_norm_epsilon", "hidden_act", "num_attention_heads")
    prefix = "model."
    marks = ("attn.r_k",)
    # The first layer's values are mixed with nothing.
    ignored = re.compile(r"(^|\.)layers\.0\.attn\.v_lora\.")
    mixer = "rwkv"
    mixing = "time mixing in every layer"
    needs: ClassVar[dict[str, Any]] = {
        "rwkv_version": 7,
        "mlp_token_shift": "rwkv7",
        "norm_type": "layer",
        "mlp_gated": False,
        "mlp_bias": False,
        "mlp_placement": "each",
    }
    ffn_prefix = "mlp.inner."

    def outside_layers(self, source: DenseSource, config: MoEDecoderConfig) -> dict[str, LazyTensor]:
        """The norm of the embedding, where there is one."""
        return self.norm(source, config, "model.embed_norm", "layers.0.pre_norm") if config.embedding_norm else {}

    def layer(self, source: DenseSource, config: MoEDecoderConfig, layer: int) -> dict[str, LazyTensor]:
        """As in DecoderFormat."""
        block, width = f"layers.{layer}", config.hidden_size
        state = {
            **self.norm(source, config, "input_layernorm", f"{block}.attn_norm"),
            **self.norm(source, config, "post_attention_layernorm", f"{block}.ffn_norm"),
            **self.norm(source, config, "mixer.g_norm", f"{block}.attn.g_norm"),
        }
        for name in _MIXES:
            state[f"mixer.x_{name}"] = source.flat(f"{block}.attn.x_{name}", (1, 1, width))
        for name in ("k_k", "k_a"):
            state[f"mixer.{name}"] = source.sliced(f"{block}.attn.{name}", (width,))
        state["mixer.r_k"] = source.flat(f"{block}.attn.r_k", (config.num_attention_heads, config.head_dim))
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
        return state

    def ffn(self, source: DenseSource, config: MoEDecoderConfig, layer: int) -> dict[str, Sliced]:
        """As in DecoderFormat."""
        theirs, width, inner = f"layers.{layer}.ffn", config.hidden_size, config.ffn_width
        return {
            "up_proj.weight": source.sliced(f"{theirs}.key.weight", (inner, width)),
            "down_proj.weight": source.sliced(f"{theirs}.value.weight", (width, inner)),
        }
