"""The configuration of the Llama family, which also reads the `config.json` of dense models built like Llama."""

from typing import Any, ClassVar

from huggingface_hub.errors import StrictDataclassError
from transformers import PreTrainedConfig
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

from moe_hf.base.errors import CheckpointError, first_line
from moe_hf.config.decoder import MoEDecoderConfig
from moe_hf.config.mixers.attention import ROPE_TYPES
from moe_hf.config.strict import strict_config
from moe_hf.config.translation import renamed

_LLAMA_NAMES = {"rms_norm_eps": "layer_norm_epsilon", "head_dim": "attention_head_dim"}
_SAME = (
    "vocab_size hidden_size intermediate_size num_hidden_layers num_attention_heads num_key_value_heads hidden_act "
    "max_position_embeddings initializer_range attention_dropout use_cache bos_token_id eos_token_id pad_token_id "
    "tie_word_embeddings"
).split()
# Some of the dense models have these as well.
_OF_SOME = (
    "attention_bias mlp_bias embedding_multiplier residual_multiplier attention_multiplier logits_scaling"
).split()
# What distinguishes the dense models: the fields that say so here.
_OF_TYPE: dict[str, dict[str, Any]] = {
    "llama": {},
    "mistral": {"attention_bias": False},
    "qwen2": {"attention_bias": True, "attention_output_bias": False},
    "qwen3": {"attention_qk_norm": "head"},
    "granite": {},
    "smollm3": {},
    "olmo2": {"attention_qk_norm": "width", "norm_placement": "behind"},
    "phi3": {},
}
# Those that turn a part of each head only, where their file says so.
_TURNS_PARTS = ("phi3",)


