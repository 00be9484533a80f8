"""The configuration of the Mamba family, which also reads the `config.json` of a dense Mamba or Mamba-2."""

import math
from typing import Any, ClassVar

from moe_hf.base.errors import CheckpointError
from moe_hf.config.decoder import MoEDecoderConfig
from moe_hf.config.strict import strict_config
from moe_hf.config.translation import renamed, require_value

# What a dense model says under another name.
_NAMES = {
    "state_size": "mamba_state_size",
    "expand": "mamba_expand",
    "conv_kernel": "mamba_conv_kernel",
    "use_bias": "mamba_use_bias",
    "use_conv_bias": "mamba_use_conv_bias",
    "head_dim": "mamba_head_dim",
    "n_groups": "mamba_num_groups",
    "time_step_rank": "mamba_time_step_rank",
    "time_step_limit": "mamba_time_step_limit",
    "time_step_min": "mamba_time_step_min",
    "time_step_max": "mamba_time_step_max",
    "time_step_floor": "mamba_time_step_floor",
    "time_step_scale": "mamba_time_step_scale",
    "mixer_rms_eps": "mamba_bcdt_norm_eps",
}
# transformers' defaults, for what a config.json leaves out.
_MAMBA = {"vocab_size": 50280, "hidden_size": 768, "num_hidden_layers": 32, "state_size": 16, "expand": 2}
_MAMBA |= {"bos_token_id": 0, "eos_token_id": 0, "pad_token_id": 0, "tie_word_embeddings": True}
_MAMBA2 = {"vocab_size": 32768, "hidden_size": 4096, "num_hidden_layers": 64, "state_size": 128, "expand": 2}
_MAMBA2 |= {"bos_token_id": 0, "eos_token_id": 2, "pad_token_id": 1, "tie_word_embeddings": False}
_MAMBA2 |= {"num_heads": 128, "head_dim": 64, "n_groups": 8}
_DENSE_DEFAULTS: dict[str, dict[str, Any]] = {
    "mamba": _MAMBA,
    "falcon_mamba": {**_MAMBA, "mixer_rms_eps": 1e-6},
    "mamba2": _MAMBA2,
}


@strict_config
class MambaWithMoEConfig(MoEDecoderConfig):
    """Mamba's mixers with experts behind them (as in Jamba), or between them with `mlp_placement="interleaved"`.

    `num_attention_heads` is read by hybrids only; 0 stands for heads of 64 channels. `from_pretrained` of a dense
    Mamba, Falcon Mamba or Mamba-2 gives the matching configuration with the default experts.

    >>> MambaWithMoEConfig(hidden_size=128, num_hidden_layers=2).mamba_num_heads
    4
    """

    model_type = "mamba_moe"
    dense_model_types: ClassVar[tuple[str, ...]] = ("mamba", "mamba2", "falcon_mamba")
    base_model_tp_plan: ClassVar[dict[str, Any] | None] = {
        "layers.*.mlp.gate_proj": "colwise",
        "layers.*.mlp.up_proj": "colwise",
        "layers.*.mlp.down_proj": "rowwise",
    }

    num_attention_heads: int = 0
    max_position_embeddings: int = 2048
    hidden_act: str = "silu"
    norm_type: str = "rms"
    mlp_gated: bool = True
    mlp_bias: bool = False
    attention_bias: bool = False
    position_embedding_type: str = "none"
    mixer: str | list[str] = "mamba"

    def __post_init__(self, **kwargs: Any) -> None:
        """Fill in what follows from other fields; runs before validation."""
        if self.num_attention_heads == 0:
            self.num_attention_heads = self.hidden_size // 64 if self.hidden_size % 64 == 0 else 1
        super().__post_init__(**kwargs)

    @classmethod
    def dict_from_dense(cls, dense: dict[str, Any]) -> dict[str, Any]:
        """This family's `config.json` for the content of a dense Mamba's, Falcon Mamba's or Mamba-2's.

        Raises:
            CheckpointError: the dense model uses a feature that would change its logits here.
        """
        model_type = dense["model_type"]
        dense = {**_DENSE_DEFAULTS[model_type], **dense}
        require_value(model_type, dense, "hidden_act", "silu", "swish")
        inner = int(dense["expand"] * dense["hidden_size"])
        if model_type == "mamba2" and dense["num_heads"] * dense["head_dim"] != inner:
            raise CheckpointError(
                f"the dense mamba2 has {dense['num_heads']} heads of {dense['head_dim']} channels; there must be "
                f"{inner} channels in all, expand * hidden_size"
            )
        found = renamed(dense, _NAMES, same="vocab_size hidden_size num_hidden_layers layer_norm_epsilon")
        if model_type == "mamba2" or found.get("mamba_time_step_rank") == "auto":
            # (transformers derives a rank for Mamba-2 as well, which has none.)
            found.pop("mamba_time_step_rank", None)
        limit = found.pop("mamba_time_step_limit", None)
        if limit is not None and list(limit) != [0.0, math.inf]:
            found["mamba_time_step_limit"] = list(limit)
        return {"model_type": cls.model_type, "mamba_version": 2 if model_type == "mamba2" else 1, **found}
