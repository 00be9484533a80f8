"""The configuration of the RetNet family, which also reads the `config.json` of flash-linear-attention's RetNet."""

from typing import Any, ClassVar

from moe_hf.base.errors import CheckpointError
from moe_hf.config.decoder import MoEDecoderConfig
from moe_hf.config.strict import strict_config
from moe_hf.config.translation import renamed, require_value

_RETNET_NAMES = {
    "num_heads": "num_attention_heads",
    "expand_k": "retention_expand_k",
    "expand_v": "retention_expand_v",
    "use_output_gate": "retention_gate",
    "elementwise_affine": "retention_norm_affine",
    "norm_eps": "layer_norm_epsilon",
}
# The defaults of flash-linear-attention, which stand for what its config.json leaves out.
_DENSE_DEFAULTS = {
    "vocab_size": 32000,
    "hidden_size": 2048,
    "num_hidden_layers": 24,
    "num_heads": 8,
    "expand_k": 1.0,
    "expand_v": 2.0,
    "norm_eps": 1e-6,
    "max_position_embeddings": 2048,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "tie_word_embeddings": False,
    "use_output_gate": True,
    "elementwise_affine": True,
}
# What would change the function that RetNet computes, with the values that this family can reproduce.
_UNSUPPORTED: dict[str, tuple[Any, ...]] = {
    "feature_map": (None,),
    "hidden_act": ("swish", "silu"),
    "use_short_conv": (False,),
    "attn": (None,),
    "attnres_block_size": (None,),
}


@strict_config
class RetNetWithMoEConfig(MoEDecoderConfig):
    """RetNet's shape (Sun et al. 2023) with experts; takes flash-linear-attention's field names as well.

    Retention and gated FFNs behind RMSNorm, no position embedding. `from_pretrained` of a dense RetNet gives the
    matching configuration with the default experts.

    >>> RetNetWithMoEConfig(hidden_size=64, num_heads=4).retention_value_width
    128
    """

    model_type = "retnet_moe"
    dense_model_types: ClassVar[tuple[str, ...]] = ("retnet",)
    attribute_map: ClassVar[dict[str, str]] = {"num_local_experts": "num_experts", **_RETNET_NAMES}
    # Each head has a decay of its own, so that a rank cannot compute some heads without knowing which they are.
    base_model_tp_plan: ClassVar[dict[str, Any] | None] = {
        "layers.*.mlp.gate_proj": "colwise",
        "layers.*.mlp.up_proj": "colwise",
        "layers.*.mlp.down_proj": "rowwise",
    }

    num_attention_heads: int = 6
    intermediate_size: int | None = None
    hidden_act: str = "silu"
    norm_type: str = "rms"
    mlp_gated: bool = True
    mlp_bias: bool = False
    mixer: str | list[str] = "retention"
    position_embedding_type: str = "none"
    layer_norm_epsilon: float = 1e-6
    tie_word_embeddings: bool = False

    def default_ffn_width(self) -> int:
        """4 / 3 x D, up to the next multiple of 256."""
        return _ffn_width(self.hidden_size)

    @classmethod
    def dict_from_dense(cls, dense: dict[str, Any]) -> dict[str, Any]:
        """This family's `config.json` for the content of flash-linear-attention's for a RetNet.

        Raises:
            CheckpointError: the dense model uses a feature that would change its logits here.
        """
        for name, supported in _UNSUPPORTED.items():
            require_value("RetNet", dense, name, *supported)
        dense = {**_DENSE_DEFAULTS, **dense}
        key_heads = dense.get("num_kv_heads")
        if key_heads not in (None, dense["num_heads"]):
            raise CheckpointError(
                f"the dense RetNet sets num_kv_heads={key_heads}, which share keys among num_heads="
                f"{dense['num_heads']} heads; only a key for each head can be carried over exactly"
            )
        if dense.get("intermediate_size") is None:
            dense["intermediate_size"] = _ffn_width(dense["hidden_size"], dense.get("hidden_ratio", 2) or 4)
        # Its norm takes null for no.
        dense["elementwise_affine"] = bool(dense["elementwise_affine"])
        same = "vocab_size hidden_size num_hidden_layers intermediate_size max_position_embeddings initializer_range"
        return {"model_type": cls.model_type, **renamed(dense, _RETNET_NAMES, same)}


def _ffn_width(hidden_size: int, ratio: int = 2) -> int:
    """flash-linear-attention's width of a gated FFN: two thirds of `ratio` x D, up to the next multiple of 256."""
    return -(-int(hidden_size * ratio * 2 / 3) // 256) * 256
