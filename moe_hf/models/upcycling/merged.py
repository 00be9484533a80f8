"""Plans a dense model from a Mixture of Experts: the mean of its experts, or some of them, in place of each layer's.

Shapes: E experts, D width, F width of an expert.
"""

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from transformers import PreTrainedConfig
from transformers.models.auto.configuration_auto import CONFIG_MAPPING
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from moe_hf.base.errors import CheckpointError, ConfigError
from moe_hf.config.decoder import MoEDecoderConfig
from moe_hf.models.auto import FAMILIES
from moe_hf.models.dense.kept_logits import why_logits_change
from moe_hf.models.dense.lazy_tensors import Averaged, Computed, Joined, LazyTensor, Sliced, StackEntry
from moe_hf.models.parameter_kinds import IN_FLOAT32
from moe_hf.models.upcycling.native_formats import NATIVE_FORMATS, ExpertNames
from moe_hf.models.upcycling.opened import OpenedModel, other_config
from moe_hf.models.upcycling.planned import ParameterCounts, PlannedModel

# A tensor of a sparse FFN of this package; RWKV's stands inside another one.
_OWN_FFN = re.compile(r"(.+\.mlp(?:\.inner)?)\.(experts|shared_expert|gate)\.(.+)")
_HALVES = ("gate_proj", "up_proj", "down_proj")
# The first of several dense types that become one Mixture of Experts; Mistral's has a window.
_DENSE_TYPES = {native.moe_type: name for name, native in reversed([*NATIVE_FORMATS.items()]) if not native.shares}
MERGING = frozenset(_DENSE_TYPES) | FAMILIES.keys() - {"megabyte_moe"}
"""The `model_type` of the Mixtures of Experts that can be merged."""

_MEAN = "the experts of each layer are replaced by their mean, which computes the same only where they are equal"
_SOME = (
    "each FFN is made of {} of its layer's experts, side by side, and gives the mean of their outputs for every token"
)
_UNNORMALISED = "the weights of a token's experts do not sum to 1 there, as those of a mean do"

KeptExperts = Mapping[int, Sequence[int]]
"""For each decoder layer with experts, the ids of those to keep."""

# A part of an FFN by its name in the dense model -> that part of each expert.
ExpertParts = dict[str, list[LazyTensor]]


