"""The fields of a configuration that RetNet's retention reads."""

from typing import Any

from transformers import PreTrainedConfig

from moe_hf.config.rules import at_most, integer, one_of, optional

RETENTION_ROTATIONS = ("half", "interleaved", "none")
RETENTION_NORMS = ("rms", "layer")
RETENTION_FORMS = ("chunkwise", "parallel", "recurrent")

_RULES = (
    one_of("retention_rotation", RETENTION_ROTATIONS),
    one_of("retention_norm", RETENTION_NORMS),
    one_of("retention_form", RETENTION_FORMS),
    optional(integer("retention_num_heads", least=1)),
    at_most("retention_rope_theta", 1e12),
    at_most("retention_expand_k retention_expand_v", 1e6),
)


class RetentionFields(PreTrainedConfig):
    """Shape of retention (Sun et al. 2023, RetNet).

    Args:
        retention_num_heads: heads, each with a decay of its own; None means `num_attention_heads`.
        retention_expand_k: width of all heads' queries, and of their keys, as a multiple of `hidden_size`.
        retention_expand_v: likewise of the values; the paper's is 2.
        retention_rotation: how queries and keys are turned by their positions: "half" (channel i with i + K / 2 and
            frequencies theta^(-2 i / K), as in RoFormer and flash-linear-attention), "interleaved" (neighbouring
            channels and K / 2 frequencies spread evenly over all exponents from 0 to -1, ends included, as in
            torchscale) or "none".
        retention_rope_theta: base of those frequencies.
        retention_norm: norm of each head's output: "rms" or "layer".
        retention_norm_affine: whether that norm has weights, shared by the heads; they start at one.
        retention_gate: whether the swish of a projection of the input gates the output.
        retention_bias: whether the projections have biases.
        retention_form: which of the paper's forms computes a sequence: "chunkwise" (linear time), "parallel"
            (quadratic) or "recurrent" (token by token). They give the same numbers.
    """

    retention_num_heads: int | None = None
    retention_expand_k: float | int = 1.0
    retention_expand_v: float | int = 2.0
    retention_rotation: str = "half"
    retention_rope_theta: float | int = 10000.0
    retention_norm: str = "rms"
    retention_norm_affine: bool = True
    retention_gate: bool = True
    retention_bias: bool = False
    retention_form: str = "chunkwise"

    # The decoder's own fields are those of a class that inherits this one.
    @property
    def retention_heads(self: Any) -> int:
        """Number of heads, never None."""
        return self.retention_num_heads or self.num_attention_heads

    @property
    def retention_key_width(self: Any) -> int:
        """Width of the queries of all heads together."""
        return round(self.hidden_size * self.retention_expand_k)

    @property
    def retention_value_width(self: Any) -> int:
        """Width of the values of all heads together."""
        return round(self.hidden_size * self.retention_expand_v)

    def validate_retention(self: Any) -> None:
        """Check retention's words, and where a layer has it also its widths.

        Raises:
            ConfigError: a word is unknown, or a width does not divide among the heads.
        """
        self.require_all(_RULES)
        if "retention" not in self.mixer_of_layer:
            return
        # A rotation turns pairs of channels.
        multiples = {"expand_k": (1 if self.retention_rotation == "none" else 2) * self.retention_heads}
        for name, multiple in {**multiples, "expand_v": self.retention_heads}.items():
            width = self.hidden_size * getattr(self, f"retention_{name}")
            self.require(
                width >= multiple and width % multiple == 0,
                f"retention_{name}",
                f"such that {width:g}, the width that it gives with hidden_size={self.hidden_size}, is a multiple of "
                f"{multiple} with {self.retention_heads} heads",
            )
