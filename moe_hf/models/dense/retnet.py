"""Reads a dense RetNet in flash-linear-attention's layout, such as fla-hub's."""

from typing import Any, ClassVar

from moe_hf.config.decoder import MoEDecoderConfig
from moe_hf.models.dense.decoder_format import DecoderFormat
from moe_hf.models.dense.lazy_tensors import LazyTensor, Sliced
from moe_hf.models.dense.source import DenseSource


class DenseRetNet(DecoderFormat):
    """flash-linear-attention's `RetNetForCausalLM`, with or without its "model." prefix.

    >>> DenseRetNet().recognises(["model.layers.0.attn.q_proj.weight"])
    True
    >>> DenseRetNet().recognises(["model.layers.0.mixer.q_proj.weight"])
    False
    """

    name = "dense RetNet"
    model_types = ("retnet",)
    head_is_tied = False
    fixed_fields: ClassVar[tuple[str, ...]] = (
        "layer_norm_epsilon",
        "hidden_act",
        "retention_heads",
        "retention_rotation",
        "retention_rope_theta",
        "retention_norm",
    )
    prefix = "model."
    marks = ("attn.q_proj.weight",)
    mixer = "retention"
    mixing = "retention in every layer"
    positions = ("none", "rotary")
    needs: ClassVar[dict[str, Any]] = {
        **DecoderFormat.needs,
        "norm_type": "rms",
        "mlp_gated": True,
        "mlp_bias": False,
        "retention_bias": False,
    }

    def layer(self, source: DenseSource, config: MoEDecoderConfig, layer: int) -> dict[str, LazyTensor]:
        """As in DecoderFormat."""
        theirs, width = f"layers.{layer}", config.hidden_size
        keys, values = config.retention_key_width, config.retention_value_width
        shapes = {"q_proj": (keys, width), "k_proj": (keys, width), "v_proj": (values, width)}
        shapes["o_proj"] = (width, values)
        if config.retention_gate:
            shapes["g_proj"] = (values, width)
        state = {
            **self.norm(source, config, "input_layernorm", f"{theirs}.attn_norm"),
            **self.norm(source, config, "post_attention_layernorm", f"{theirs}.mlp_norm"),
        }
        for name, shape in shapes.items():
            state[f"mixer.{name}.weight"] = source.sliced(f"{theirs}.attn.{name}.weight", shape)
        if config.retention_norm_affine:
            # One name with the gate fused into the norm, another without.
            names = (f"{theirs}.attn.{name}.weight" for name in ("g_norm_swish_gate", "g_norm"))
            columns = (values // config.retention_heads,)
            state["mixer.g_norm.weight"] = source.sliced(source.stored_name(*names), columns)
        return state

    def ffn(self, source: DenseSource, config: MoEDecoderConfig, layer: int) -> dict[str, Sliced]:
        """As in DecoderFormat."""
        width, inner = config.hidden_size, config.ffn_width
        shapes = {"gate_proj": (inner, width), "up_proj": (inner, width), "down_proj": (width, inner)}
        return {f"{x}.weight": source.sliced(f"layers.{layer}.mlp.{x}.weight", shape) for x, shape in shapes.items()}
