"""What the fields of a decoder's configuration may say: the words, the ranges, and what has to fit together."""

from collections.abc import Iterable
from typing import Any

from transformers import PreTrainedConfig
from transformers.activations import ACT2FN

from moe_hf.base.errors import ConfigError
from moe_hf.config.rules import MOST_FACTOR, Rule, at_most, integer, one_of, optional

MIXER_BACKENDS = ("auto", "torch", "fla", "mamba_ssm")
ROUTER_TYPES = ("top_k", "switch", "sigmoid_bias", "hash", "expert_choice", "expert_threshold")
ROUTER_BALANCE_LOSSES = ("batch", "global_batch", "sequence", "cv_squared")
ROUTER_DROP_POLICIES = ("position", "weight")
POSITION_EMBEDDING_TYPES = ("learned", "rotary", "none")
NORM_TYPES = ("layer", "rms")
NORM_PLACEMENTS = ("before", "behind")
TOKEN_SHIFTS = ("none", "rwkv4", "rwkv7")
MLP_PLACEMENTS = ("each", "interleaved")
EXPERT_INITS = ("copy", "noise", "drop")
ROUTER_INITS = ("random", "zero")
FFN_LAYER_TYPES = ("sparse", "dense", "none")

_NUMBERS = (
    integer(
        "vocab_size hidden_size num_hidden_layers num_attention_heads intermediate_size max_position_embeddings "
        "num_experts num_experts_per_tok moe_intermediate_size",
        least=1,
    ),
    integer("mixer_short_conv shared_expert_intermediate_size router_num_hash_layers", least=0),
    # Seeds of PyTorch have 64 bits.
    integer("expert_init_seed router_hash_seed", least=0, most=2**63 - 1),
    Rule(
        "router_aux_loss_coef router_z_loss_coef router_bias_update_speed expert_init_noise",
        lambda value: 0 <= value <= MOST_FACTOR,
        f"a finite number >= 0 and <= {MOST_FACTOR:g}",
    ),
    Rule(
        "router_jitter_noise router_threshold_decay attention_dropout resid_dropout embd_dropout",
        lambda value: 0 <= value < 1,
        "a number in [0, 1)",
    ),
    Rule("expert_init_drop_ratio", lambda value: 0 <= value <= 1, "a number in [0, 1]"),
    at_most("layer_norm_epsilon", 1.0),
    at_most("initializer_range", 100.0),
    at_most("rope_theta", 1e12),
    at_most("router_scale embedding_multiplier residual_multiplier logits_scaling", MOST_FACTOR),
    optional(at_most("router_capacity_factor router_eval_capacity_factor", MOST_FACTOR)),
)

_WORDS = (
    one_of("norm_type", NORM_TYPES),
    one_of("norm_placement", NORM_PLACEMENTS),
    one_of("mlp_token_shift", TOKEN_SHIFTS),
    one_of("mlp_placement", MLP_PLACEMENTS),
    one_of("mixer_backend", MIXER_BACKENDS),
    one_of("position_embedding_type", POSITION_EMBEDDING_TYPES),
    one_of("router_type", ROUTER_TYPES),
    one_of("router_balance_loss", ROUTER_BALANCE_LOSSES),
    one_of("router_drop_policy", ROUTER_DROP_POLICIES),
    one_of("expert_init", EXPERT_INITS),
    one_of("router_init", ROUTER_INITS),
    one_of("hidden_act", sorted(ACT2FN)),
)


