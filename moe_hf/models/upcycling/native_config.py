"""Decides which of transformers' own Mixtures of Experts a dense model becomes, and with which configuration."""

from typing import Any, NamedTuple

from transformers import PreTrainedConfig
from transformers.models.auto.configuration_auto import CONFIG_MAPPING
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from moe_hf.base.errors import CheckpointError, ConfigError
from moe_hf.config.decoder import MoEDecoderConfig
from moe_hf.models.dense.expert_init import require_granularity
from moe_hf.models.upcycling.native_formats import NATIVE_FORMATS, NativeFormat

CHOICES = (
    "num_experts num_experts_per_tok mlp_layer_types router_aux_loss_coef expert_init expert_init_noise "
    "expert_init_drop_ratio expert_init_seed router_init"
).split()
"""The fields of a `MoEDecoderConfig` that have a meaning for classes of transformers."""

# What belongs to a file, not to a model.
_OF_THE_FILE = ("model_type", "architectures", "transformers_version", "_name_or_path", "torch_dtype", "dtype")


class NativeChoice(NamedTuple):
    """A Mixture of Experts that transformers has itself, made of a dense model.

    Attributes:
        format: how its tensors are named.
        config: its configuration.
        wanted: how many experts were asked for, where, and how they are made.
    """

    format: NativeFormat
    config: PreTrainedConfig
    wanted: MoEDecoderConfig


def choose_native(dense: PreTrainedConfig, granularity: int = 1, **choices: Any) -> NativeChoice:
    """What a dense model of `NATIVE_FORMATS` becomes.

    Args:
        dense: its configuration.
        granularity: slices of each version of an FFN, an expert each.
        **choices: fields of `MoEDecoderConfig`, those of `CHOICES`.

    Raises:
        CheckpointError: the dense model uses a feature that the class has no field for.
        ConfigError: a choice is not allowed.
    """
    native = NATIVE_FORMATS[dense.model_type]
    wanted = _wanted(native, dense, granularity, choices)
    return NativeChoice(native, _config(native, dense, wanted, granularity), wanted)


def _config(
    native: NativeFormat, dense: PreTrainedConfig, wanted: MoEDecoderConfig, granularity: int
) -> PreTrainedConfig:
    # Every field that both have is taken over.
    target = CONFIG_MAPPING[native.moe_type]
    fields, own = target.__dataclass_fields__, type(dense).__dataclass_fields__
    for name, only in native.needs:
        if getattr(dense, name, only) != only:
            raise _cannot_keep(native, dense, name)
    taken = {}
    for name, value in dense.to_dict().items():
        # What the dense class does not know does nothing there, and must not begin to here; but for the width of heads,
        # which not every class declares and all read.
        if (name in fields and name in own) or name == "head_dim":
            taken[name] = value
        elif name in own and name not in _OF_THE_FILE and not _does_nothing(name, value, own[name].default):
            raise _cannot_keep(native, dense, name)
    experts = "num_experts" if "num_experts" in fields else "num_local_experts"
    width = dense.intermediate_size // granularity
    taken |= {experts: wanted.num_experts, "num_experts_per_tok": wanted.num_experts_per_tok}
    taken["moe_intermediate_size" if "moe_intermediate_size" in fields else "intermediate_size"] = width
    taken["router_aux_loss_coef"] = wanted.router_aux_loss_coef
    if "norm_topk_prob" in fields:
        taken["norm_topk_prob"] = True
    if native.shares:
        taken["shared_expert_intermediate_size"] = dense.intermediate_size
    if native.mixes_dense:
        taken["mlp_only_layers"] = [i for i in range(dense.num_hidden_layers) if i not in wanted.sparse_layers]
        taken["decoder_sparse_step"] = 1
    if "sliding_window" in fields:
        # Left out, it would be the other class's default.
        taken.setdefault("sliding_window", None)
    config = target(**{name: value for name, value in taken.items() if name not in _OF_THE_FILE})
    config.architectures = [MODEL_FOR_CAUSAL_LM_MAPPING_NAMES[native.moe_type]]
    return config


_INITIALIZER_RANGE, _MOST_EXPERTS = 0.02, 2**16


def _does_nothing(name: str, value: Any, default: Any) -> bool:
    if name == "layer_types":
        return set(value or ()) <= {"full_attention"}
    # The first only splits sums, the second counts layers without windows.
    return value == default or name in ("pretraining_tp", "max_window_layers")


def _cannot_keep(native: NativeFormat, dense: PreTrainedConfig, name: str) -> CheckpointError:
    return CheckpointError(
        f"the dense {dense.model_type} sets {name}={getattr(dense, name)!r}, for which transformers' "
        f"{native.moe_type} has no place; its logits would change"
    )


def _wanted(
    native: NativeFormat, dense: PreTrainedConfig, granularity: int, choices: dict[str, Any]
) -> MoEDecoderConfig:
    unknown = [name for name in choices if name not in CHOICES]
    if unknown:
        raise ConfigError(
            f"{unknown[0]}={choices[unknown[0]]!r} has no meaning for transformers' {native.moe_type}; allowed are "
            f"{', '.join(CHOICES)}"
        )
    layers = dense.num_hidden_layers
    choices.setdefault("mlp_layer_types", ["sparse"] * layers)
    # As in transformers' own classes, whose losses reach k where ours reach 1.
    choices.setdefault("router_aux_loss_coef", 0.001)
    wanted = MoEDecoderConfig(
        hidden_size=dense.hidden_size,
        num_hidden_layers=layers,
        num_attention_heads=1,
        # Zero in some files, which would leave the router without a direction.
        initializer_range=dense.initializer_range or _INITIALIZER_RANGE,
        **choices,
    )
    if wanted.sparse_layers != list(range(layers)) and not native.mixes_dense:
        raise ConfigError(
            f"mlp_layer_types={wanted.mlp_layer_types!r} is not allowed; every layer of a {native.moe_type} is sparse"
        )
    if wanted.num_experts > _MOST_EXPERTS:
        raise ConfigError(f"num_experts={wanted.num_experts} is not allowed; it must be at most {_MOST_EXPERTS}")
    require_granularity(granularity, dense.intermediate_size, wanted.num_experts, wanted.num_experts_per_tok)
    return wanted
