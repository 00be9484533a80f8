"""Reads transformers' RWKV-4."""

from typing import Any, ClassVar

from moe_hf.config.decoder import MoEDecoderConfig
from moe_hf.models.dense.decoder_format import DecoderFormat
from moe_hf.models.dense.lazy_tensors import LazyTensor, Sliced
from moe_hf.models.dense.source import DenseSource

_PROJECTIONS = {"r_proj": "receptance", "k_proj": "key", "v_proj": "value", "o_proj": "output"}


class DenseRWKV4(DecoderFormat):
    """transformers' `RwkvForCausalLM`, with or without its "rwkv." prefix.

    >>> DenseRWKV4().recognises(["rwkv.blocks.0.attention.time_decay"])
    True
    """

    name = "dense RWKV-4"
    model_types = ("rwkv",)
    head_is_tied = False
    fixed_fields: ClassVar[tuple[str, ...]] = ("layer_norm_epsilon", "hidden_act")
    prefix = "rwkv."
    layers = "blocks"
    marks = ("attention.time_decay",)
    last_norm = "ln_out"
    head = "head.weight"
    mixer = "rwkv"
    mixing = "time mixing in every layer"
    needs: ClassVar[dict[str, Any]] = {
        "rwkv_version": 4,
        "mlp_token_shift": "rwkv4",
        "norm_type": "layer",
        "mlp_gated": False,
        "mlp_bias": False,
        "mlp_placement": "each",
    }
    ffn_prefix = "mlp.inner."

    def outside_layers(self, source: DenseSource, config: MoEDecoderConfig) -> dict[str, LazyTensor]:
        """The norm of the embedding."""
        return self.norm(source, config, "model.embed_norm", "blocks.0.pre_ln")

    def layer(self, source: DenseSource, config: MoEDecoderConfig, layer: int) -> dict[str, LazyTensor]:
        """As in DecoderFormat."""
        block, width = f"blocks.{layer}", config.hidden_size
        inner, mix = config.rwkv_inner_width or width, (1, 1, width)
        state = {
            **self.norm(source, config, "input_layernorm", f"{block}.ln1"),
            **self.norm(source, config, "post_attention_layernorm", f"{block}.ln2"),
        }
        for name in ("time_decay", "time_first"):
            state[f"mixer.{name}"] = source.sliced(f"{block}.attention.{name}", (inner,))
        for name in ("time_mix_key", "time_mix_value", "time_mix_receptance"):
            state[f"mixer.{name}"] = source.flat(f"{block}.attention.{name}", mix)
        for ours, theirs in _PROJECTIONS.items():
            shape = (width, inner) if theirs == "output" else (inner, width)
            state[f"mixer.{ours}.weight"] = source.sliced(f"{block}.attention.{theirs}.weight", shape)
        for name in ("time_mix_key", "time_mix_receptance"):
            state[f"mlp.{name}"] = source.flat(f"{block}.feed_forward.{name}", mix)
        state["mlp.receptance.weight"] = source.sliced(f"{block}.feed_forward.receptance.weight", (width, width))
        return state

    def ffn(self, source: DenseSource, config: MoEDecoderConfig, layer: int) -> dict[str, Sliced]:
        """As in DecoderFormat."""
        theirs, width, inner = f"blocks.{layer}.feed_forward", config.hidden_size, config.ffn_width
        return {
            "up_proj.weight": source.sliced(f"{theirs}.key.weight", (inner, width)),
            "down_proj.weight": source.sliced(f"{theirs}.value.weight", (width, inner)),
        }
