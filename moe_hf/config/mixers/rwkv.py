"""The fields of a configuration that RWKV's time mixing reads."""

from transformers import PreTrainedConfig

from moe_hf.config.strict import strict_config


@strict_config
class RWKVFields(PreTrainedConfig):
    """Shape of RWKV's time mixing.

    Args:
        rwkv_version: 7 (Peng et al. 2025, Goose) or 4 (Peng et al. 2023).
    """

    rwkv_version: int = 7
