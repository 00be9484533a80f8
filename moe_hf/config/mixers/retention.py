"""The fields of a configuration that RetNet's retention reads."""

from transformers import PreTrainedConfig

from moe_hf.config.strict import strict_config


@strict_config
class RetentionFields(PreTrainedConfig):
    """Shape of retention (Sun et al. 2023, RetNet).

    Args:
        retention_num_heads: heads, each with a decay of its own; None means `num_attention_heads`.
    """

    retention_num_heads: int | None = None
