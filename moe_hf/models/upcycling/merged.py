"""Plans a dense model from a Mixture of Experts: the mean of its experts takes the place of each layer's.

Shapes: E experts, D width, F width of an expert.
"""

import re
from collections.abc import Callable
from typing import Any

import torch
from transformers import PreTrainedConfig
from transformers.models.auto.configuration_auto import CONFIG_MAPPING
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from moe_hf.base.errors import CheckpointError, ConfigError
from moe_hf.config.decoder import MoEDecoderConfig
from moe_hf.models.auto import FAMILIES
from moe_hf.models.dense.lazy_tensors import Averaged, Computed, LazyTensor, Sliced
from moe_hf.models.parameter_kinds import IN_FLOAT32
from moe_hf.models.upcycling.native_formats import NATIVE_FORMATS, ExpertNames
from moe_hf.models.upcycling.opened import OpenedModel, other_config
from moe_hf.models.upcycling.planned import ParameterCounts, PlannedModel

_HALVES = ("gate_proj", "up_proj", "down_proj")
# The first of several dense types that become one Mixture of Experts; Mistral's has a window.
_DENSE_TYPES = {native.moe_type: name for name, native in reversed([*NATIVE_FORMATS.items()]) if not native.shares}
MERGING = frozenset(_DENSE_TYPES) | FAMILIES.keys() - {"megabyte_moe"}
"""The `model_type` of the Mixtures of Experts that can be merged."""

_CHANGE = "the experts of each layer are replaced by their mean, which computes the same only where they are equal"


def plan_merged(
    opened: OpenedModel, dtype: torch.dtype | None = None, granularity: int = 1, **choices: Any
) -> PlannedModel:
    """The dense model whose FFNs are the means of the experts; routers are left out.

    A Mixtral becomes a Llama (with a window, a Mistral), others the type that they are made of; a model of this package
    its own dense twin. Experts that are equal, as after upcycling, give the same function.

    Args:
        opened: a Mixture of Experts of a type in `MERGING`.
        dtype: type of the written weights; None keeps the source's.
        granularity: must be 1.
        **choices: none is allowed.

    Raises:
        CheckpointError: its layers hold more than experts, or it can't be told which dense model it would be.
        ConfigError: a choice is given.
    """
    if choices or granularity != 1:
        name, value = next(iter({**choices, "granularity": granularity}.items()))
        raise ConfigError(f"{name}={value!r} has no meaning for a dense model; leave it out")
    if opened.model_type not in MERGING or opened.source.gguf_file is not None:
        raise CheckpointError(
            f"{opened.name} holds a {opened.model_type}; only safetensors of {', '.join(sorted(MERGING))} can be merged"
        )
    own = FAMILIES.get(opened.model_type)
    config: Any = own.config.from_pretrained(opened.folder) if own else other_config(opened.source)
    slices = {name: Sliced(value) for name, value in opened.slices.items()}
    dense, state = _of_this_package(opened, config, slices) if own else _of_transformers(opened, config, slices)
    for name, value in state.items():
        value.in_float32 = own is not None and any(part in name for part in IN_FLOAT32)
    total, before = (sum(torch.Size(value.shape).numel() for value in group.values()) for group in (state, slices))
    wanted = MoEDecoderConfig(num_hidden_layers=config.num_hidden_layers, num_attention_heads=1)
    wanted.make_dense()
    code = "import moe_hf  # registers the model class\n" if own else ""
    counts = ParameterCounts(total, total, before)
    return PlannedModel(
        dense, state, wanted, counts, [_CHANGE], code, "A dense model merged from the Mixture of Experts"
    )


