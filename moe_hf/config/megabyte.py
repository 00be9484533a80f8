"""The configuration of MegaByte: a decoder over patches, a decoder within each patch, and the patch size."""

import math
from dataclasses import fields
from typing import Any, ClassVar

from transformers import PreTrainedConfig

from moe_hf.base.errors import ConfigError
from moe_hf.config.decoder import MoEDecoderConfig
from moe_hf.config.pattern import MIXER_NAMES
from moe_hf.config.rules import MOST_ROWS
from moe_hf.config.strict import strict_config

_PLAN = MoEDecoderConfig.base_model_tp_plan or {}
# What the local decoder does not take over from the global one: its shape, and what only makes sense for long rows.
_OWN = {
    "mixer": "attention",
    "mixer_short_conv": 0,
    "num_key_value_heads": None,
    "attention_head_dim": None,
    "sliding_window": None,
    "sliding_window_layers": None,
    "rotary_layers": None,
    "rope_parameters": None,
    "layer_types": None,
    "mlp_layer_types": None,
    "mlp_placement": "each",
    "mlp_token_shift": "none",
    "embedding_multiplier": 1.0,
    "logits_scaling": 1.0,
    "position_embedding_type": "learned",
    "embedding_norm": False,
    "router_eval_capacity_factor": None,
    "output_router_logits": False,
}
# Those of attention are for both decoders.
_MIXER_FIELDS = tuple(f"{mixer}_" for mixer in MIXER_NAMES if mixer != "attention")
_WIDTHS = ("intermediate_size", "moe_intermediate_size", "shared_expert_intermediate_size")
_SHAPE = ("hidden_size", "num_hidden_layers", "num_attention_heads", "max_position_embeddings", *_WIDTHS)


