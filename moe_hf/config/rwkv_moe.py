"""The configuration of the RWKV family, which also reads the `config.json` of a dense RWKV-4 or RWKV-7."""

import math
from typing import Any, ClassVar

from moe_hf.config.decoder import MoEDecoderConfig
from moe_hf.config.mixers.rwkv import RANK_FACTORS
from moe_hf.config.strict import strict_config
from moe_hf.config.translation import renamed, require_value

_RWKV4_NAMES = {"attention_hidden_size": "rwkv_inner_width", "context_length": "max_position_embeddings"}
_RWKV7_NAMES = {
    "norm_eps": "layer_norm_epsilon",
    "decay_low_rank_dim": "rwkv_decay_rank",
    "a_low_rank_dim": "rwkv_rate_rank",
    "v_low_rank_dim": "rwkv_value_rank",
    "gate_low_rank_dim": "rwkv_gate_rank",
    "max_position_embeddings": "max_position_embeddings",
    "initializer_range": "initializer_range",
}
# What a dense RWKV says and this family has too, under the same name.
_SAME = "vocab_size hidden_size num_hidden_layers intermediate_size"
# What RwkvConfig takes where a config.json leaves it out.
_RWKV4_DEFAULTS = {
    "vocab_size": 50277,
    "context_length": 1024,
    "hidden_size": 4096,
    "num_hidden_layers": 32,
    "layer_norm_epsilon": 1e-5,
    "bos_token_id": 0,
    "eos_token_id": 0,
    "tie_word_embeddings": False,
}
# The same for flash-linear-attention's RWKV7Config.
_RWKV7_DEFAULTS = {
    "vocab_size": 32000,
    "hidden_size": 2048,
    "hidden_ratio": 4,
    "num_hidden_layers": 24,
    "norm_first": True,
    "norm_eps": 1e-5,
    "max_position_embeddings": 2048,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "tie_word_embeddings": False,
}
# The last norm of transformers' model has this one whatever its configuration says.
_NORM_EPSILON = 1e-5


@strict_config
class RWKVWithMoEConfig(MoEDecoderConfig):
    """RWKV's shape with experts: time mixing, and experts (key, squared ReLU, value) behind a shared token shift.

    `mlp_token_shift` follows `rwkv_version`. `from_pretrained` of a dense RWKV-4 (transformers' `RwkvForCausalLM`) or
    RWKV-7 (flash-linear-attention's) gives the matching configuration with the default experts.

    >>> RWKVWithMoEConfig(rwkv_version=4).mlp_token_shift
    'rwkv4'
    """

    model_type = "rwkv_moe"
    dense_model_types: ClassVar[tuple[str, ...]] = ("rwkv", "rwkv7", "rwkv7_fla")
    derived_fields: ClassVar[dict[str, str]] = {
        **MoEDecoderConfig.derived_fields,
        "mlp_token_shift": "default_token_shift",
    }
    # Time mixing stays whole: its states and vectors belong to all channels.
    base_model_tp_plan: ClassVar[dict[str, Any] | None] = {
        "layers.*.mlp.inner.up_proj": "colwise",
        "layers.*.mlp.inner.down_proj": "rowwise",
    }

    # That of RWKV's World tokenizer, which version 7 is trained with.
    vocab_size: int = 65536
    hidden_act: str = "relu2"
    embedding_norm: bool = True
    mlp_bias: bool = False
    attention_bias: bool = False
    position_embedding_type: str = "none"
    mixer: str | list[str] = "rwkv"
    mlp_token_shift: str | None = None  # type: ignore[assignment]
    tie_word_embeddings: bool = False
    bos_token_id: int | None = 0
    eos_token_id: int | list[int] | None = 0

    def default_token_shift(self) -> str:
        """`mlp_token_shift` where it is None."""
        return f"rwkv{self.rwkv_version}"

    @classmethod
    def dict_from_dense(cls, dense: dict[str, Any]) -> dict[str, Any]:
        """This family's `config.json` for the content of a dense RWKV-4's or RWKV-7's.

        Version 4's `rescale_every` is left out: it halves activations, and weights in return, to keep half precision
        in range.

        Raises:
            CheckpointError: the dense model uses a feature that would change its logits here.
        """
        return {
            "model_type": cls.model_type,
            **(_version_4(dense) if dense["model_type"] == "rwkv" else _version_7(dense)),
        }


def _version_4(dense: dict[str, Any]) -> dict[str, Any]:
    dense = {**_RWKV4_DEFAULTS, **dense}
    require_value("RWKV-4", dense, "layer_norm_epsilon", _NORM_EPSILON)
    width = dense["hidden_size"]
    # Version 4 has no heads; attention layers of a hybrid would have these.
    heads = width // 64 if width % 64 == 0 else 1
    return {"rwkv_version": 4, "num_attention_heads": heads, **renamed(dense, _RWKV4_NAMES, _SAME)}


def _version_7(dense: dict[str, Any]) -> dict[str, Any]:
    # null stands for what is left out, and would hide the default.
    dense = {**_RWKV7_DEFAULTS, **{key: value for key, value in dense.items() if value is not None}}
    width = dense["hidden_size"]
    head_dim = dense["head_dim"] if "head_dim" in dense else width // dense.get("num_heads", width // 64)
    for name, needed in {"attn": None, "norm_bias": True, "hidden_act": "sqrelu"}.items():
        require_value("RWKV-7", dense, name, needed)
    values = dense.get("value_dim", width)
    widest = values if isinstance(values, int) else max(values)
    require_value("RWKV-7", {"value_dim": widest}, "value_dim", width)
    # As flash-linear-attention rounds it.
    inner = dense.get("intermediate_size", 32 * math.ceil(width * dense["hidden_ratio"] / 32))
    return {
        "rwkv_version": 7,
        "num_attention_heads": width // head_dim,
        "embedding_norm": dense["norm_first"],
        **{f"rwkv_{what}_rank": _rank(what, width, head_dim) for what in ("decay", "rate", "value", "gate")},
        **renamed(dense, _RWKV7_NAMES, _SAME),
        "intermediate_size": inner,
    }


def _rank(what: str, width: int, head_dim: int) -> int:
    # flash-linear-attention widens all but the gate's with the heads, where the configuration says nothing.
    factor = 1.0 if what == "gate" else head_dim / 64
    return max(32, round(RANK_FACTORS[what] * width**0.5 * factor / 32) * 32)