def _of_transformers(
    opened: OpenedModel, config: PreTrainedConfig, slices: dict[str, Sliced]
) -> tuple[PreTrainedConfig, dict[str, LazyTensor]]:
    kind = _DENSE_TYPES[opened.model_type]
    if kind == "llama" and getattr(config, "sliding_window", None) is not None:
        kind = "mistral"
    for name, only in NATIVE_FORMATS[kind].needs:
        given = getattr(config, name, only)
        if given != only:
            raise CheckpointError(f"{opened.name} sets {name}={given!r}, which a dense {kind} means in another way")
    target = CONFIG_MAPPING[kind]
    said = config.to_dict()
    fields = {name: value for name, value in said.items() if name in target.__dataclass_fields__ or name == "head_dim"}
    fields = {name: value for name, value in fields.items() if name not in ("model_type", "architectures", "dtype")}
    width = said.get("moe_intermediate_size") or said["intermediate_size"]
    if getattr(config, "mlp_only_layers", None) and width != said["intermediate_size"]:
        raise CheckpointError(f"{opened.name} has dense layers of another width than its experts; they can't be merged")
    dense = target(**{**fields, "intermediate_size": width})
    dense.architectures = [MODEL_FOR_CAUSAL_LM_MAPPING_NAMES[kind]]
    names = NATIVE_FORMATS[kind].names
    state: dict[str, LazyTensor] = {}
    experts: dict[str, list[LazyTensor]] = {}
    for name, value in slices.items():
        layer = name.partition(".block_sparse_moe." if "block_sparse_moe" in names.router else ".mlp.")[0]
        place = _place(names, name.removeprefix(f"{layer}."))
        if place == "router":
            continue
        if place is None:
            state[name] = value
        elif not names.gate:
            means = _unstacked("gate_up_proj" if place == "up_proj" else place, value)
            state |= {f"{layer}.mlp.{half}.weight": mean for half, mean in means.items()}
        else:
            experts.setdefault(f"{layer}.mlp.{place}.weight", []).append(value)
    return dense, {**state, **{name: Averaged(parts) for name, parts in experts.items()}}


def _place(names: ExpertNames, part: str) -> str | None:
    """Which half of an FFN a tensor within a layer is, "router", or None for what lies outside the experts."""
    if part == names.router:
        return "router"
    for half, name in zip(_HALVES, (names.gate, names.up, names.down), strict=True):
        if name and re.fullmatch(re.escape(name).replace(r"\{\}", r"\d+"), part):
            return half
    return None


def _of_this_package(
    opened: OpenedModel, config: Any, slices: dict[str, Sliced]
) -> tuple[PreTrainedConfig, dict[str, LazyTensor]]:
    if config.shared_expert_intermediate_size:
        raise CheckpointError(f"{opened.name} has shared experts beside the others; they can't be merged into one FFN")
    if config.expert_width != config.ffn_width:
        if "dense" in config.ffn_of_layer:
            raise CheckpointError(f"{opened.name} has dense layers of another width than its experts")
        config.intermediate_size = config.expert_width
    config.make_dense()
    state: dict[str, LazyTensor] = {}
    for name, value in slices.items():
        before, found, part = name.partition(".mlp.experts.")
        if found:
            kind = "bias" if part.endswith("_bias") else "weight"
            means = _unstacked(part.removesuffix("_bias"), value)
            state |= {f"{before}.mlp.{half}.{kind}": mean for half, mean in means.items()}
        elif ".mlp.gate." not in name:
            state[name] = value
    return config, state


def _unstacked(place: str, stack: LazyTensor) -> dict[str, LazyTensor]:
    """The means over the experts of a stack (E, ...): of one half of the FFNs, or of gates over ups."""
    if place != "gate_up_proj":
        return {place: Computed(stack, stack.shape[1:], _mean())}
    half = stack.shape[1] // 2
    shape = (half, *stack.shape[2:])
    return {
        name: Computed(stack, shape, _mean(slice(i * half, (i + 1) * half)))
        for i, name in enumerate(("gate_proj", "up_proj"))
    }


def _mean(rows: slice = slice(None)) -> Callable[[torch.Tensor], torch.Tensor]:
    return lambda stack: stack[:, rows].to(torch.promote_types(stack.dtype, torch.float32)).mean(dim=0).to(stack.dtype)
