"""The configuration of the RWKV family, which also reads the `config.json` of a dense RWKV-4."""

from typing import Any, ClassVar

from moe_hf.base.errors import CheckpointError
from moe_hf.config.decoder import MoEDecoderConfig
from moe_hf.config.strict import strict_config

_RWKV4_NAMES = {"attention_hidden_size": "rwkv_inner_width", "context_length": "max_position_embeddings"}
# What a dense RWKV-4 says and this family has too, under the same name.
_SHARED_NAMES = (
    "vocab_size hidden_size num_hidden_layers intermediate_size use_cache bos_token_id eos_token_id pad_token_id "
    "tie_word_embeddings dtype torch_dtype id2label label2id problem_type"
).split()
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
# The last norm of transformers' model has this one whatever its configuration says.
_NORM_EPSILON = 1e-5


@strict_config
class RWKVWithMoEConfig(MoEDecoderConfig):
    """RWKV's shape with experts: time mixing, and experts (key, squared ReLU, value) behind a shared token shift.

    `mlp_token_shift` follows `rwkv_version`. `from_pretrained` of a dense `RwkvForCausalLM` gives the matching
    configuration with the default experts.

    >>> RWKVWithMoEConfig(rwkv_version=4).mlp_token_shift
    'rwkv4'
    """

    model_type = "rwkv_moe"
    dense_model_types: ClassVar[tuple[str, ...]] = ("rwkv",)

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

    def __post_init__(self, **kwargs: Any) -> None:
        """Fill in what follows from other fields; runs before validation."""
        if self.mlp_token_shift is None:
            self.mlp_token_shift = f"rwkv{self.rwkv_version}"
        super().__post_init__(**kwargs)

    @classmethod
    def from_dict(cls, config_dict: dict[str, Any], **kwargs: Any) -> Any:
        """As in MoEDecoderConfig; another `rwkv_version` brings its own token shift."""
        if "rwkv_version" in kwargs and "mlp_token_shift" not in kwargs:
            config_dict = {key: value for key, value in config_dict.items() if key != "mlp_token_shift"}
        return super().from_dict(config_dict, **kwargs)

    @classmethod
    def dict_from_dense(cls, dense: dict[str, Any]) -> dict[str, Any]:
        """This family's `config.json` for the content of a dense RWKV-4's.

        `rescale_every` is left out: it halves activations, and weights in return, to keep half precision in range.

        Raises:
            CheckpointError: the dense model uses a feature that would change its logits here.
        """
        dense = {**_RWKV4_DEFAULTS, **dense}
        if dense["layer_norm_epsilon"] != _NORM_EPSILON:
            raise CheckpointError(
                f"the dense RWKV-4 sets layer_norm_epsilon={dense['layer_norm_epsilon']!r}; only {_NORM_EPSILON}, "
                "which its last norm has in any case, can be carried over exactly"
            )
        names = {**_RWKV4_NAMES, **{name: name for name in _SHARED_NAMES}}
        width = dense["hidden_size"]
        return {
            "model_type": cls.model_type,
            "rwkv_version": 4,
            # Version 4 has no heads; attention layers of a hybrid would have these.
            "num_attention_heads": width // 64 if width % 64 == 0 else 1,
            **{names[key]: value for key, value in dense.items() if key in names},
        }
