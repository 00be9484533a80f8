"""Named model sizes, each with the parameter counts that it must have."""

from typing import Any, NamedTuple

from moe_hf.base.errors import ConfigError, did_you_mean
from moe_hf.base.registry import Registry
from moe_hf.config.architectures import architecture_config
from moe_hf.config.gpt2_moe import GPT2WithMoEConfig
from moe_hf.config.megabyte import MegaByteWithMoEConfig


class Preset(NamedTuple):
    """A model size: fields of the configuration, and its parameters in millions with its own experts."""

    fields: dict[str, Any]
    total_m: float
    active_m: float


def _gpt2_shape(context: int, width: int, layers: int, heads: int, ffn: int) -> dict[str, Any]:
    return {
        "max_position_embeddings": context,
        "hidden_size": width,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "intermediate_size": ffn,
        "num_experts": 16,
        "num_experts_per_tok": 2,
    }


# What learnt best on a CPU within minutes: rotary positions and a short convolution decide arithmetic and copying; an
# expert that every token visits learns from all of them, which eight small ones alone have too few tokens for.
_TINY: dict[str, Any] = {
    "vocab_size": 1024,
    "max_position_embeddings": 256,
    "hidden_size": 128,
    "num_hidden_layers": 4,
    "num_attention_heads": 2,
    "intermediate_size": 512,
    "num_experts": 8,
    "num_experts_per_tok": 1,
    "moe_intermediate_size": 128,
    "shared_expert_intermediate_size": 384,
    "norm_topk_prob": False,
    # A thousand steps, in which texts grow longer: biases and thresholds have to follow faster than by default.
    "router_bias_update_speed": 0.01,
    "router_threshold_decay": 0.8,
    "position_embedding_type": "rotary",
    "mixer_short_conv": 5,
    "rope_theta": 1000.0,
    "initializer_range": 0.04,
    "bos_token_id": None,
    "eos_token_id": None,
}

# What a router needs in place of the tiny preset's top-1, at the same active size. A single sigmoid weight either is
# always 1, once normalised, and teaches the router nothing, or shuts experts off.
_TINY_BY_ROUTER: dict[str, dict[str, Any]] = {
    "sigmoid_bias": {"num_experts_per_tok": 2, "norm_topk_prob": True, "moe_intermediate_size": 64},
}

# What of a preset belongs to GPT-2 and not to its siblings, whose mixers know the order of tokens by themselves.
_OF_GPT2 = ("position_embedding_type", "bos_token_id", "eos_token_id")

# A patch of eight bytes is about four words: it needs a wider vector, and is read an eighth as often. The context is
# in bytes.
_TINY_BY_FAMILY: dict[str, dict[str, Any]] = {
    "megabyte_moe": {
        "vocab_size": 264,
        "max_position_embeddings": 1024,
        "hidden_size": 256,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "intermediate_size": 1024,
        "moe_intermediate_size": 256,
        "shared_expert_intermediate_size": 768,
        "position_embedding_type": "rotary",
        # Of patches, not of words.
        "mixer_short_conv": 3,
        "patch_size": 8,
        "local_config": {
            "hidden_size": 128,
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
            "mixer_short_conv": 3,
        },
    },
}

_FFN_WIDTHS = ("intermediate_size", "moe_intermediate_size", "shared_expert_intermediate_size")

PRESETS: Registry[Preset] = Registry(
    "model size",
    {
        "tiny": Preset(_TINY, 1.4, 0.9),
        "500m": Preset(_gpt2_shape(1024, 1024, 8, 16, 4096), 657.0, 186.9),
        "1b": Preset(_gpt2_shape(1024, 1280, 12, 20, 5120), 1482.1, 380.6),
        "2b": Preset(_gpt2_shape(2048, 1536, 16, 24, 6144), 2799.7, 684.9),
        # Named after the parameters that a token really meets, within 3%.
        "500m-active": Preset(_gpt2_shape(1024, 1280, 16, 20, 5120), 1954.3, 485.6),
        "1b-active": Preset(_gpt2_shape(1024, 1536, 24, 24, 6144), 4157.8, 985.6),
        "2b-active": Preset(_gpt2_shape(2048, 2048, 28, 32, 8192), 8566.2, 1987.5),
    },
)


def create_moe_config(
    model_size: str, use_flash_attention: bool = True, architecture: str = "gpt2", **overrides: Any
) -> Any:
    """The configuration of a named size.

    Args:
        model_size: a key of `PRESETS`.
        use_flash_attention: True takes PyTorch's fused attention (sdpa, which runs its FlashAttention kernel on CUDA
            in half precision); False the unfused reference ("eager"). `attn_implementation="flash_attention_3"` and
            the like, among the overrides, ask for a package's own kernels.
        architecture: "gpt2" (a `GPT2WithMoEConfig`), "retnet", "mamba", "hyena", "rwkv", "megabyte", or a pattern of
            mixers such as "mamba*3,attention". The counts of `PRESETS` are GPT-2's; see `get_moe_model_info`.
        **overrides: fields of the configuration, under its names or GPT-2's where it is one.

    Raises:
        ConfigError: an unknown size, architecture or field, or a value that is not allowed.

    >>> create_moe_config("500m", num_experts=32).num_experts
    32
    >>> create_moe_config("tiny", architecture="mamba*3,attention").mixer_of_layer
    ['mamba', 'mamba', 'mamba', 'attention']
    """
    config_class, own = architecture_config(architecture)
    allowed = [*config_class.__dataclass_fields__, *config_class.attribute_map]
    allowed += ["attn_implementation", "experts_implementation", "num_labels"]
    for name in overrides:
        if name not in allowed:
            raise ConfigError(f"unknown configuration field {name!r}{did_you_mean(name, allowed)}")
    # Under one name each: below, what was given must be recognised whichever name it came by.
    overrides = {config_class.attribute_map.get(name, name): value for name, value in overrides.items()}
    preset = PRESETS[model_size].fields
    if model_size == "tiny":
        preset = {**preset, **_TINY_BY_ROUTER.get(str(overrides.get("router_type")), {})}
    if config_class is MegaByteWithMoEConfig and model_size != "tiny":
        # A token of a large vocabulary is about four bytes.
        context = 4 * preset["max_position_embeddings"]
        preset = {**preset, "max_position_embeddings": context}
    if config_class is not GPT2WithMoEConfig:
        preset = {name: value for name, value in preset.items() if name not in _OF_GPT2}
        if model_size == "tiny":
            preset = {**preset, **_TINY_BY_FAMILY.get(config_class.model_type, {})}
    fields = {**preset, **own, **overrides}
    width = fields["hidden_size"]
    if isinstance(width, int):
        # The preset's FFNs belong to the preset's width: they grow and shrink with it.
        for name in _FFN_WIDTHS:
            if name in preset and name not in overrides:
                fields[name] = preset[name] * width // preset["hidden_size"]
    fields.setdefault("attn_implementation", "sdpa" if use_flash_attention else "eager")
    return config_class(**fields)
