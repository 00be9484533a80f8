"""The fields of a configuration that Mamba's mixers read."""

from transformers import PreTrainedConfig

from moe_hf.config.strict import strict_config


@strict_config
class MambaFields(PreTrainedConfig):
    """Shape of Mamba (Gu and Dao 2023) and Mamba-2 (Dao and Gu 2024).

    Args:
        mamba_version: 1 (selective scan) or 2 (SSD: scalar decay per head).
    """

    mamba_version: int = 2
