"""The one flat configuration that every Mixture-of-Experts decoder of this package reads."""

import difflib
import os
from typing import Any, ClassVar

import torch
from transformers.activations import ACT2FN

from moe_hf.base.errors import CheckpointError, ConfigError
from moe_hf.base.registry import did_you_mean
from moe_hf.config.mixers.hyena import HyenaFields
from moe_hf.config.mixers.mamba import MambaFields
from moe_hf.config.mixers.retention import RetentionFields
from moe_hf.config.mixers.rwkv import RWKVFields
from moe_hf.config.pattern import mixers_of_layers
from moe_hf.config.strict import strict_config

MIXER_BACKENDS = ("auto", "torch", "fla", "mamba_ssm")
ROUTER_TYPES = ("top_k", "switch", "sigmoid_bias", "hash", "expert_choice", "expert_threshold")
ROUTER_BALANCE_LOSSES = ("batch", "global_batch", "sequence", "cv_squared")
ROUTER_DROP_POLICIES = ("position", "weight")
POSITION_EMBEDDING_TYPES = ("learned", "rotary", "none")
NORM_TYPES = ("layer", "rms")
TOKEN_SHIFTS = ("none", "rwkv4", "rwkv7")
MLP_PLACEMENTS = ("each", "interleaved")
EXPERT_INITS = ("copy", "noise", "drop")
ROUTER_INITS = ("random", "zero")
FFN_LAYER_TYPES = ("sparse", "dense", "none")
# Beyond these no machine could hold the model, or float32 a forward's numbers.
MOST_LAYERS, MOST_ROWS, MOST_FACTOR = 10_000, 2**31 - 1, 1e6
# What a layer keeps between calls, by its mixer; "attention_with_state" keeps more than keys and values.
_CACHE_OF_MIXER = {
    "attention": "full_attention",
    "retention": "recurrent",
    "mamba": "recurrent",
    "rwkv": "recurrent",
    "hyena": "history",
    "none": "recurrent",
}