class ValidDecoder(PreTrainedConfig):
    """A configuration that refuses values with which no decoder can be built; the fields are its subclass's."""

    def require(self, condition: bool, name: str, allowed: str) -> None:
        """Refuse the value of a field.

        Raises:
            ConfigError: `condition` is False; the text names the field, its value and what is allowed.
        """
        if not condition:
            raise ConfigError(f"{name}={getattr(self, name)!r} is not allowed; it must be {allowed}")

    def require_all(self, rules: Iterable[Rule]) -> None:
        """Check the fields against a table.

        Raises:
            ConfigError: a field holds what its rule does not allow.
        """
        # Ranges are written so that NaN, which no comparison holds for, is refused.
        for rule in rules:
            for name in rule.names.split():
                self.require(rule.holds(getattr(self, name)), name, rule.allowed)

    def validate_architecture(self: Any) -> None:
        """Check each number by itself, and that sizes divide where they must (the name is transformers' own hook).

        Raises:
            ConfigError: one is not allowed.
        """
        self.require_all(_NUMBERS)
        hashed, sparse = self.router_num_hash_layers, len(self.sparse_layers)
        self.require(hashed <= sparse or not sparse, "router_num_hash_layers", f"at most the {sparse} sparse layers")
        # Only now: the remainder needs both to be positive.
        heads = self.num_attention_heads
        if self.stored("attention_head_dim") is not None:
            even = self.position_embedding_type != "rotary" or self.rotary_width % 2 == 0
            self.require(even, "attention_head_dim", "even where positions are rotary")
            return
        self.require(self.hidden_size % heads == 0, "hidden_size", f"a multiple of num_attention_heads={heads}")
        if self.position_embedding_type == "rotary":
            self.require(self.rotary_width % 2 == 0, "hidden_size", f"an even multiple of num_attention_heads={heads}")

    def validate_layer_type(self: Any) -> None:
        """Check that the cache of each layer fits its mixer (the name is transformers' own hook).

        Raises:
            ConfigError: the list is too short, too long or names another cache.
        """
        needed = self.caches_of_layers()
        self.require(self.layer_types == needed, "layer_types", f"{needed} with these mixers; leave it out")

    def validate_routing(self: Any) -> None:
        """Check what a router asks of the number of experts and of other fields.

        Raises:
            ConfigError: one does not fit.
        """
        kind, k, experts = self.router_type, self.num_experts_per_tok, self.num_experts
        self.require(k <= experts, "num_experts_per_tok", f"at most num_experts={experts}")
        if kind == "switch":
            self.require(k == 1, "num_experts_per_tok", 'exactly 1 with router_type="switch"; "top_k" takes more')
        if kind == "hash":
            self.require(k <= 2, "num_experts_per_tok", 'at most 2 with router_type="hash"')
        if kind == "expert_choice":
            allowed = "None with expert_choice, whose experts pick"
            self.require(self.router_eval_capacity_factor is None, "router_eval_capacity_factor", allowed)
        if kind == "sigmoid_bias":
            groups = self.router_num_groups
            divides = groups >= 1 and experts % groups == 0
            self.require(divides, "router_num_groups", f"a divisor of {experts} experts")
            self.require(1 <= self.router_groups_per_tok <= groups, "router_groups_per_tok", f"in [1, {groups}]")
            reach = self.router_groups_per_tok * experts // groups
            self.require(k <= reach, "num_experts_per_tok", f"at most {reach}, the experts of the groups of a token")

    def validate_words(self: Any) -> None:
        """Check that every named choice is one that exists, and that every layer has an FFN or a mixer.

        Raises:
            ConfigError: one does not.
        """
        # After the mixers' own fields, from which some words follow.
        self.require_all(_WORDS)
        kinds = self.ffn_of_layer
        self.require(len(kinds) == self.num_hidden_layers, "mlp_layer_types", f"{self.num_hidden_layers} entries")
        for layer, (mixer, kind) in enumerate(zip(self.mixer_of_layer, kinds, strict=True)):
            self.require(kind in FFN_LAYER_TYPES, "mlp_layer_types", f"made of {', '.join(FFN_LAYER_TYPES)}")
            nothing = (mixer, kind) == ("none", "none")
            self.require(not nothing, "mlp_layer_types", f"an FFN in layer {layer} without mixer")

    def validate_expert_widths(self: Any) -> None:
        """Check that the grouped GEMM can read the experts, where it is asked for by name.

        Raises:
            ConfigError: grouped_mm is asked for and a width does not fit.
        """
        if self._experts_implementation == "grouped_mm":
            self.require_grouped_mm_widths(self.dtype)

    def require_grouped_mm_widths(self: Any, dtype: Any) -> None:
        """Check that the rows of the experts' matrices are multiples of 16 bytes, as the grouped GEMM needs.

        Args:
            dtype: type of the weights; None means float32.

        Raises:
            ConfigError: a width does not fit.
        """
        if not self.sparse_layers:
            return
        # A name where the override `dtype="bfloat16"` came through `from_pretrained` of the configuration.
        multiple = 8 if str(dtype).removeprefix("torch.") in ("float16", "bfloat16") else 4
        for name in ("hidden_size", "moe_intermediate_size"):
            self.require(
                getattr(self, name) % multiple == 0,
                name,
                f"a multiple of {multiple} for grouped_mm in {dtype or 'float32'} (rows of 16 bytes); change it "
                "or leave experts_implementation out",
            )
