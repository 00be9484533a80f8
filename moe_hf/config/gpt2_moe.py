"""The configuration of the GPT-2 family, which also reads the `config.json` of a dense GPT-2."""

from typing import Any, ClassVar

from transformers.utils import logging

from moe_hf.config.decoder import MoEDecoderConfig
from moe_hf.config.strict import strict_config
from moe_hf.config.translation import renamed, require_value

logger = logging.get_logger(__name__)

_GPT2_NAMES = {
    "n_embd": "hidden_size",
    "n_layer": "num_hidden_layers",
    "n_head": "num_attention_heads",
    "n_positions": "max_position_embeddings",
    "n_inner": "intermediate_size",
    "activation_function": "hidden_act",
    "resid_pdrop": "resid_dropout",
    "embd_pdrop": "embd_dropout",
    "attn_pdrop": "attention_dropout",
}
# What would change the function that GPT-2 computes, with the only value that this family can reproduce.
_UNSUPPORTED = {"add_cross_attention": False, "scale_attn_weights": True}


@strict_config
class GPT2WithMoEConfig(MoEDecoderConfig):
    """GPT-2's shape with experts; takes GPT-2's own field names (`n_embd`, `n_layer`, ...) as well.

    `from_pretrained` of a dense GPT-2 gives the matching configuration with the default experts.

    >>> GPT2WithMoEConfig(n_embd=64, n_layer=2, n_head=4).hidden_size
    64
    """

    model_type = "gpt2_moe"
    dense_model_types: ClassVar[tuple[str, ...]] = ("gpt2",)
    base_model_tp_plan: ClassVar[dict[str, Any] | None] = {
        "layers.*.mixer.q_proj": "colwise",
        "layers.*.mixer.k_proj": "colwise",
        "layers.*.mixer.v_proj": "colwise",
        "layers.*.mixer.o_proj": "rowwise",
        "layers.*.mlp.up_proj": "colwise",
        "layers.*.mlp.down_proj": "rowwise",
    }
    attribute_map: ClassVar[dict[str, str]] = {"num_local_experts": "num_experts", **_GPT2_NAMES}

    bos_token_id: int | None = 50256
    eos_token_id: int | list[int] | None = 50256

    @classmethod
    def dict_from_dense(cls, dense: dict[str, Any]) -> dict[str, Any]:
        """This family's `config.json` for the content of a dense GPT-2's.

        Raises:
            CheckpointError: the dense model uses a feature that would change its logits here.
        """
        for name, supported in _UNSUPPORTED.items():
            require_value("GPT-2", dense, name, supported)
        if dense.get("reorder_and_upcast_attn"):
            logger.warning_once(
                "reorder_and_upcast_attn=True is not taken over: it only has attention's scores computed in single "
                "precision, which changes nothing in float32"
            )
        # GPT2Config's own defaults stand for what an old or trimmed config.json leaves out.
        defaults = {"resid_pdrop": 0.1, "embd_pdrop": 0.1, "attn_pdrop": 0.1}
        same = "vocab_size layer_norm_epsilon initializer_range scale_attn_by_inverse_layer_idx "
        same += " ".join(_GPT2_NAMES.values())
        return {"model_type": cls.model_type, **renamed({**defaults, **dense}, _GPT2_NAMES, same)}
