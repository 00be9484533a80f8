"""Plans one of transformers' own Mixtures of Experts: the dense model's tensors, and experts made of its FFNs.

Shapes: E experts, D width, F width of the FFN, G slices of it.
"""

import re
from collections.abc import Mapping
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedConfig
from transformers.models.auto.configuration_auto import CONFIG_MAPPING
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from moe_hf.base.errors import CheckpointError, ConfigError
from moe_hf.config.decoder import MoEDecoderConfig
from moe_hf.models.dense.checkpoint_files import listed
from moe_hf.models.dense.expert_init import (
    ExpertPart,
    ExpertRecipe,
    OneExpert,
    StackedExperts,
    expert_recipe,
    require_granularity,
    router_rows,
    seed_of,
)
from moe_hf.models.dense.lazy_tensors import Copied, Drawn, Joined, LazyTensor, Sliced
from moe_hf.models.upcycling.native_formats import NATIVE_FORMATS, NativeFormat
from moe_hf.models.upcycling.opened import OpenedModel
from moe_hf.models.upcycling.planned import ParameterCounts, PlannedModel

CHOICES = (
    "num_experts num_experts_per_tok mlp_layer_types router_aux_loss_coef expert_init expert_init_noise "
    "expert_init_drop_ratio expert_init_seed router_init"
).split()
"""The fields of a `MoEDecoderConfig` that have a meaning for classes of transformers."""

# What belongs to a file, not to a model.
_OF_THE_FILE = ("model_type", "architectures", "transformers_version", "_name_or_path", "torch_dtype", "dtype")
_BUFFERS = re.compile(r"(^|\.)(inv_freq|masked_bias)$")
_UNIT_DIMS = {"gate_proj": 0, "up_proj": 0, "down_proj": 1}


def plan_native(
    opened: OpenedModel, dtype: torch.dtype | None = None, granularity: int = 1, **choices: Any
) -> PlannedModel:
    """The Mixture of Experts that computes what a dense model does, in a class that transformers has itself.

    Args:
        opened: the dense model, one of `NATIVE_FORMATS`.
        dtype: type of the written weights; None keeps the source's.
        granularity: slices G of each version of an FFN, an expert each.
        **choices: fields of `MoEDecoderConfig`, those of `CHOICES`.

    Raises:
        CheckpointError: tensors are missing, left over or misfitting, or a feature can't be kept.
        ConfigError: a choice is not allowed.
    """
    native = NATIVE_FORMATS[opened.model_type]
    dense = AutoConfig.from_pretrained(opened.folder, **opened.source.options)
    wanted = _wanted(native, dense, granularity, choices)
    config = native_config(native, dense, wanted, granularity)
    tensors = _dense_tensors(opened, dense)
    dense_params = sum(map(_numel, tensors.values()))
    recipe = expert_recipe(wanted, dtype, granularity)
    state: dict[str, LazyTensor] = {}
    routed = 0
    for layer in range(dense.num_hidden_layers):
        if layer in wanted.sparse_layers:
            ffn = {half: tensors.pop(f"model.layers.{layer}.mlp.{half}.weight") for half in _UNIT_DIMS}
            experts = _experts(native, ffn, layer, wanted, recipe)
            routed += sum(map(_numel, experts.values()))
            parts = {**experts, **_beside_experts(native, ffn, layer, wanted, granularity)}
            state |= {f"model.layers.{layer}.{name}": value for name, value in parts.items()}
    state = {**tensors, **state}
    total = sum(map(_numel, state.values()))
    active = total - routed + routed * wanted.num_experts_per_tok // wanted.num_experts
    kind = wanted.expert_init
    changes = [] if kind == "copy" else [f'expert_init="{kind}" changes the experts; "copy" keeps the logits']
    return PlannedModel(config, state, wanted, ParameterCounts(total, active, dense_params), changes)


def native_config(
    native: NativeFormat, dense: PreTrainedConfig, wanted: MoEDecoderConfig, granularity: int
) -> PreTrainedConfig:
    """The configuration in transformers' class, which takes over every field that both have.

    Raises:
        CheckpointError: the dense model uses a feature that the class has no field for.
    """
    target = CONFIG_MAPPING[native.moe_type]
    fields, own = target.__dataclass_fields__, type(dense).__dataclass_fields__
    for name, only in native.needs:
        if getattr(dense, name, only) != only:
            raise _cannot_keep(native, dense, name)
    taken = {}
    for name, value in dense.to_dict().items():
        # Not every class declares the width of its heads, but all read it.
        if name in fields or name == "head_dim":
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
        initializer_range=dense.initializer_range,
        **choices,
    )
    if wanted.sparse_layers != list(range(layers)) and not native.mixes_dense:
        raise ConfigError(
            f"mlp_layer_types={wanted.mlp_layer_types!r} is not allowed; every layer of a {native.moe_type} is sparse"
        )
    require_granularity(granularity, dense.intermediate_size, wanted.num_experts, wanted.num_experts_per_tok)
    return wanted


