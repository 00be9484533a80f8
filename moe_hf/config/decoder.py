"""The one flat configuration that every Mixture-of-Experts decoder of this package reads."""

from typing import Any, ClassVar, cast

from moe_hf.config.mixers.attention import AttentionFields
from moe_hf.config.mixers.hyena import HyenaFields
from moe_hf.config.mixers.mamba import MambaFields
from moe_hf.config.mixers.retention import RetentionFields
from moe_hf.config.mixers.rwkv import RWKVFields
from moe_hf.config.pattern import CACHE_OF_MIXER, mixers_of_layers
from moe_hf.config.reading import ReadConfig
from moe_hf.config.strict import strict_config
from moe_hf.config.validation import ValidDecoder


@strict_config
class MoEDecoderConfig(
    ReadConfig, ValidDecoder, AttentionFields, RetentionFields, MambaFields, HyenaFields, RWKVFields
):
    """Shape and behaviour of a decoder-only language model whose FFNs may be mixtures of experts.

    A field whose None has a meaning below is saved as None where it is left out, and reads as that value
    (`DerivedFields`). One takes its value when the configuration is made: `hyena_filter_time_base`, which must not move
    with the field that it comes from.

    Args:
        vocab_size: rows of the embedding.
        hidden_size: width D of the residual stream; divisible by `num_attention_heads` unless `attention_head_dim` is
            given.
        num_hidden_layers: number of decoder layers.
        num_attention_heads: heads of a layer's attention.
        intermediate_size: width of a dense FFN; None means 4 x `hidden_size`.
        max_position_embeddings: longest sequence, in tokens.
        hidden_act: activation between the two projections of an FFN, a key of transformers' `ACT2FN`.
        norm_type: "layer" (LayerNorm) or "rms" (RMSNorm), before each sublayer and at the end.
        norm_placement: "before" norms what goes into a mixer or an FFN; "behind" norms what comes out of it, before it
            is added to the residual stream, as OLMo-2 does.
        embedding_norm: whether the embedding is normalised too, as RWKV's is.
        mlp_gated: whether FFNs and experts gate their activation (Shazeer 2020, SwiGLU).
        mlp_bias: whether the projections of FFNs and experts have biases.
        mlp_token_shift: "rwkv4" and "rwkv7" mix each token with the one before it ahead of the router, as RWKV's
            channel mixing does; "rwkv4" also gates the output with its receptance. "none" does neither.
        mlp_placement: "each" puts an FFN behind every mixer (Jamba, Granite); "interleaved" lets layers with a mixer
            alone and layers with an FFN alone alternate, each counted (as MoE-Mamba and BlackMamba number them).
        attention_bias: whether attention's projections have biases.
        position_embedding_type: "learned" (GPT-2's table, added to the embedding), "rotary" (Su et al. 2021, RoFormer;
            turns attention's queries and keys) or "none" (the mixers know the order by themselves).
        rope_theta: base of the rotary frequencies.
        mixer: what moves information between tokens: one name for all layers (`moe_hf.config.pattern.MIXER_NAMES`), one
            name per layer, or a pattern such as "mamba*3,attention" that is repeated.
        mixer_backend: "auto", "torch", "fla" or "mamba_ssm": who computes the recurrences; packages run on CUDA only.
        mixer_short_conv: taps of a causal depthwise convolution over attention's queries, keys and values (So et al.
            2021, Primer); 0 turns it off.
        attn_topk, attn_topk_blocks, attn_block_size: with `attn_implementation="topk_sparse"`, keys that each query
            looks at; with "topk_block", blocks of keys and keys per block. A number >= 1, a share of the keys in
            (0, 1), or a list with one for each layer.
        layer_types: transformers' word for the cache and mask of each layer; None derives it from the mixers.
        mlp_layer_types: "sparse" (experts), "dense" or "none" per layer; None means alternating, sparse first, or all
            sparse where FFNs are interleaved.
        num_experts: experts E of a sparse layer.
        num_experts_per_tok: experts K that each token visits, at most `num_experts`.
        moe_intermediate_size: width of one expert; None means `intermediate_size`.
        shared_expert_intermediate_size: width of an expert that every token visits as well; 0 means none.
        shared_expert_gate: whether a sigmoid of the token scales the shared expert's output (Qwen2-MoE).
        router_type: how tokens and experts find each other, one name for all sparse layers: "top_k" (softmax, then the
            K best), "switch" (the single best, weighted by its probability), "sigmoid_bias" (DeepSeek-V3), "hash" (by
            vocabulary id), "expert_choice" (experts pick tokens in training, thresholds decide in eval),
            "expert_threshold" (each expert takes what reaches its threshold). docs/load_balance.md compares them.
        router_num_hash_layers: the first so many sparse layers are hash-routed whatever `router_type` says.
        router_hash_seed: of the assignment of ids to experts.
        router_num_groups, router_groups_per_tok: with "sigmoid_bias": groups of neighbouring experts, and how many of
            them a token may draw from.
        router_scale: with "sigmoid_bias": factor of the weights.
        router_bias_update_speed: with "sigmoid_bias": step of the correction bias per optimizer step; 0 keeps it still.
        router_threshold_decay: with "expert_choice" and "expert_threshold": how much of the old threshold stays at each
            optimizer step, in [0, 1).
        router_capacity_factor: in training, an expert takes at most this times its fair share of each sequence; the
            slots beyond are dropped. None drops nothing. With "expert_choice" it is the share that each expert picks.
        router_eval_capacity_factor: the same outside training, of a sequence of `max_position_embeddings`, so that
            the outcome does not depend on how long a text will become, and raising that limit drops less; None drops
            nothing.
        router_drop_policy: who stays in training when an expert is full: "position" (who came first) or "weight" (whom
            the router weighs most). Outside training it is always "position", the only causal one.
        norm_topk_prob: whether the K chosen weights are scaled to sum to 1.
        router_aux_loss_coef: weight of the balance loss. None means 0.01, or 0.0001 with "sigmoid_bias", which balances
            by itself, or 0 where no layer is sparse.
        router_balance_loss: over what balance is asked for, each 1.0 when perfect: "batch" (the tokens of a forward),
            "global_batch" (of an optimizer step, over accumulation and ranks; needs `MoETrainer` or
            `RouterStateCallback`), "sequence" (each one by itself); or "cv_squared", the squared coefficient of
            variation of the experts' importance, 0.0 when perfect.
        router_z_loss_coef: weight of the router z-loss (Zoph et al. 2022, ST-MoE, eq. 5).
        router_jitter_noise: the router's input is multiplied by a uniform draw from 1 +- this, in training only.
        output_router_logits: whether forward returns the router logits, and the losses of them, without being asked.
        attention_dropout, resid_dropout, embd_dropout: dropout of attention weights, of each sublayer's output and
            of the embedding, in [0, 1).
        layer_norm_epsilon: added to the variance in every LayerNorm.
        initializer_range: standard deviation of fresh weights.
        scale_attn_by_inverse_layer_idx: divides attention scores by the layer's number, counted from 1.
        embedding_multiplier, residual_multiplier: factors of the embeddings, and of what each sublayer adds to the
            residual stream (Granite).
        logits_scaling: divides the logits of the next token (Granite).
        use_cache: whether forward keeps keys, values and states for the next step.
        tie_word_embeddings: whether the head shares the embedding's matrix.
        expert_init: how upcycling makes the experts from one dense FFN: "copy"; "noise" (seeded, per expert);
            "drop" (Nakamura et al. 2025, Drop-Upcycling: some units re-initialised from the weights' statistics).
        expert_init_noise: standard deviation of "noise", relative to that of the weight it is added to.
        expert_init_drop_ratio: share of the intermediate units that "drop" re-initialises, in [0, 1].
        expert_init_seed: seed of "noise", of "drop" and of the router that upcycling draws.
        router_init: "random" or "zero" router weights when upcycling.

    Raises:
        ConfigError: a value is wrong; the text names the field, the value and what is allowed.
    """

    model_type = "moe_decoder"
    keys_to_ignore_at_inference: ClassVar[list[str]] = ["cache", "past_key_values"]
    derived_fields: ClassVar[dict[str, str]] = {
        "intermediate_size": "default_ffn_width",
        "moe_intermediate_size": "default_expert_width",
        "router_aux_loss_coef": "default_aux_loss_coef",
        "mlp_layer_types": "default_mlp_layer_types",
        "layer_types": "caches_of_layers",
        "num_key_value_heads": "default_key_value_heads",
        "attention_head_dim": "default_head_dim",
        "attention_output_bias": "default_output_bias",
    }
    attribute_map: ClassVar[dict[str, str]] = {"num_local_experts": "num_experts", "activation_function": "hidden_act"}

    # Mixers are left whole; families whose mixers are linears with heads add theirs.
    base_model_tp_plan: ClassVar[dict[str, Any] | None] = {
        "layers.*.mlp.up_proj": "colwise",
        "layers.*.mlp.down_proj": "rowwise",
    }

    vocab_size: int = 50257
    hidden_size: int = 768
    num_hidden_layers: int = 12
    num_attention_heads: int = 12
    intermediate_size: int | None = None
    max_position_embeddings: int = 1024
    hidden_act: str = "gelu_new"
    norm_type: str = "layer"
    norm_placement: str = "before"
    embedding_norm: bool = False
    mlp_gated: bool = False
    mlp_bias: bool = True
    mlp_token_shift: str = "none"
    mlp_placement: str = "each"
    attention_bias: bool = True
    position_embedding_type: str = "learned"
    rope_theta: float | int = 10000.0
    mixer: str | list[str] = "attention"
    mixer_backend: str = "auto"
    mixer_short_conv: int = 0
    attn_topk: int | float | list[int | float] = 64
    attn_topk_blocks: int | float | list[int | float] = 4
    attn_block_size: int | list[int] = 128
    layer_types: list[str] | None = None
    mlp_layer_types: list[str] | None = None
    num_experts: int = 8
    num_experts_per_tok: int = 2
    moe_intermediate_size: int | None = None
    shared_expert_intermediate_size: int = 0
    shared_expert_gate: bool = False
    router_type: str = "top_k"
    router_num_hash_layers: int = 0
    router_hash_seed: int = 0
    router_num_groups: int = 1
    router_groups_per_tok: int = 1
    router_scale: float | int = 1.0
    router_bias_update_speed: float | int = 0.001
    router_threshold_decay: float | int = 0.95
    router_capacity_factor: float | int | None = None
    router_eval_capacity_factor: float | int | None = None
    router_drop_policy: str = "position"
    norm_topk_prob: bool = True
    router_aux_loss_coef: float | int | None = None
    router_balance_loss: str = "batch"
    router_z_loss_coef: float | int = 0.001
    router_jitter_noise: float | int = 0.0
    output_router_logits: bool = False
    attention_dropout: float | int = 0.0
    resid_dropout: float | int = 0.0
    embd_dropout: float | int = 0.0
    layer_norm_epsilon: float = 1e-5
    initializer_range: float = 0.02
    scale_attn_by_inverse_layer_idx: bool = False
    embedding_multiplier: float | int = 1.0
    residual_multiplier: float | int = 1.0
    logits_scaling: float | int = 1.0
    use_cache: bool = True
    bos_token_id: int | None = None
    eos_token_id: int | list[int] | None = None
    pad_token_id: int | None = None
    tie_word_embeddings: bool = True
    expert_init: str = "copy"
    expert_init_noise: float | int = 0.01
    expert_init_drop_ratio: float | int = 0.5
    expert_init_seed: int = 0
    router_init: str = "random"

    def __post_init__(self, **kwargs: Any) -> None:
        """Take aliases, refuse what cannot be read, and fill in the field that keeps its first value."""
        # A dataclass knows its fields alone: aliases arrive here, in kwargs.
        for alias, name in self.attribute_map.items():
            if alias in kwargs:
                value = kwargs.pop(alias)
                if value is not None:
                    setattr(self, name, value)
        self._refuse_misspelt_fields(kwargs)
        self._refuse_what_transformers_cannot_read(kwargs)
        # Filters are functions of the lag as a share of this: it must not move when the limit does.
        self.hyena_filter_time_base = self.hyena_lags if "hyena" in self.mixer_of_layer else None
        super().__post_init__(**kwargs)

    @property
    def ffn_width(self) -> int:
        """Width of a dense FFN, never None."""
        return cast(int, self.intermediate_size)

    @property
    def expert_width(self) -> int:
        """Width of one expert, never None."""
        return cast(int, self.moe_intermediate_size)

    def default_ffn_width(self) -> int:
        """`intermediate_size` where it is None."""
        return 4 * self.hidden_size

    def default_expert_width(self) -> int:
        """`moe_intermediate_size` where it is None."""
        return self.ffn_width

    def default_aux_loss_coef(self) -> float:
        """`router_aux_loss_coef` where it is None."""
        if not self.sparse_layers:
            # Others than our own trainers take a coefficient for a sign that there are routers.
            return 0.0
        # The bias balances; the loss only keeps single sequences from going astray (DeepSeek-AI 2024, V3).
        return 1e-4 if self.router_type == "sigmoid_bias" else 0.01

    def default_mlp_layer_types(self) -> list[str]:
        """`mlp_layer_types` where it is None."""
        kinds = ("none", "sparse") if self.mlp_placement == "interleaved" else ("sparse", "dense")
        return [kinds[i % 2] for i in range(self.num_hidden_layers)]

    @property
    def mixer_of_layer(self) -> list[str]:
        """The mixer's name for each layer; "none" where there is only an FFN.

        Raises:
            ConfigError: `mixer` names no mixer, or does not fit the number of layers.
        """
        if self.mlp_placement == "interleaved":
            mixers = mixers_of_layers(self.mixer, (self.num_hidden_layers + 1) // 2)
            return [name for mixer in mixers for name in (mixer, "none")][: self.num_hidden_layers]
        return mixers_of_layers(self.mixer, self.num_hidden_layers)

    @property
    def ffn_of_layer(self) -> list[str]:
        """The kind of FFN of each layer: "sparse", "dense", or "none" where there is only a mixer."""
        # Its None reads as the default, which a type checker cannot know.
        return cast(list[str], self.mlp_layer_types)

    def caches_of_layers(self) -> list[str]:
        """What each layer keeps between calls, in the words of `layer_types`."""
        # Read once, not layer by layer: a model asks for this at every step.
        shifts, conv = self.mlp_token_shift != "none", self.mixer_short_conv
        slides = self.sliding_window is not None
        caches = []
        for layer, (mixer, mlp) in enumerate(zip(self.mixer_of_layer, self.ffn_of_layer, strict=False)):
            cache = CACHE_OF_MIXER[mixer]
            if mixer == "attention" and ((shifts and mlp != "none") or conv):
                cache = "attention_with_state"
            elif mixer == "attention" and slides and self.window_of_layer(layer) is not None:
                cache = "sliding_attention"
            caches.append(cache)
        return caches

    @property
    def sparse_layers(self) -> list[int]:
        """Indices of the layers whose FFN is a mixture of experts."""
        return [i for i, kind in enumerate(self.ffn_of_layer) if kind == "sparse"]

    @property
    def router_of_sparse_layer(self) -> list[str]:
        """The router's name for each sparse layer, from the first to the last."""
        return [self.router_of_layer(layer) for layer in self.sparse_layers]

    def router_of_layer(self, layer_idx: int) -> str:
        """The router's name for a sparse layer, counted among all layers."""
        sparse_before = sum(layer < layer_idx for layer in self.sparse_layers)
        return "hash" if sparse_before < self.router_num_hash_layers else self.router_type

    def make_dense(self) -> None:
        """Give every FFN that is a mixture of experts its dense form: the twin to compare a model with."""
        self.mlp_layer_types = ["dense" if kind == "sparse" else kind for kind in self.ffn_of_layer]
        # There is nothing left to balance, whatever weight was chosen for it.
        self.router_aux_loss_coef = None
