"""The fields of a configuration that RWKV's time mixing reads."""

from typing import Any

from transformers import PreTrainedConfig

from moe_hf.config.rules import Rule, integer, optional

RANK_FACTORS = {"decay": 2.5, "rate": 2.5, "value": 1.7, "gate": 5.0}
"""How the ranks grow with the square root of the width, as in the models of the paper."""

_RULES = (
    Rule("rwkv_version", lambda value: value in (4, 7), "7 or 4"),
    optional(integer(" ".join(["rwkv_inner_width", *(f"rwkv_{what}_rank" for what in RANK_FACTORS)]), least=1)),
)


class RWKVFields(PreTrainedConfig):
    """Shape of RWKV's time mixing.

    Args:
        rwkv_version: 7 (Peng et al. 2025, Goose), whose heads are `num_attention_heads`, or 4 (Peng et al. 2023), which
            has none.
        rwkv_inner_width: channels of version 4's time mixing; None means `hidden_size`.
        rwkv_decay_rank, rwkv_rate_rank, rwkv_value_rank, rwkv_gate_rank: inner widths of version 7's four low-rank
            projections, for the decay, the in-context learning rate, the share of the first layer's value, and the
            gate; None means about 2.5, 2.5, 1.7 and 5 times the square root of `hidden_size`, in multiples of 32.
    """

    rwkv_version: int = 7
    rwkv_inner_width: int | None = None
    rwkv_decay_rank: int | None = None
    rwkv_rate_rank: int | None = None
    rwkv_value_rank: int | None = None
    rwkv_gate_rank: int | None = None

    def rwkv_rank(self, what: str) -> int:
        """Inner width of a low-rank projection, never None.

        Args:
            what: "decay", "rate", "value" or "gate".
        """
        given = getattr(self, f"rwkv_{what}_rank")
        width: Any = self.hidden_size
        return given or max(32, round(RANK_FACTORS[what] * width**0.5 / 32) * 32)

    def validate_rwkv(self) -> None:
        """Check the version and the widths.

        Raises:
            ConfigError: one is not allowed.
        """
        self.require_all(_RULES)