@strict_config
class LlamaWithMoEConfig(MoEDecoderConfig):
    """Llama's shape with experts: gated FFNs, RMSNorm, rotary positions, keys that serve several query heads.

    Takes Llama's own field names (`rms_norm_eps`, `head_dim`) as well. `from_pretrained` of a dense Llama, Mistral,
    Qwen2, Qwen3, Granite, OLMo-2, SmolLM3 or Phi-3 gives the matching configuration with the default experts.

    >>> LlamaWithMoEConfig(hidden_size=64, num_attention_heads=4, num_key_value_heads=2).key_value_width
    32
    """

    model_type = "llama_moe"
    dense_model_types: ClassVar[tuple[str, ...]] = tuple(_OF_TYPE)
    # transformers has a class with experts for most of them, and one without for all.
    takes_dense_unasked: ClassVar[bool] = False
    attribute_map: ClassVar[dict[str, str]] = {"num_local_experts": "num_experts", **_LLAMA_NAMES}
    base_model_tp_plan: ClassVar[dict[str, Any] | None] = {
        "layers.*.mixer.q_proj": "colwise",
        "layers.*.mixer.k_proj": "colwise",
        "layers.*.mixer.v_proj": "colwise",
        "layers.*.mixer.q_norm": "replicated_with_grad_allreduce",
        "layers.*.mixer.k_norm": "replicated_with_grad_allreduce",
        "layers.*.mixer.o_proj": "rowwise",
        "layers.*.mlp.gate_proj": "colwise",
        "layers.*.mlp.up_proj": "colwise",
        "layers.*.mlp.down_proj": "rowwise",
    }

    hidden_act: str = "silu"
    max_position_embeddings: int = 2048
    norm_type: str = "rms"
    mlp_gated: bool = True
    mlp_bias: bool = False
    attention_bias: bool = False
    position_embedding_type: str = "rotary"
    layer_norm_epsilon: float = 1e-6
    tie_word_embeddings: bool = False

    def __post_init__(self, **kwargs: Any) -> None:
        """As in `MoEDecoderConfig`; the plan for tensor parallelism names what the layers have.

        A norm over the whole width leaves attention whole.
        """
        if self.attention_qk_norm != "head":
            left_out = ".mixer." if self.attention_qk_norm == "width" else "_norm"
            plan = type(self).base_model_tp_plan or {}
            kept = {name: how for name, how in plan.items() if left_out not in name}
            self.base_model_tp_plan = kept  # type: ignore[misc]
        super().__post_init__(**kwargs)

    def default_ffn_width(self) -> int:
        """8 / 3 x D, up to the next multiple of 256 (Touvron et al. 2023, section 2.2)."""
        return -(-8 * self.hidden_size // (3 * 256)) * 256

    @classmethod
    def dict_from_dense(cls, dense: dict[str, Any]) -> dict[str, Any]:
        """This family's `config.json` for the content of a dense model's.

        Raises:
            CheckpointError: the dense model uses a feature that would change its logits here.
        """
        kind = str(dense["model_type"])
        try:
            # transformers' own class knows what stands for what is left out, and the names of older files.
            theirs = CONFIG_MAPPING[kind].from_dict(dict(dense))
        except (ValueError, TypeError, KeyError, AttributeError, StrictDataclassError) as error:
            raise CheckpointError(
                f"the config.json of a dense {kind} can't be read by transformers ({first_line(error)}); mend it, or "
                "download it again"
            ) from error
        if dense.get("per_layer_config"):
            raise CheckpointError(f"the dense {kind} sets per_layer_config; only equal layers can be carried over")
        same = {name: getattr(theirs, name) for name in _SAME}
        # A file may hold more, which the class keeps and does not obey.
        same |= {name: getattr(theirs, name) for name in _OF_SOME if name in theirs.__dataclass_fields__}
        return {
            "model_type": cls.model_type,
            **renamed(dense, {"resid_pdrop": "resid_dropout", "embd_pdrop": "embd_dropout"}),
            **same,
            "layer_norm_epsilon": theirs.rms_norm_eps,
            # Where the class has no such field, transformers divides the width.
            "attention_head_dim": getattr(theirs, "head_dim", None),
            **_angles(kind, theirs),
            **_windows(kind, theirs),
            **_layers_that_turn(theirs),
            **_OF_TYPE[kind],
        }


def _angles(kind: str, theirs: PreTrainedConfig) -> dict[str, Any]:
    given: dict[str, Any] = dict(theirs.rope_parameters)
    rope_type = given.get("rope_type")
    if rope_type not in ROPE_TYPES:
        raise CheckpointError(
            f"the dense {kind} sets rope_type={rope_type!r}; only {', '.join(ROPE_TYPES)} can be carried over exactly"
        )
    partial = given.get("partial_rotary_factor")
    if partial not in (None, 1.0) and rope_type != "proportional" and kind not in _TURNS_PARTS:
        raise CheckpointError(
            f"the dense {kind} sets partial_rotary_factor={partial!r}; its heads are turned whole, and only 1.0 can be "
            "carried over exactly"
        )
    limit = theirs.max_position_embeddings
    # These compute from the limit, which may become another one here.
    if rope_type == "dynamic":
        given["original_max_position_embeddings"] = limit
    if rope_type in ("longrope", "yarn") and given.get("factor") is None:
        given["factor"] = limit / given["original_max_position_embeddings"]
    return {"rope_theta": given.pop("rope_theta"), "rope_parameters": given}


def _windows(kind: str, theirs: PreTrainedConfig) -> dict[str, Any]:
    window = getattr(theirs, "sliding_window", None)
    if kind == "llama" or window is None:
        return {}
    # The layers of these are all alike, whatever their file says of them.
    layers = None if kind in ("mistral", "phi3") else getattr(theirs, "layer_types", None)
    unknown = {*(layers or ())} - {"full_attention", "sliding_attention"}
    if unknown:
        raise CheckpointError(f"the dense {kind} has layers of {', '.join(sorted(unknown))}; this family has none")
    if layers is None:
        return {"sliding_window": window}
    windowed = [i for i, layer in enumerate(layers) if layer == "sliding_attention"]
    return {"sliding_window": window, "sliding_window_layers": windowed} if windowed else {}


def _layers_that_turn(theirs: PreTrainedConfig) -> dict[str, Any]:
    # By its name it would list those that do not; 1 stands for a layer with rotary positions.
    turns = (theirs.no_rope_layers if "no_rope_layers" in theirs.__dataclass_fields__ else None) or [1]
    return {} if all(turns) else {"rotary_layers": [layer for layer, turned in enumerate(turns) if turned]}
