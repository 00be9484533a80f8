"""The fields of a configuration that attention reads: its heads, its window, and how positions turn them."""

import math
from typing import Any

from transformers import PreTrainedConfig
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

from moe_hf.config.rules import MOST_FACTOR, Rule, at_most, integer, one_of, optional

QK_NORMS = ("none", "head", "width")
ROPE_TYPES = ("default", *ROPE_INIT_FUNCTIONS)

_RULES = (
    integer("num_key_value_heads attention_head_dim", least=1),
    one_of("attention_qk_norm", QK_NORMS),
    optional(integer("sliding_window", least=1)),
    optional(at_most("attention_multiplier", MOST_FACTOR)),
)
# What each type of scaled angles cannot be computed without.
_NEEDED = {
    "linear": ("factor",),
    "dynamic": ("factor",),
    "yarn": ("factor", "original_max_position_embeddings"),
    "longrope": ("long_factor", "short_factor", "original_max_position_embeddings"),
    "llama3": ("factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings"),
}
_POSITIVE = (
    at_most("factor low_freq_factor high_freq_factor attention_factor beta_fast beta_slow", MOST_FACTOR),
    integer("original_max_position_embeddings", least=1),
    Rule("partial_rotary_factor", lambda value: 0 < value <= 1, "a number in (0, 1]"),
)


class AttentionFields(PreTrainedConfig):
    """Shape of attention beyond the number of its heads, and the angles of rotary positions.

    Args:
        num_key_value_heads: heads of keys and values, each of which serves as many query heads (Ainslie et al. 2023,
            grouped queries); divides `num_attention_heads`. None means one for each.
        attention_head_dim: channels of a head; None means `hidden_size` / `num_attention_heads`.
        attention_output_bias: whether the output projection has a bias; None means as `attention_bias` says.
        attention_qk_norm: RMSNorm of queries and keys ahead of their rotation: "none", "head" (each head by itself,
            one weight for all, as Qwen3 has it) or "width" (over all heads together, as OLMo-2 has it).
        attention_multiplier: factor of the scores; None means `attention_head_dim` ** -0.5.
        sliding_window: keys that a query sees, itself included; None means all before it.
        sliding_window_layers: indices of the layers with that window; None means all that attend.
        rotary_layers: indices of the layers whose queries and keys rotary positions turn (SmolLM3 leaves some out);
            None means all that attend.
        rope_parameters: which of transformers' `rope_type`s scales the angles, and its numbers; a `rope_theta` in it
            goes to the field of that name. None leaves the angles as they are.
    """

    num_key_value_heads: int | None = None
    attention_head_dim: int | None = None
    attention_output_bias: bool | None = None
    attention_qk_norm: str = "none"
    attention_multiplier: float | int | None = None
    sliding_window: int | None = None
    sliding_window_layers: list[int] | None = None
    rotary_layers: list[int] | None = None
    rope_parameters: dict[str, Any] | None = None

    @property
    def head_dim(self) -> int:
        """Width of one attention head."""
        return self.attention_head_dim  # type: ignore[return-value]

    @property
    def attention_width(self) -> int:
        """Channels of all query heads."""
        return self._whole.num_attention_heads * self.head_dim

    @property
    def key_value_width(self) -> int:
        """Channels of all key heads, and of all value heads."""
        return self._whole.num_key_value_heads * self.head_dim

    def default_key_value_heads(self) -> int:
        """`num_key_value_heads` where it is None."""
        return int(self._whole.num_attention_heads)

    def default_head_dim(self) -> int:
        """`attention_head_dim` where it is None."""
        return int(self._whole.hidden_size // self._whole.num_attention_heads)

    def default_output_bias(self) -> bool:
        """`attention_output_bias` where it is None."""
        return bool(self._whole.attention_bias)

    def window_of_layer(self, layer_idx: int) -> int | None:
        """Keys that a query sees in an attention layer; None where it sees all before it."""
        window = self.sliding_window
        if window is None:
            return None
        layers = self.sliding_window_layers
        return window if layers is None or layer_idx in layers else None

    def convert_rope_params_to_dict(self, **kwargs: Any) -> dict[str, Any]:
        """transformers' hook, which would write its default angles into every configuration; here None stays None."""
        # Its older name for the same thing.
        older = kwargs.pop("rope_scaling", None)
        found = older if self.rope_parameters is None else self.rope_parameters
        if found is not None:
            given = dict(found)
            theta = given.pop("rope_theta", None)
            if theta is not None:
                self._whole.rope_theta = theta
            given["rope_type"] = given.pop("type", None) or given.get("rope_type") or "default"
            self.rope_parameters = given
        return kwargs

    def standardize_rope_params(self) -> None:
        """transformers' hook; `convert_rope_params_to_dict` has done it."""

    def validate_rope(self) -> None:
        """Check the description of the angles (the name is transformers' own hook).

        Raises:
            ConfigError: it names no type that transformers knows, or lacks one of its numbers.
        """
        given = self.rope_parameters
        if given is None:
            return
        kind = given.get("rope_type")
        self._require_rope(kind in ROPE_TYPES, f"of a rope_type among {', '.join(ROPE_TYPES)}")
        missing = [name for name in _NEEDED.get(str(kind), ()) if given.get(name) is None]
        self._require_rope(not missing, f'complete: rope_type="{kind}" needs {", ".join(missing)}')
        for rule in _POSITIVE:
            for name in rule.names.split():
                value = given.get(name)
                fits = value is None or (_is_number(value) and rule.holds(value))
                self._require_rope(fits, f"with {rule.allowed} as {name}")
        if kind == "longrope":
            for name in ("long_factor", "short_factor"):
                pairs = self.rotary_width // 2
                fits = isinstance(given[name], list) and len(given[name]) == pairs
                fits = fits and all(_is_number(value) and 0 < value <= MOST_FACTOR for value in given[name])
                self._require_rope(fits, f"with a list of {pairs} positive numbers as {name}")

    @property
    def rotary_width(self) -> int:
        """Channels of a head that positions turn, the first of them."""
        given = self.rope_parameters or {}
        # Here the rest is turned too, by angles of 0.
        whole = given.get("rope_type") == "proportional"
        return self.head_dim if whole else int(self.head_dim * (given.get("partial_rotary_factor") or 1))

    def validate_attention(self) -> None:
        """Check the heads, the window, and what has to fit together.

        Raises:
            ConfigError: one is not allowed.
        """
        self.require_all(_RULES)
        config = self._whole
        for name in ("sliding_window_layers", "rotary_layers"):
            layers = config.num_hidden_layers
            fits = all(0 <= layer < layers for layer in getattr(self, name) or [])
            self.require(fits, name, f"None or indices of layers in [0, {layers - 1}]")
        heads, keys = config.num_attention_heads, config.num_key_value_heads
        self.require(heads % keys == 0, "num_key_value_heads", f"a divisor of num_attention_heads={heads}")
        if self.sliding_window is None:
            return
        # No cache keeps a window of keys and a state beside it.
        stateful = config.mixer_short_conv or config.mlp_token_shift != "none"
        allowed = "None with mixer_short_conv or mlp_token_shift, which keep a state beside the keys"
        self.require(not stateful, "sliding_window", allowed)

    def _require_rope(self, condition: bool, allowed: str) -> None:
        self.require(condition, "rope_parameters", allowed)

    @property
    def _whole(self) -> Any:
        # Its fields are the decoder's, of which this is a part.
        return self


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
