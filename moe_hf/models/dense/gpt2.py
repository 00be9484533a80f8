"""Reads a dense GPT-2 as transformers stores it."""

import re
from typing import Any, ClassVar

from moe_hf.config.decoder import MoEDecoderConfig
from moe_hf.models.dense.decoder_format import DecoderFormat
from moe_hf.models.dense.lazy_tensors import LazyTensor, Sliced, zeros
from moe_hf.models.dense.source import DenseSource


class DenseGPT2(DecoderFormat):
    """transformers' `GPT2LMHeadModel`, with or without its "transformer." prefix.

    >>> DenseGPT2().recognises(["transformer.h.0.attn.c_attn.weight"])
    True
    """

    name = "dense GPT-2"
    model_types = ("gpt2",)
    fixed_fields: ClassVar[tuple[str, ...]] = (
        "layer_norm_epsilon",
        "hidden_act",
        "num_attention_heads",
        "scale_attn_by_inverse_layer_idx",
    )
    prefix = "transformer."
    layers = "h"
    marks = ("attn.c_attn.weight",)
    # The causal mask and what it hides keys with, which old checkpoints hold.
    ignored = re.compile(r"(^|\.)h\.\d+\.attn\.(bias|masked_bias)$")
    embedding = ("wte.weight",)
    last_norm = "ln_f"
    mixer = "attention"
    mixing = "attention in every layer"
    positions = ("learned",)
    needs: ClassVar[dict[str, Any]] = {
        **DecoderFormat.needs,
        "norm_type": "layer",
        "mlp_gated": False,
        "mlp_bias": True,
        "attention_bias": True,
    }

    def outside_layers(self, source: DenseSource, config: MoEDecoderConfig) -> dict[str, LazyTensor]:
        """The table of positions."""
        shape = (config.max_position_embeddings, config.hidden_size)
        return {"model.embed_positions.weight": source.sliced("wpe.weight", shape)}

    def layer(self, source: DenseSource, config: MoEDecoderConfig, layer: int) -> dict[str, LazyTensor]:
        """As in DecoderFormat."""
        theirs, width = f"h.{layer}", config.hidden_size
        state = {
            **self.norm(source, config, "input_layernorm", f"{theirs}.ln_1"),
            **self.norm(source, config, "post_attention_layernorm", f"{theirs}.ln_2"),
        }
        # Conv1D holds its weight as (in, out), and queries, keys and values side by side.
        for index, name in enumerate(("q_proj", "k_proj", "v_proj")):
            third = (index, 3)
            joined = source.sliced(f"{theirs}.attn.c_attn.weight", (width, 3 * width), transpose=True, part=third)
            state[f"mixer.{name}.weight"] = joined
            state[f"mixer.{name}.bias"] = source.sliced(f"{theirs}.attn.c_attn.bias", part=third)
        state["mixer.o_proj.weight"] = source.sliced(f"{theirs}.attn.c_proj.weight", (width, width), transpose=True)
        state["mixer.o_proj.bias"] = source.sliced(f"{theirs}.attn.c_proj.bias")
        # The convolution is added to what it reads: all zeros change nothing.
        if config.mixer_short_conv:
            state["mixer.short_conv.weight"] = zeros((3 * width, config.mixer_short_conv))
        return state

    def ffn(self, source: DenseSource, config: MoEDecoderConfig, layer: int) -> dict[str, Sliced]:
        """As in DecoderFormat."""
        theirs, width, inner = f"h.{layer}.mlp", config.hidden_size, config.ffn_width
        return {
            "up_proj.weight": source.sliced(f"{theirs}.c_fc.weight", (width, inner), transpose=True),
            "up_proj.bias": source.sliced(f"{theirs}.c_fc.bias"),
            "down_proj.weight": source.sliced(f"{theirs}.c_proj.weight", (inner, width), transpose=True),
            "down_proj.bias": source.sliced(f"{theirs}.c_proj.bias"),
        }
