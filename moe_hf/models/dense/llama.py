"""Reads dense models built like Llama, as transformers stores them: Mistral, Qwen, Granite, OLMo-2, Phi-3 and so on."""

from typing import Any, ClassVar

from moe_hf.config.decoder import MoEDecoderConfig
from moe_hf.models.dense.decoder_format import DecoderFormat
from moe_hf.models.dense.lazy_tensors import Computed, LazyTensor, zeros
from moe_hf.models.dense.source import DenseSource


class DenseLlama(DecoderFormat):
    """transformers' `LlamaForCausalLM` and its likes, with or without their "model." prefix.

    >>> DenseLlama().recognises(["model.layers.0.input_layernorm.weight", "model.layers.0.self_attn.q_proj.weight"])
    True
    >>> DenseLlama().recognises(["model.layers.0.input_layernorm.weight", "model.layers.0.mixer.q_proj.weight"])
    False
    """

    name = "dense Llama"
    model_types: ClassVar[tuple[str, ...]] = ("llama", "mistral", "qwen2", "qwen3", "granite", "smollm3")
    head_is_tied = False
    tied_types: ClassVar[tuple[str, ...]] = ("smollm3",)
    fixed_fields: ClassVar[tuple[str, ...]] = (
        "layer_norm_epsilon",
        "hidden_act",
        "num_attention_heads",
        "num_key_value_heads",
        "rope_theta",
        "rope_parameters",
        "sliding_window",
        "sliding_window_layers",
        "rotary_layers",
        "scale_attn_by_inverse_layer_idx",
        "attention_multiplier",
        "embedding_multiplier",
        "residual_multiplier",
        "logits_scaling",
    )
    prefix = "model."
    marks: ClassVar[tuple[str, ...]] = ("self_attn.q_proj.weight", "input_layernorm.weight")
    layer_norms: ClassVar[tuple[str, str]] = ("input_layernorm", "post_attention_layernorm")
    """Names of the norms of a layer's attention and of its FFN."""
    embedding = ("embed_tokens.weight",)
    mixer = "attention"
    mixing = "attention in every layer"
    positions = ("rotary",)
    needs: ClassVar[dict[str, Any]] = {**DecoderFormat.needs, "norm_type": "rms", "mlp_gated": True}

    def layer(self, source: DenseSource, config: MoEDecoderConfig, layer: int) -> dict[str, LazyTensor]:
        """As in DecoderFormat."""
        theirs = f"layers.{layer}"
        of_attention, of_ffn = self.layer_norms
        return {
            **self.norm(source, config, "input_layernorm", f"{theirs}.{of_attention}"),
            **self.norm(source, config, "post_attention_layernorm", f"{theirs}.{of_ffn}"),
            **self.attention(source, config, f"{theirs}.self_attn"),
        }

    def attention(self, source: DenseSource, config: MoEDecoderConfig, theirs: str) -> dict[str, LazyTensor]:
        """The tensors of a layer's attention."""
        width, queries, keys = config.hidden_size, config.attention_width, config.key_value_width
        shapes = {"q_proj": (queries, width), "k_proj": (keys, width), "v_proj": (keys, width)}
        shapes["o_proj"] = (width, queries)
        state: dict[str, LazyTensor] = {}
        for name, shape in shapes.items():
            state[f"mixer.{name}.weight"] = self.projection(source, config, f"{theirs}.{name}", shape)
            if config.attention_output_bias if name == "o_proj" else config.attention_bias:
                state[f"mixer.{name}.bias"] = source.sliced(f"{theirs}.{name}.bias", shape[:1])
        if config.attention_qk_norm != "none":
            by_head = config.attention_qk_norm == "head"
            for name, channels in (("q_norm", queries), ("k_norm", keys)):
                columns = (config.head_dim if by_head else channels,)
                state[f"mixer.{name}.weight"] = source.sliced(f"{theirs}.{name}.weight", columns)
        # The convolution is added to what it reads: all zeros change nothing.
        if config.mixer_short_conv:
            state["mixer.short_conv.weight"] = zeros((queries + 2 * keys, config.mixer_short_conv))
        return state

    def projection(
        self, source: DenseSource, config: MoEDecoderConfig, theirs: str, shape: tuple[int, ...]
    ) -> LazyTensor:
        """The weight of one of the projections of a layer."""
        return source.sliced(f"{theirs}.weight", shape)

    def ffn(self, source: DenseSource, config: MoEDecoderConfig, layer: int) -> dict[str, LazyTensor]:
        """As in DecoderFormat."""
        theirs, width, inner = f"layers.{layer}.mlp", config.hidden_size, config.ffn_width
        shapes = {"gate_proj": (inner, width), "up_proj": (inner, width), "down_proj": (width, inner)}
        state = {f"{x}.weight": self.projection(source, config, f"{theirs}.{x}", shape) for x, shape in shapes.items()}
        if config.mlp_bias:
            state |= {f"{x}.bias": source.sliced(f"{theirs}.{x}.bias", shape[:1]) for x, shape in shapes.items()}
        return state


class DenseOLMo2(DenseLlama):
    """transformers' `Olmo2ForCausalLM`, whose norms stand behind attention and FFN.

    >>> DenseOLMo2().recognises(["layers.0.post_feedforward_layernorm.weight", "layers.0.self_attn.q_norm.weight"])
    True
    """

    name = "dense OLMo-2"
    model_types = ("olmo2",)
    marks = ("self_attn.q_norm.weight", "post_feedforward_layernorm.weight")
    layer_norms = ("post_attention_layernorm", "post_feedforward_layernorm")
    needs: ClassVar[dict[str, Any]] = {**DenseLlama.needs, "norm_placement": "behind"}


class DensePhi3(DenseLlama):
    """transformers' `Phi3ForCausalLM`, which holds queries, keys and values as one matrix, and gates over ups.

    >>> DensePhi3().recognises(["layers.0.self_attn.qkv_proj.weight", "layers.0.mlp.gate_up_proj.weight"])
    True
    """

    name = "dense Phi-3"
    model_types = ("phi3",)
    tied_types: ClassVar[tuple[str, ...]] = ()
    marks = ("self_attn.qkv_proj.weight", "mlp.gate_up_proj.weight")

    def projection(
        self, source: DenseSource, config: MoEDecoderConfig, theirs: str, shape: tuple[int, ...]
    ) -> LazyTensor:
        """As in DenseLlama; some are rows of a matrix that holds several."""
        queries, keys, inner = config.attention_width, config.key_value_width, config.ffn_width
        layer, _, name = theirs.rpartition(".")
        joined = {"q_proj": (0, "qkv_proj"), "k_proj": (queries, "qkv_proj"), "v_proj": (queries + keys, "qkv_proj")}
        joined |= {"gate_proj": (0, "gate_up_proj"), "up_proj": (inner, "gate_up_proj")}
        if name not in joined:
            return super().projection(source, config, theirs, shape)
        start, whole = joined[name]
        rows = queries + 2 * keys if whole == "qkv_proj" else 2 * inner
        matrix = source.sliced(f"{layer}.{whole}.weight", (rows, shape[1]))
        # Cloned: a view would keep all of it alive, and files that save it would hold it all.
        return Computed(matrix, shape, lambda value: value[start : start + shape[0]].clone())