def _dense_tensors(opened: OpenedModel, dense: PreTrainedConfig) -> dict[str, LazyTensor]:
    """The dense model's tensors by the names of its class, each of which must be there and have its shape."""
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(dense)
    needed = {name: tuple(value.shape) for name, value in model.state_dict().items()}
    tied = needed.keys() & set(model.all_tied_weights_keys) if dense.tie_word_embeddings else set()
    # A model without a head is saved without the prefix.
    stored = {
        name if name in needed or f"model.{name}" not in needed else f"model.{name}": value
        for name, value in opened.slices.items()
        if not _BUFFERS.search(name)
    }
    tensors: dict[str, LazyTensor] = {name: _lazy(value) for name, value in stored.items() if name not in tied}
    _require_same(opened, {name: shape for name, shape in needed.items() if name not in tied}, tensors)
    for name in tied & stored.keys():
        embedding = tensors["model.embed_tokens.weight"]
        if not torch.equal(_lazy(stored[name]).read(), embedding.read()):
            raise CheckpointError(
                f"{opened.name} holds {name}, which is not its embedding, but tie_word_embeddings=True; correct its "
                "config.json"
            )
    return tensors


def _lazy(value: Any) -> LazyTensor:
    return value if isinstance(value, LazyTensor) else Sliced(value)


def _require_same(opened: OpenedModel, needed: Mapping[str, tuple[int, ...]], given: Mapping[str, LazyTensor]) -> None:
    wrong = []
    if missing := needed.keys() - given.keys():
        wrong.append(f"lacks {len(missing)} tensors ({listed(missing)})")
    if left := given.keys() - needed.keys():
        wrong.append(f"holds {len(left)} that its class has no place for ({listed(left)})")
    if misfits := {name for name in needed.keys() & given.keys() if tuple(given[name].shape) != needed[name]}:
        wrong.append(f"holds {len(misfits)} of other shapes than its config.json says ({listed(misfits)})")
    if wrong:
        raise CheckpointError(f"{opened.name} {' and '.join(wrong)}; it is incomplete, or not a {opened.model_type}")


def _experts(
    native: NativeFormat, ffn: dict[str, LazyTensor], layer: int, wanted: MoEDecoderConfig, recipe: ExpertRecipe
) -> dict[str, LazyTensor]:
    """The experts of a layer by the names of the files."""
    names = native.names
    # Half of the output comes from the expert that all tokens visit.
    scale = recipe.granularity * (0.5 if native.shares else 1.0)
    parts = {
        half: ExpertPart(layer, f"{half}.weight", dim, scale if half == "down_proj" else 1.0)
        for half, dim in _UNIT_DIMS.items()
    }
    if not names.gate:
        stacks = {half: StackedExperts(ffn[half], wanted.num_experts, parts[half], recipe) for half in _UNIT_DIMS}
        return {
            names.up: Joined([stacks["gate_proj"], stacks["up_proj"]], dim=1),
            names.down: stacks["down_proj"],
        }
    by_half = {"gate_proj": names.gate, "up_proj": names.up, "down_proj": names.down}
    return {
        name.format(expert): OneExpert(ffn[half], parts[half], expert, recipe)
        for expert in range(wanted.num_experts)
        for half, name in by_half.items()
    }


def _beside_experts(
    native: NativeFormat, ffn: dict[str, LazyTensor], layer: int, wanted: MoEDecoderConfig, granularity: int
) -> dict[str, LazyTensor]:
    """The router of a layer, and the dense FFN itself where all tokens visit one expert."""
    width, std = wanted.hidden_size, wanted.initializer_range if wanted.router_init == "random" else 0.0
    seed = seed_of(wanted.expert_init_seed, layer, "gate")
    state: dict[str, LazyTensor] = {native.names.router: router_rows(wanted.num_experts, width, std, seed, granularity)}
    if native.shares:
        state |= {f"mlp.shared_expert.{half}.weight": Copied(value) for half, value in ffn.items()}
        # A gate of zeros lets exactly half of it through, whatever the token.
        state["mlp.shared_expert_gate.weight"] = Drawn((1, width), 0.0, 0)
    return state


def _numel(value: LazyTensor) -> int:
    return torch.Size(value.shape).numel()