@strict_config
class MegaByteWithMoEConfig(MoEDecoderConfig):
    """Two decoders with experts: one over patches of bytes, one over the bytes of each patch (Yu et al. 2023).

    The fields of `MoEDecoderConfig` describe the global decoder, whose `hidden_size` is the width of a patch; `mixer`
    may be any. But `vocab_size` counts the ids of bytes, `max_position_embeddings` and `hyena_filter_time_base` bytes.

    Args:
        patch_size: bytes P of a patch; divides `hidden_size`.
        local_lookback: bytes of the patch before that the local decoder reads again ahead of each patch, in [0, P], so
            that the first bytes of a patch are predicted from their neighbours too (the purpose of the paper's
            cross-patch attention, section 2.3.2). 0 is the paper's plain form; None means P // 2.
        local_config: fields of the local decoder, as a dictionary or whole. What is left out is taken from the global
            decoder: the shape at half its size, everything else alike. It attends, whatever the global decoder does.

    Raises:
        ConfigError: a value is wrong, or the two decoders do not fit together.

    >>> config = MegaByteWithMoEConfig(hidden_size=768, patch_size=8, local_config={"num_hidden_layers": 2})
    >>> config.local_config.hidden_size, config.global_config.max_position_embeddings
    (384, 1025)
    """

    model_type = "megabyte_moe"
    # transformers declares both as plain attributes of the class.
    sub_configs: ClassVar[dict[str, type[PreTrainedConfig]]] = {"local_config": MoEDecoderConfig}
    derived_fields: ClassVar[dict[str, str]] = {
        **MoEDecoderConfig.derived_fields,
        "local_lookback": "default_lookback",
    }
    base_model_tp_plan: ClassVar[dict[str, Any] | None] = {
        f"{decoder}.{name}": style for decoder in ("global_decoder", "local_decoder") for name, style in _PLAN.items()
    }

    vocab_size: int = 264
    max_position_embeddings: int = 8192
    patch_size: int = 8
    local_lookback: int | None = None
    local_config: dict[str, Any] | MoEDecoderConfig | None = None

    def __post_init__(self, **kwargs: Any) -> None:
        """Fill in what follows from other fields; runs before validation."""
        if "global_config" in kwargs:
            raise ConfigError(
                "global_config is not allowed; the global decoder's fields are the configuration's own, such as "
                f"hidden_size=512, and local_config holds the local decoder's; got {kwargs['global_config']!r}"
            )
        for name in ("patch_size", "hidden_size"):
            # The local decoder's shape is made of them before they are validated.
            self.require(1 <= getattr(self, name) <= MOST_ROWS, name, f"an integer >= 1 and <= {MOST_ROWS}")
        allowed = f"None or an integer in [0, patch_size={self.patch_size}]"
        self.require(0 <= self.lookback <= self.patch_size, "local_lookback", allowed)
        # Set aside until the global fields are final: what the local decoder does not say follows from them.
        given, self.local_config = self.local_config, None
        backends = {f"_{name}": kwargs.get(name) for name in ("attn_implementation", "experts_implementation")}
        super().__post_init__(**kwargs)
        if not isinstance(given, MoEDecoderConfig):
            given = MoEDecoderConfig(**{**self._local_fields(given or {}), **(given or {})})
        self.local_config = given
        for name, value in backends.items():
            # Once more, now that there is a decoder below to tell.
            if value is not None:
                setattr(self, name, value)

    @classmethod
    def from_dict(cls, config_dict: dict[str, Any], **kwargs: Any) -> Any:
        """As in `MoEDecoderConfig`; an override of a field that both decoders share reaches both."""
        local = config_dict.get("local_config")
        if isinstance(local, dict) and "local_config" not in kwargs:
            overridden = {cls.attribute_map.get(key, key) for key in kwargs} - {*_OWN, *_SHAPE}
            if overridden:
                config_dict, local = cls._left_out_again(config_dict), MoEDecoderConfig._left_out_again(local)
            # What the file has alike in both decoders follows the override; what differs was chosen apart.
            alike = {key for key in overridden if key in local and local[key] == config_dict.get(key)}
            config_dict = {**config_dict, "local_config": {k: v for k, v in local.items() if k not in alike}}
        return super().from_dict(config_dict, **kwargs)

    @property
    def global_config(self) -> MoEDecoderConfig:
        """The global decoder's configuration by itself, made anew: positions count patches, and it has no vocabulary.

        The patch of start stands before the bytes, so there is one more position than patches.
        """
        longest = self.max_position_embeddings // self.patch_size + 1
        ids = {f"{name}_token_id": None for name in ("bos", "eos", "pad")}
        base = self.hyena_filter_time_base
        counted = {
            "max_position_embeddings": longest,
            "hyena_filter_time_base": base and base // self.patch_size + 1,
        }
        return self._decoder({**self._decoder_fields(), **ids, "vocab_size": 1, **counted})

    @property
    def local_decoder_config(self) -> MoEDecoderConfig:
        """`local_config`, never None."""
        if not isinstance(self.local_config, MoEDecoderConfig):
            raise ConfigError(f"local_config={self.local_config!r} is not allowed here; give it when constructing")
        return self.local_config

    @property
    def lookback(self) -> int:
        """`local_lookback`, never None."""
        return self.local_lookback or 0

    def default_lookback(self) -> int:
        """`local_lookback` where it is None."""
        return self.patch_size // 2

    @property
    def router_of_sparse_layer(self) -> list[str]:
        """The router's name for each sparse layer, the global decoder's first."""
        return [*super().router_of_sparse_layer, *self.local_decoder_config.router_of_sparse_layer]

    def make_dense(self) -> None:
        """As in `MoEDecoderConfig`, for both decoders."""
        super().make_dense()
        self.local_decoder_config.make_dense()

    def validate_patches(self) -> None:
        """Check that the two decoders fit together.

        Raises:
            ConfigError: they do not.
        """
        size, local = self.patch_size, self.local_decoder_config
        self.require(self.hidden_size % size == 0, "hidden_size", f"a multiple of patch_size={size}")
        self.require(
            not {"hash"} & set(self.router_of_sparse_layer),
            "router_type",
            "one that looks at hidden states, not at ids: a patch has no id",
        )
        self.require(self.sliding_window is None, "sliding_window", "None: a MegaByteCache keeps all patches")
        for name in ("embedding_multiplier", "logits_scaling"):
            self.require(getattr(self, name) == 1, name, "1: bytes are embedded and predicted by modules of their own")
        for name, allowed in {
            "vocab_size": self.vocab_size,
            "num_experts": self.num_experts,
            "num_experts_per_tok": self.num_experts_per_tok,
            "router_eval_capacity_factor": None,
            "sliding_window": None,
            "embedding_multiplier": 1,
            "logits_scaling": 1,
        }.items():
            _require_local(local, name, getattr(local, name) == allowed, f"{allowed!r}, whatever else differs")
        _require_local(local, "mixer", set(local.mixer_of_layer) == {"attention"}, "'attention': patches are short")
        places = size + self.lookback
        longest = local.max_position_embeddings
        _require_local(
            local, "max_position_embeddings", longest >= places, f"at least patch_size + local_lookback = {places}"
        )

    def _decoder_fields(self) -> dict[str, Any]:
        hosts = {field.name for field in fields(PreTrainedConfig)}
        # As they are stored: what was left out is left to each decoder.
        return {field.name: self.stored(field.name) for field in fields(MoEDecoderConfig) if field.name not in hosts}

    def _local_fields(self, given: dict[str, Any]) -> dict[str, Any]:
        width = given.get("hidden_size", max(1, self.hidden_size // 2))
        shape: dict[str, Any] = {
            "hidden_size": width,
            "num_hidden_layers": max(1, self.num_hidden_layers // 2),
            # Heads must divide the width, whatever that is.
            "num_attention_heads": math.gcd(width, max(1, self.num_attention_heads // 2)),
            "max_position_embeddings": self.patch_size + self.lookback,
            **{name: (getattr(self, name) or 0) * width // self.hidden_size for name in _WIDTHS},
        }
        if "intermediate_size" in given and "moe_intermediate_size" not in given:
            shape["moe_intermediate_size"] = given["intermediate_size"]
        if not self.sparse_layers:
            shape["mlp_layer_types"] = ["dense"] * given.get("num_hidden_layers", shape["num_hidden_layers"])
        shared = {name: value for name, value in self._decoder_fields().items() if not name.startswith(_MIXER_FIELDS)}
        return {**shared, **_OWN, **shape, "dtype": self.dtype}

    def _decoder(self, values: dict[str, Any]) -> MoEDecoderConfig:
        config = MoEDecoderConfig(**values, dtype=self.dtype)
        config._attn_implementation = self._attn_implementation
        config._experts_implementation = self._experts_implementation
        return config


def _require_local(local: MoEDecoderConfig, name: str, condition: bool, allowed: str) -> None:
    if not condition:
        raise ConfigError(f"local_config: {name}={getattr(local, name)!r} is not allowed; it must be {allowed}")
