"""The configuration of the Hyena family, which also reads the `config.json` of a HyenaDNA."""

from typing import Any, ClassVar

from moe_hf.base.errors import CheckpointError
from moe_hf.config.decoder import MoEDecoderConfig
from moe_hf.config.strict import strict_config
from moe_hf.config.translation import renamed

_HYENA_DNA_NAMES = {
    "d_model": "hidden_size",
    "d_inner": "intermediate_size",
    "n_layer": "num_hidden_layers",
    "max_seq_len": "max_position_embeddings",
    "hyena_order": "hyena_order",
    "short_filter_order": "hyena_short_conv",
    "filter_order": "hyena_filter_width",
    "num_inner_mlps": "hyena_filter_layers",
    "emb_dim": "hyena_filter_embedding",
    "activation_freq": "hyena_filter_frequency",
    "train_freq": "hyena_filter_train_frequency",
    "hyena_dropout": "hyena_dropout",
    "embed_dropout": "embd_dropout",
}
# HyenaDNA's own defaults, for what a trimmed config.json leaves out.
_HYENA_DNA_DEFAULTS: dict[str, Any] = {
    "vocab_size": 12,
    "d_model": 256,
    "n_layer": 12,
    "max_seq_len": 1024,
    "emb_dim": 3,
    "num_inner_mlps": 2,
    "hyena_order": 2,
    "short_filter_order": 3,
    "filter_order": 64,
    "activation_freq": 1,
    "train_freq": True,
    "embed_dropout": 0.1,
    "hyena_dropout": 0.0,
    "layer_norm_epsilon": 1e-5,
    "pad_vocab_size_multiple": 8,
}


@strict_config
class HyenaWithMoEConfig(MoEDecoderConfig):
    """Hyena operators with experts: no attention and no positions beside those in the filters.

    `max_position_embeddings` is the length of the filters: a longer sequence is an error. It may be raised on loading:
    the lags that were trained stay as they are (`hyena_filter_time_base`). `from_pretrained` of a HyenaDNA gives the
    matching configuration with the default experts.

    >>> HyenaWithMoEConfig(hidden_size=64, num_hidden_layers=2, num_attention_heads=4).layer_types
    ['history', 'history']
    """

    model_type = "hyena_moe"
    dense_model_types: ClassVar[tuple[str, ...]] = ("hyenadna", "hyena")

    mixer: str | list[str] = "hyena"
    position_embedding_type: str = "none"

    @classmethod
    def dict_from_dense(cls, dense: dict[str, Any]) -> dict[str, Any]:
        """This family's `config.json` for the content of a HyenaDNA's.

        Raises:
            CheckpointError: the dense model uses a feature that would change its logits here.
        """
        dense = {**_HYENA_DNA_DEFAULTS, **dense}
        if dense.get("d_inner") is None:
            dense["d_inner"] = 4 * dense["d_model"]
        if dense["layer_norm_epsilon"] != 1e-5:
            raise CheckpointError(
                f"the HyenaDNA sets layer_norm_epsilon={dense['layer_norm_epsilon']!r}, which is read by its last norm "
                "alone; only 1e-05, that of all the others, can be carried over exactly"
            )
        multiple, width = dense["pad_vocab_size_multiple"], dense["d_model"]
        return {
            "model_type": cls.model_type,
            **renamed(dense, _HYENA_DNA_NAMES, same="initializer_range"),
            "vocab_size": -(-dense["vocab_size"] // multiple) * multiple,
            # No layer attends, but the number must divide the width.
            "num_attention_heads": next(heads for heads in (width // 64, 1) if heads and width % heads == 0),
            "hidden_act": "gelu_pytorch_tanh",
            "hyena_filter_shift": 0.05,
            "hyena_filter_learned_features": True,
        }
