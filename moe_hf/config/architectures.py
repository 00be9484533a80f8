"""Which family's configuration a word on a command line means: a name, or a pattern of mixers."""

from typing import Any

from moe_hf.base.errors import ConfigError, did_you_mean
from moe_hf.base.registry import Registry
from moe_hf.config.decoder import MoEDecoderConfig
from moe_hf.config.gpt2_moe import GPT2WithMoEConfig
from moe_hf.config.hyena_moe import HyenaWithMoEConfig
from moe_hf.config.llama_moe import LlamaWithMoEConfig
from moe_hf.config.mamba_moe import MambaWithMoEConfig
from moe_hf.config.megabyte import MegaByteWithMoEConfig
from moe_hf.config.pattern import MIXER_NAMES
from moe_hf.config.retnet_moe import RetNetWithMoEConfig
from moe_hf.config.rwkv_moe import RWKVWithMoEConfig

ARCHITECTURES: Registry[type[MoEDecoderConfig]] = Registry(
    "architecture",
    {
        "gpt2": GPT2WithMoEConfig,
        "llama": LlamaWithMoEConfig,
        "retnet": RetNetWithMoEConfig,
        "mamba": MambaWithMoEConfig,
        "hyena": HyenaWithMoEConfig,
        "rwkv": RWKVWithMoEConfig,
        "megabyte": MegaByteWithMoEConfig,
    },
)


def architecture_config(word: str) -> tuple[type[MoEDecoderConfig], dict[str, Any]]:
    """The configuration class that `word` means, and the fields that come with it.

    Args:
        word: a key of `ARCHITECTURES`, or a pattern of mixers such as "mamba*3,attention", in which attention layers
            get rotary positions.

    Raises:
        ConfigError: it is neither.

    >>> config_class, fields = architecture_config("mamba*3,attention")
    >>> config_class.__name__, fields["mixer"]
    ('MambaWithMoEConfig', 'mamba*3,attention')
    """
    if word in ARCHITECTURES:
        return ARCHITECTURES[word], {}
    mixers = [part.partition("*")[0].strip() for part in word.split(",")]
    unknown = next((mixer for mixer in mixers if mixer not in MIXER_NAMES), None)
    if unknown is not None or set(mixers) == {"none"}:
        # Within a pattern only mixers have names.
        names = [*MIXER_NAMES, *(ARCHITECTURES if len(mixers) == 1 else ())]
        raise ConfigError(
            f"architecture={word!r} is not allowed; it must be {', '.join(ARCHITECTURES)}, or a pattern of mixers such "
            f"as 'mamba*3,attention' made of {', '.join(MIXER_NAMES)}{did_you_mean(unknown, names) if unknown else ''}"
        )
    first = next((mixer for mixer in mixers if mixer not in ("attention", "none")), "attention")
    fields: dict[str, Any] = {"mixer": word}
    if "attention" in mixers:
        fields["position_embedding_type"] = "rotary"
    # A pattern takes the defaults (norms, FFNs) of the family whose own mixer is its first that is not attention,
    # and those of GPT-2's where that mixer has no family.
    families = (config for config in ARCHITECTURES.values() if config.mixer == first)
    return next(families, GPT2WithMoEConfig), fields


def is_of_architecture(config: Any, word: str) -> bool:
    """Whether a configuration is what `word` means: the family, or a hybrid with the same mixers.

    Args:
        config: of any transformers model.
        word: as in `architecture_config`.
    """
    config_class, fields = architecture_config(word)
    if type(config) is not config_class:
        return False
    if not fields:
        return len(set(config.mixer_of_layer) - {"none"}) == 1
    try:
        shape = {"num_hidden_layers": config.num_hidden_layers, "mlp_placement": config.mlp_placement}
        meant = config_class(**{**fields, **shape})
    except ConfigError:
        # The pattern does not fit into so many layers.
        return False
    return config.mixer_of_layer == meant.mixer_of_layer
