"""The fields of a configuration that Mamba's mixers read."""

import math
from typing import Any

from transformers import PreTrainedConfig

from moe_hf.config.rules import Rule, integer, optional

MAMBA_VERSIONS = (1, 2)


def _is_interval(limit: list[float] | None) -> bool:
    return limit is None or (len(limit) == 2 and 0 <= limit[0] <= limit[1] and limit[0] < 1e3)


_RULES = (
    Rule("mamba_version", lambda value: value in MAMBA_VERSIONS, "1 or 2"),
    # The width that it gives is checked afterwards, or its conversion would fail first.
    Rule("mamba_expand", lambda value: 0 < value <= 1e6, "a number in (0, 1e+06]"),
    optional(integer("mamba_state_size mamba_time_step_rank", least=1)),
    integer("mamba_conv_kernel mamba_head_dim mamba_num_groups", least=1),
    Rule(
        "mamba_time_step_min mamba_time_step_max mamba_time_step_floor mamba_time_step_scale",
        lambda value: 0 < value <= 1e3,
        "a number in (0, 1000]",
    ),
    Rule(
        "mamba_time_step_limit",
        _is_interval,
        "None or [least, greatest] with 0 <= least <= greatest and least < 1000",
    ),
    optional(Rule("mamba_bcdt_norm_eps", lambda value: 0 < value <= 1, "a number in (0, 1]")),
)


class MambaFields(PreTrainedConfig):
    """Shape of Mamba (Gu and Dao 2023) and Mamba-2 (Dao and Gu 2024).

    Args:
        mamba_version: 1 (selective scan) or 2 (SSD: scalar decay per head).
        mamba_expand: inner width as a multiple of `hidden_size`.
        mamba_state_size: numbers of state per inner channel; None means 16 in version 1, 128 in version 2.
        mamba_conv_kernel: taps of the causal convolution.
        mamba_use_bias: whether the projections in and out have biases.
        mamba_use_conv_bias: whether the convolution has one.
        mamba_time_step_rank: version 1: rank of the projection to step sizes; None means `hidden_size` / 16, rounded
            up.
        mamba_head_dim: version 2: inner channels per head; divides the inner width.
        mamba_num_groups: version 2: groups of heads that share keys and queries; divides the heads.
        mamba_time_step_limit: version 2: [least, greatest] step size, in training and in decoding; None means none.
        mamba_time_step_min, mamba_time_step_max, mamba_time_step_floor: fresh weights give step sizes that are
            log-uniform between the first two, and at least the third.
        mamba_time_step_scale: version 1: factor of the fresh weights of the projection to step sizes.
        mamba_bcdt_norm_eps: version 1: keys, queries and step sizes are divided by their root mean square, with this
            added to the mean square (Zuo et al. 2024, Falcon Mamba, section 2.2); None means that they are not.
    """

    mamba_version: int = 2
    mamba_expand: float | int = 2
    mamba_state_size: int | None = None
    mamba_conv_kernel: int = 4
    mamba_use_bias: bool = False
    mamba_use_conv_bias: bool = True
    mamba_time_step_rank: int | None = None
    mamba_head_dim: int = 64
    mamba_num_groups: int = 1
    mamba_time_step_limit: list[float | int] | None = None
    mamba_time_step_min: float | int = 0.001
    mamba_time_step_max: float | int = 0.1
    mamba_time_step_floor: float | int = 1e-4
    mamba_time_step_scale: float | int = 1.0
    mamba_bcdt_norm_eps: float | None = None

    @property
    def mamba_inner_width(self) -> int:
        """Channels of the scan."""
        return int(self.mamba_expand * self._mamba_width)

    @property
    def mamba_num_heads(self) -> int:
        """Heads of version 2."""
        return self.mamba_inner_width // self.mamba_head_dim

    @property
    def mamba_rank(self) -> int:
        """Rank of the projection to step sizes, never None."""
        return self.mamba_time_step_rank or math.ceil(self._mamba_width / 16)

    @property
    def mamba_state_width(self) -> int:
        """Numbers of state per inner channel, never None."""
        return self.mamba_state_size or (16 if self.mamba_version == 1 else 128)

    @property
    def _mamba_width(self) -> int:
        # The field is the decoder's, of which this is a part.
        config: Any = self
        return config.hidden_size

    def validate_mamba(self) -> None:
        """Check Mamba's sizes and step sizes.

        Raises:
            ConfigError: one is not allowed.
        """
        self.require_all(_RULES)
        inner = self.mamba_inner_width
        self.require(inner >= 1, "mamba_expand", f"at least 1 / hidden_size = 1 / {self._mamba_width}")
        largest = self.mamba_time_step_max
        self.require(self.mamba_time_step_min <= largest, "mamba_time_step_min", f"at most {largest}")
        config: Any = self
        if self.mamba_version == 2 and "mamba" in config.mixer_of_layer:
            divides = inner % self.mamba_head_dim == 0
            self.require(divides, "mamba_head_dim", f"a divisor of {inner} channels, mamba_expand times the width")
            heads = self.mamba_num_heads
            self.require(heads % self.mamba_num_groups == 0, "mamba_num_groups", f"a divisor of {heads} heads")
