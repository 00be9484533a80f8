"""The fields of a configuration that the Hyena operator reads."""

from transformers import PreTrainedConfig

from moe_hf.config.strict import strict_config


@strict_config
class HyenaFields(PreTrainedConfig):
    """Shape of the Hyena operator (Poli et al. 2023).

    Args:
        hyena_order: number of gates N; the operator has N - 1 long convolutions.
    """

    hyena_order: int = 2
