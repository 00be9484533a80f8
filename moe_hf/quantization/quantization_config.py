"""The `quantization_config` of models whose experts are stored in 8 or 4 bits."""

from typing import Any

from transformers.utils.quantization_config import QuantizationConfigMixin

from moe_hf.base.errors import ConfigError
from moe_hf.ops.experts.quantized_weights import require_format

METHOD = "moe_hf"
"""Its `quant_method`."""

GROUP_SIZE = 32
"""How many weights share a scale at 4 bits unless something else is asked for."""


class MoEQuantizationConfig(QuantizationConfigMixin):
    """Weight-only quantisation of the experts; router, attention, norms and embeddings stay as they are.

    Args:
        bits: of a weight. 8: each row of an expert's matrices has one scale. 4: each group of a row has a scale and a
            zero.
        group_size: weights of a group, 32, 64 or 128; None is 32 at 4 bits. With 8 bits it has no meaning.
        quant_method: "moe_hf", as it stands in a `config.json`.

    Raises:
        ConfigError: a value is not allowed, or there are more fields than these.

    >>> MoEQuantizationConfig(bits=4).to_dict()
    {'quant_method': 'moe_hf', 'bits': 4, 'group_size': 32}
    """

    def __init__(self, bits: int = 8, group_size: int | None = None, quant_method: str = METHOD, **others: Any) -> None:
        if quant_method != METHOD:
            raise ConfigError(f"quant_method={quant_method!r} is not allowed; it is {METHOD!r} here")
        if others:
            raise ConfigError(
                f"{', '.join(sorted(others))}: no field of {type(self).__name__}; it has bits, group_size"
            )
        if bits == 4 and group_size is None:
            group_size = GROUP_SIZE
        require_format(bits, group_size)
        # Of transformers' own methods there is a list, to which others do not belong.
        self.quant_method = METHOD  # type: ignore[assignment]
        self.bits = bits
        self.group_size = group_size
