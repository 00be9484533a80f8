"""The fields of a configuration that the Hyena operator reads."""

from typing import Any

from transformers import PreTrainedConfig

from moe_hf.config.rules import Rule, integer, optional

_RULES = (
    Rule("hyena_order", lambda value: 2 <= value <= 1000, "an integer in [2, 1000]"),
    integer("hyena_short_conv hyena_filter_width", least=1),
    Rule("hyena_filter_layers", lambda value: 0 <= value <= 1000, "an integer in [0, 1000]"),
    Rule("hyena_filter_embedding", lambda value: 3 <= value < 2**31 and value % 2 == 1, "an odd integer >= 3"),
    Rule("hyena_filter_frequency", lambda value: 0 < value <= 1e4, "a number in (0, 10000]"),
    Rule("hyena_filter_shift", lambda value: 0 <= value <= 1e4, "a number in [0, 10000]"),
    optional(integer("hyena_filter_time_base", least=1)),
    Rule("hyena_dropout", lambda value: 0 <= value < 1, "a number in [0, 1)"),
)


class HyenaFields(PreTrainedConfig):
    """Shape of the Hyena operator (Poli et al. 2023) and of its filters, which reach `max_position_embeddings` tokens.

    Args:
        hyena_order: number of gates N, at least 2; the operator has N - 1 long convolutions.
        hyena_short_conv: taps of the convolution behind the first projection; with 1 it looks at no other token.
        hyena_filter_width: width of the network that computes the filters.
        hyena_filter_layers: its layers between the first and the last.
        hyena_filter_embedding: features of a lag that it reads: the lag, cosines and sines; odd, at least 3.
        hyena_filter_frequency: initial factor in its sines.
        hyena_filter_train_frequency: whether the factor is learnt.
        hyena_filter_shift: what is added to the decaying window, so that no lag is out of reach.
        hyena_filter_learned_features: whether an offset to the features is learnt, as in HyenaDNA.
        hyena_filter_time_base: the lags that are the filters' unit of time; None means `max_position_embeddings`, as it
            is when the configuration is made. It stays when that is raised later, and so does what was learnt.
        hyena_dropout: dropout of what goes into the long convolutions, in [0, 1).
    """

    hyena_order: int = 2
    hyena_short_conv: int = 3
    hyena_filter_width: int = 64
    hyena_filter_layers: int = 2
    hyena_filter_embedding: int = 33
    hyena_filter_frequency: float | int = 4.0
    hyena_filter_train_frequency: bool = True
    hyena_filter_shift: float | int = 0.05
    hyena_filter_learned_features: bool = False
    hyena_filter_time_base: int | None = None
    hyena_dropout: float | int = 0.0

    @property
    def hyena_lags(self) -> int:
        """`hyena_filter_time_base`, never None."""
        # The other field is the decoder's, of which this is a part.
        config: Any = self
        return self.hyena_filter_time_base or config.max_position_embeddings

    def validate_hyena(self) -> None:
        """Check the fields of the Hyena operator.

        Raises:
            ConfigError: one is out of range.
        """
        self.require_all(_RULES)