@strict_config
class MoEDecoderConfig(RetentionFields, MambaFields, HyenaFields, RWKVFields):
    """Shape and behaviour of a decoder-only language model whose FFNs may be mixtures of experts.

    Args:
        vocab_size: rows of the embedding.
        hidden_size: width D of the residual stream; divisible by `num_attention_heads`.
        num_hidden_layers: number of decoder layers.
        num_attention_heads: heads of a layer's attention.
        intermediate_size: width of a dense FFN; None means 4 x `hidden_size`.
        max_position_embeddings: longest sequence, in tokens.
        hidden_act: activation between the two projections of an FFN, a key of transformers' `ACT2FN`.
        norm_type: "layer" (LayerNorm) or "rms" (RMSNorm), before each sublayer and at the end.
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
        mixer: what moves information between tokens: one name for all layers ("attention", "retention", "mamba",
            "hyena", "rwkv"), one name per layer, or a pattern such as "mamba*3,attention" that is repeated.
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
            by itself.
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
        use_cache: whether forward keeps keys and values for the next step.
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
    dense_model_types: ClassVar[tuple[str, ...]] = ()
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
        """Fill in what follows from other fields; runs before validation."""
        # Aliases first: what is derived below must see the values that they carry.
        for alias, name in self.attribute_map.items():
            if alias in kwargs:
                value = kwargs.pop(alias)
                if value is not None:
                    setattr(self, name, value)
        self._refuse_misspelt_fields(kwargs)
        self._refuse_what_transformers_cannot_read(kwargs)
        if self.intermediate_size is None:
            self.intermediate_size = self.ffn_width
        if self.moe_intermediate_size is None:
            self.moe_intermediate_size = self.expert_width
        if self.router_aux_loss_coef is None:
            self.router_aux_loss_coef = _default_aux_loss_coef(self.router_type)
        if self.mlp_layer_types is None:
            self.mlp_layer_types = _default_mlp_layer_types(self.mlp_placement, self.num_hidden_layers)
        if self.layer_types is None:
            self.layer_types = self.caches_of_layers()
        # Filters are functions of the lag as a share of this: it must not move when the limit does.
        self.hyena_filter_time_base = self.hyena_lags if "hyena" in self.mixer_of_layer else None
        super().__post_init__(**kwargs)

    @classmethod
    def from_dict(cls, config_dict: dict[str, Any], **kwargs: Any) -> Any:
        """The configuration of a `config.json`'s content; keyword arguments override its fields.

        transformers assigns the overrides after construction, when derived fields and the validation have already
        seen the old values; here they go in first.
        """
        names = {*cls.__dataclass_fields__, *cls.attribute_map}
        # transformers itself treats these two, since dtype may be "auto".
        overrides = {key: kwargs.pop(key) for key in list(kwargs) if key in names - {"dtype", "torch_dtype"}}
        overrides = {cls.attribute_map.get(key, key): value for key, value in overrides.items()}
        config_dict = {key: value for key, value in config_dict.items() if cls.attribute_map.get(key) not in overrides}
        # It follows from the other fields, and files of earlier versions have other words for it.
        config_dict = {key: value for key, value in config_dict.items() if key != "layer_types"}
        if not {"mlp_placement", "num_hidden_layers"}.isdisjoint(overrides):
            placement = config_dict.get("mlp_placement", cls.mlp_placement)
            usual = _default_mlp_layer_types(placement, len(config_dict.get("mlp_layer_types") or []))
            if config_dict.get("mlp_layer_types") == usual:
                config_dict = {key: value for key, value in config_dict.items() if key != "mlp_layer_types"}
        if "router_type" in overrides:
            derived = _default_aux_loss_coef(config_dict.get("router_type", cls.router_type))
            if config_dict.get("router_aux_loss_coef") == derived:
                config_dict = {key: value for key, value in config_dict.items() if key != "router_aux_loss_coef"}
        if "max_position_embeddings" in overrides and config_dict.get("hyena_filter_time_base") is None:
            # Files of earlier versions do not say what their filters were trained with.
            config_dict["hyena_filter_time_base"] = config_dict.get(
                "max_position_embeddings", cls.max_position_embeddings
            )
        return super().from_dict({**config_dict, **overrides}, **kwargs)

    @classmethod
    def get_config_dict(
        cls, pretrained_model_name_or_path: str | os.PathLike, **kwargs: Any
    ) -> tuple[dict[str, Any], dict[str, Any]]:
        """The content of `config.json` and the unused keyword arguments; a dense model's is translated.

        Raises:
            CheckpointError: there is no such file, or it describes another kind of model.
        """
        try:
            found, unused = super().get_config_dict(pretrained_model_name_or_path, **kwargs)
        except (TypeError, RecursionError) as error:
            raise CheckpointError(
                f"the config.json of {pretrained_model_name_or_path} is no JSON object ({error}); download it again"
            ) from error
        if not found:
            # transformers takes the defaults, the shape of some other model.
            raise CheckpointError(f"{pretrained_model_name_or_path} has no config.json; name a folder that has one")
        model_type = found.get("model_type", cls.model_type)
        if model_type in cls.dense_model_types:
            return cls.dict_from_dense(found), unused
        if model_type != cls.model_type:
            dense = f" and dense {', '.join(map(repr, cls.dense_model_types))} checkpoints"
            raise CheckpointError(
                f"{pretrained_model_name_or_path} holds a model of type {model_type!r}; this family reads "
                f"{cls.model_type!r}{dense if cls.dense_model_types else ''}"
            )
        return found, unused

    @classmethod
    def dict_from_dense(cls, dense: dict[str, Any]) -> dict[str, Any]:
        """This family's `config.json` for the content of a dense model's, one of `dense_model_types`.

        Raises:
            CheckpointError: the dense model uses a feature that would change its logits here.
        """
        raise NotImplementedError(f"{cls.__name__} reads no dense checkpoints")

    def to_dict(self) -> dict[str, Any]:
        """As in transformers, but for `layer_types`, which follows from the other fields.

        transformers reads a `config.json` also by its base class, which refuses words that it does not know there.
        """
        return {key: value for key, value in super().to_dict().items() if key != "layer_types"}

    def _refuse_what_transformers_cannot_read(self, kwargs: dict[str, Any]) -> None:
        # Before anything is derived: lists of layers, labels, the type of the weights.
        most = MOST_LAYERS
        self._require(1 <= self.num_hidden_layers <= most, "num_hidden_layers", f"an integer >= 1 and <= {most}")
        for name in ("id2label", "label2id"):
            self._require(isinstance(getattr(self, name, None), dict | None), name, "None or a dictionary")
        dtype = kwargs.get("torch_dtype", self.dtype)
        word = getattr(torch, dtype.removeprefix("torch."), None) if isinstance(dtype, str) else dtype
        if dtype not in (None, "auto") and not isinstance(word, torch.dtype):
            raise ConfigError(f"dtype={dtype!r} is not allowed; it must be None or a type such as float32 or bfloat16")
        labels = kwargs.get("num_labels")
        if labels is not None and (isinstance(labels, bool) or not isinstance(labels, int) or labels < 0):
            raise ConfigError(f"num_labels={labels!r} is not allowed; it must be an integer >= 0")

    def _refuse_misspelt_fields(self, unknown: dict[str, Any]) -> None:
        # Unknown keys are legal in a config.json of the Hub, so only near misses of a real field are refused.
        names = [*self.__dataclass_fields__, *self.attribute_map]
        for key in unknown:
            legal = key == "model_type" or key.startswith("_")
            if not legal and difflib.get_close_matches(key, names, n=1, cutoff=0.9):
                raise ConfigError(
                    f"{type(self).__name__}: unknown field {key!r}{did_you_mean(key, names)}; remove it or correct it"
                )

    @property
    def head_dim(self) -> int:
        """Width of one attention head."""
        return self.hidden_size // self.num_attention_heads

    @property
    def ffn_width(self) -> int:
        """Width of a dense FFN, never None."""
        return self.intermediate_size or 4 * self.hidden_size

    @property
    def expert_width(self) -> int:
        """Width of one expert, never None."""
        return self.moe_intermediate_size or self.ffn_width

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

    def caches_of_layers(self) -> list[str]:
        """What each layer keeps between calls, in the words of `layer_types`."""
        stateful = self.mlp_token_shift != "none"
        caches = []
        for mixer, mlp in zip(self.mixer_of_layer, self.mlp_layer_types or [], strict=False):
            more = (stateful and mlp != "none") or self.mixer_short_conv
            caches.append("attention_with_state" if mixer == "attention" and more else _CACHE_OF_MIXER[mixer])
        return caches

    @property
    def sparse_layers(self) -> list[int]:
        """Indices of the layers whose FFN is a mixture of experts."""
        return [i for i, kind in enumerate(self.mlp_layer_types or []) if kind == "sparse"]

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
        self.mlp_layer_types = ["dense" if kind == "sparse" else kind for kind in self.mlp_layer_types or []]

    def validate_architecture(self) -> None:
        """Check that sizes are positive and divide where they must (the name is transformers' own hook).

        Raises:
            ConfigError: one is not.
        """
        for name in (
            "vocab_size hidden_size num_hidden_layers num_attention_heads intermediate_size max_position_embeddings "
            "num_experts num_experts_per_tok moe_intermediate_size"
        ).split():
            self._require(1 <= getattr(self, name) <= MOST_ROWS, name, f"an integer >= 1 and <= {MOST_ROWS}")
        hashed, sparse = self.router_num_hash_layers, len(self.sparse_layers)
        self._require(hashed <= sparse or not sparse, "router_num_hash_layers", f"at most the {sparse} sparse layers")
        for name in (
            "mixer_short_conv shared_expert_intermediate_size expert_init_seed router_num_hash_layers router_hash_seed"
        ).split():
            # Seeds of PyTorch have 64 bits.
            most = 2**63 - 1 if name.endswith("_seed") else MOST_ROWS
            self._require(0 <= getattr(self, name) <= most, name, f"an integer >= 0 and <= {most}")
        heads = self.num_attention_heads
        self._require(self.hidden_size % heads == 0, "hidden_size", f"a multiple of num_attention_heads={heads}")
        if self.position_embedding_type == "rotary":
            self._require(self.head_dim % 2 == 0, "hidden_size", f"an even multiple of num_attention_heads={heads}")

    def validate_words(self) -> None:
        """Check that every named choice is one that exists.

        Raises:
            ConfigError: one does not.
        """
        for name, allowed in {
            "norm_type": NORM_TYPES,
            "mlp_token_shift": TOKEN_SHIFTS,
            "mlp_placement": MLP_PLACEMENTS,
            "mixer_backend": MIXER_BACKENDS,
            "position_embedding_type": POSITION_EMBEDDING_TYPES,
            "router_type": ROUTER_TYPES,
            "router_balance_loss": ROUTER_BALANCE_LOSSES,
            "router_drop_policy": ROUTER_DROP_POLICIES,
            "expert_init": EXPERT_INITS,
            "router_init": ROUTER_INITS,
            "hidden_act": tuple(sorted(ACT2FN)),
        }.items():
            self._require(getattr(self, name) in allowed, name, f"one of {', '.join(allowed)}")
        kinds = self.mlp_layer_types or []
        self._require(len(kinds) == self.num_hidden_layers, "mlp_layer_types", f"{self.num_hidden_layers} entries")
        for kind in kinds:
            self._require(kind in FFN_LAYER_TYPES, "mlp_layer_types", f"made of {', '.join(FFN_LAYER_TYPES)}")
        for layer, (mixer, kind) in enumerate(zip(self.mixer_of_layer, kinds, strict=True)):
            self._require(
                (mixer, kind) != ("none", "none"), "mlp_layer_types", f"an FFN in layer {layer} without mixer"
            )

    def validate_layer_type(self) -> None:
        """Check that the cache of each layer fits its mixer (the name is transformers' own hook).

        Raises:
            ConfigError: the list is too short, too long or names another cache.
        """
        needed = self.caches_of_layers()
        self._require(self.layer_types == needed, "layer_types", f"{needed} with these mixers; leave it out")

    def validate_routing(self) -> None:
        """Check the numbers that routing, its losses and the dropouts use.

        Raises:
            ConfigError: one is out of range.
        """
        experts = self.num_experts
        self._require(self.num_experts_per_tok <= experts, "num_experts_per_tok", f"at most num_experts={experts}")
        for name in "router_aux_loss_coef router_z_loss_coef router_bias_update_speed expert_init_noise".split():
            self._require(0 <= getattr(self, name) <= MOST_FACTOR, name, f"a finite number >= 0 and <= {MOST_FACTOR:g}")
        for name in ("router_jitter_noise router_threshold_decay attention_dropout resid_dropout embd_dropout").split():
            self._require(0 <= getattr(self, name) < 1, name, "a number in [0, 1)")
        for name, largest in {
            "layer_norm_epsilon": 1.0,
            "initializer_range": 100.0,
            "rope_theta": 1e12,
            "router_scale": MOST_FACTOR,
        }.items():
            self._require(0 < getattr(self, name) <= largest, name, f"a finite number > 0 and <= {largest:g}")
        for name in ("router_capacity_factor", "router_eval_capacity_factor"):
            factor = getattr(self, name)
            self._require(
                factor is None or 0 < factor <= MOST_FACTOR, name, f"None or a finite number > 0 and <= {MOST_FACTOR:g}"
            )
        self._validate_router_type()
        self._require(0 <= self.expert_init_drop_ratio <= 1, "expert_init_drop_ratio", "a number in [0, 1]")

    def _validate_router_type(self) -> None:
        kind, k, experts = self.router_type, self.num_experts_per_tok, self.num_experts
        if kind == "switch":
            self._require(k == 1, "num_experts_per_tok", 'exactly 1 with router_type="switch"; "top_k" takes more')
        if kind == "hash":
            self._require(k <= 2, "num_experts_per_tok", 'at most 2 with router_type="hash"')
        if kind == "expert_choice":
            allowed = "None with expert_choice, whose experts pick"
            self._require(self.router_eval_capacity_factor is None, "router_eval_capacity_factor", allowed)
        if kind == "sigmoid_bias":
            groups = self.router_num_groups
            self._require(groups >= 1 and experts % groups == 0, "router_num_groups", f"a divisor of {experts} experts")
            self._require(1 <= self.router_groups_per_tok <= groups, "router_groups_per_tok", f"in [1, {groups}]")
            reach = self.router_groups_per_tok * experts // groups
            self._require(k <= reach, "num_experts_per_tok", f"at most {reach}, the experts of the groups of a token")

    def validate_expert_widths(self) -> None:
        """Check that the grouped GEMM can read the experts, where it is asked for by name.

        Raises:
            ConfigError: grouped_mm is asked for and a width does not fit.
        """
        if self._experts_implementation == "grouped_mm":
            self.require_grouped_mm_widths(self.dtype)

    def require_grouped_mm_widths(self, dtype: Any) -> None:
        """Check that the rows of the experts' matrices are multiples of 16 bytes, as the grouped GEMM needs.

        Args:
            dtype: type of the weights; None means float32.

        Raises:
            ConfigError: a width does not fit.
        """
        if not self.sparse_layers:
            return
        # A name where the override `dtype="bfloat16"` came through `from_pretrained` of the configuration.
        multiple = 8 if str(dtype).removeprefix("torch.") in ("float16", "bfloat16") else 4
        for name in ("hidden_size", "moe_intermediate_size"):
            self._require(
                getattr(self, name) % multiple == 0,
                name,
                f"a multiple of {multiple} for grouped_mm in {dtype or 'float32'} (rows of 16 bytes); change it "
                "or leave experts_implementation out",
            )

    def _require(self, condition: bool, name: str, allowed: str) -> None:
        if not condition:
            raise ConfigError(f"{name}={getattr(self, name)!r} is not allowed; it must be {allowed}")


def _default_mlp_layer_types(placement: str, num_layers: int) -> list[str]:
    kinds = ("none", "sparse") if placement == "interleaved" else ("sparse", "dense")
    return [kinds[i % 2] for i in range(num_layers)]


def _default_aux_loss_coef(router_type: str) -> float:
    # The bias balances; the loss only keeps single sequences from going astray (DeepSeek-AI 2024, V3).
    return 1e-4 if router_type == "sigmoid_bias" else 0.01