def plan_merged(
    opened: OpenedModel,
    dtype: torch.dtype | None = None,
    granularity: int = 1,
    kept_experts: KeptExperts | Callable[[], KeptExperts] | None = None,
    **choices: Any,
) -> PlannedModel:
    """The dense model whose FFNs are the means of the experts, or some experts side by side; routers are left out.

    A Mixtral becomes a Llama (with a window, a Mistral), others the type that they are made of; a model of this package
    its own dense twin, whose FFNs hold a shared expert as well. Experts that are equal, as after upcycling, give the
    same function where the weights of a token's experts sum to 1.

    Args:
        opened: a Mixture of Experts of a type in `MERGING`.
        dtype: type of the written weights; None keeps the source's.
        granularity: must be 1.
        kept_experts: for each decoder layer with experts, the ids of those to keep, as many in each: an FFN is that
            many experts wide then. A function that gives them is called when all else is checked. None takes the mean
            of all, as wide as one.
        **choices: none is allowed.

    Raises:
        CheckpointError: its layers hold more than experts, or it can't be told which dense model it would be.
        ConfigError: a choice is given, or there are no such experts.
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
    if own and config.shared_expert_intermediate_size and config.shared_expert_gate:
        raise CheckpointError(f"{opened.name} gates its shared expert, which no dense FFN does; it can't be merged")
    kept_experts = kept_experts() if callable(kept_experts) else kept_experts
    state, experts, shared = _parts_of_this_package(opened) if own else _parts_of_transformers(opened)
    _require_experts(kept_experts, {_layer_of(name): len(parts) for name, parts in experts.items()})
    number = len(next(iter(kept_experts.values()))) if kept_experts else 1
    changes = [_SOME.format(number) if kept_experts else _MEAN]
    if why_logits_change(config) if own else _leaves_weights(config):
        changes.append(_UNNORMALISED)
    dense = _own_twin(opened, config, number) if own else _dense_config(opened, config, number)
    for name, parts in experts.items():
        kept = kept_experts and [parts[expert] for expert in kept_experts[_layer_of(name)]]
        routed = _side_by_side(name, kept, 1 / len(kept)) if kept else Averaged(parts)
        state[name] = _side_by_side(name, [shared[name], routed], 1.0) if name in shared else routed
    for name, tensor in state.items():
        tensor.in_float32 = own is not None and any(part in name for part in IN_FLOAT32)
    total, before = (
        sum(torch.Size(value.get_shape()).numel() for value in group.values()) for group in (state, opened.slices)
    )
    wanted = MoEDecoderConfig(num_hidden_layers=config.num_hidden_layers, num_attention_heads=1)
    wanted.make_dense()
    counts = ParameterCounts(total, total, before)
    return PlannedModel(dense, state, wanted, counts, changes, "A dense model merged from the Mixture of Experts")


def _leaves_weights(config: Any) -> bool:
    number = getattr(config, "num_local_experts", None) or getattr(config, "num_experts", None)
    return not getattr(config, "norm_topk_prob", True) and config.num_experts_per_tok != number


def _require_experts(kept: KeptExperts | None, there: dict[int, int]) -> None:
    """Refuse what does not name as many different experts in each layer; `there` counts those of each."""
    if kept is None:
        return
    sizes = {len(ids) for ids in kept.values()}
    fits = all({*ids} <= {*range(there.get(layer, 0))} and len({*ids}) == len(ids) for layer, ids in kept.items())
    if not fits or kept.keys() != there.keys() or len(sizes) != 1 or 0 in sizes:
        layers = ", ".join(map(str, sorted(there)))
        raise ConfigError(
            f"kept_experts={dict(kept)!r} is not allowed; it must name as many different experts in each of the layers "
            f"{layers}, of 0 to {min(there.values(), default=0) - 1}"
        )


def _layer_of(name: str) -> int:
    return int(name.partition("layers.")[2].partition(".")[0])


def _dense_config(opened: OpenedModel, config: PreTrainedConfig, number: int) -> PreTrainedConfig:
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
    width = number * int(said.get("moe_intermediate_size") or said["intermediate_size"])
    if getattr(config, "mlp_only_layers", None):
        _require_width(opened, width, said["intermediate_size"])
    dense = target(**{**fields, "intermediate_size": width})
    dense.architectures = [MODEL_FOR_CAUSAL_LM_MAPPING_NAMES[kind]]
    return dense


def _own_twin(opened: OpenedModel, config: Any, number: int) -> PreTrainedConfig:
    width = number * config.expert_width + (config.shared_expert_intermediate_size or 0)
    if "dense" in config.ffn_of_layer:
        _require_width(opened, width, config.ffn_width)
    if width != config.ffn_width:
        config.intermediate_size = width
    config.make_dense()
    return config  # type: ignore[no-any-return]


def _require_width(opened: OpenedModel, width: int, other: int) -> None:
    if width != other:
        raise CheckpointError(
            f"{opened.name} has dense layers of width {other}, and its experts would become FFNs of {width}: a dense "
            "model has one width; keep as many experts as make it, if any do"
        )


def _parts_of_transformers(
    opened: OpenedModel,
) -> tuple[dict[str, LazyTensor], ExpertParts, dict[str, LazyTensor]]:
    """The tensors outside the experts, the experts', and a shared expert's, of which there is none."""
    names = NATIVE_FORMATS[_DENSE_TYPES[opened.model_type]].names
    state: dict[str, LazyTensor] = {}
    experts: ExpertParts = {}
    numbered: dict[str, dict[int, LazyTensor]] = {}
    for name, value in opened.slices.items():
        layer = name.partition(".block_sparse_moe." if "block_sparse_moe" in names.router else ".mlp.")[0]
        place, expert = _place(names, name.removeprefix(f"{layer}."))
        if place is None:
            state[name] = Sliced(value)
        elif expert is not None:
            numbered.setdefault(f"{layer}.mlp.{place}.weight", {})[expert] = Sliced(value)
        elif place != "router":
            parts = _unstacked("gate_up_proj" if place == "up_proj" else place, value)
            experts |= {f"{layer}.mlp.{half}.weight": part for half, part in parts.items()}
    return state, experts | {name: [parts[i] for i in sorted(parts)] for name, parts in numbered.items()}, {}


def _place(names: ExpertNames, part: str) -> tuple[str | None, int | None]:
    """Which half of an FFN a tensor within a layer is, "router", or None outside; and of which expert, if of one."""
    if part == names.router:
        return "router", None
    for half, name in zip(_HALVES, (names.gate, names.up, names.down), strict=True):
        found = re.fullmatch(re.escape(name).replace(r"\{\}", r"(\d+)"), part) if name else None
        if found:
            return half, int(found[1]) if found.groups() else None
    return None, None


def _parts_of_this_package(
    opened: OpenedModel,
) -> tuple[dict[str, LazyTensor], ExpertParts, dict[str, LazyTensor]]:
    """The tensors outside the experts, the experts', and the shared expert's by their names in the dense model."""
    state: dict[str, LazyTensor] = {}
    shared: dict[str, LazyTensor] = {}
    experts: ExpertParts = {}
    for name, value in opened.slices.items():
        found = _OWN_FFN.fullmatch(name)
        if found is None:
            state[name] = Sliced(value)
            continue
        ffn, place, part = found.groups()
        if place == "experts":
            kind = "bias" if part.endswith("_bias") else "weight"
            parts = _unstacked(part.removesuffix("_bias"), value)
            experts |= {f"{ffn}.{half}.{kind}": entries for half, entries in parts.items()}
        elif place == "shared_expert":
            shared[f"{ffn}.{part}"] = Sliced(value)
    return state, experts, shared


def _unstacked(place: str, stack: Any) -> ExpertParts:
    """The experts of a stored stack (E, ...) one by one: one half of their FFNs, or gates over ups."""
    number, rows, *_ = stack.get_shape()
    if place != "gate_up_proj":
        return {place: [StackEntry(stack, expert) for expert in range(number)]}
    halves = {"gate_proj": slice(0, rows // 2), "up_proj": slice(rows // 2, rows)}
    return {name: [StackEntry(stack, expert, half) for expert in range(number)] for name, half in halves.items()}


def _side_by_side(name: str, parts: list[LazyTensor], share: float) -> LazyTensor:
    """A part of the FFN that holds several and gives `share` times the sum of their outputs."""
    if ".down_proj." not in name:
        return Joined(parts, dim=0)
    # The output bias belongs to all of them.
    bias = name.endswith(".bias")
    whole, factor = (Averaged(parts), share * len(parts)) if bias else (Joined(parts, dim=1), share)
    return Computed(whole, whole.shape, lambda value: value * factor)
