"""Plans a larger Mixture of Experts from one that exists: each expert, and its row of the router, several times.

Shapes: E experts, m copies of each, K experts per token, D width.
"""

import re
from collections.abc import Mapping
from typing import Any

import torch
from transformers import PreTrainedConfig

from moe_hf.base.errors import CheckpointError, ConfigError
from moe_hf.config.decoder import MoEDecoderConfig
from moe_hf.models.auto import FAMILIES
from moe_hf.models.dense.expert_init import ExpertRecipe, FFNParameter, OneExpert, expert_recipe, make_expert
from moe_hf.models.dense.lazy_tensors import Computed, LazyTensor, Sliced
from moe_hf.models.parameter_kinds import IN_FLOAT32
from moe_hf.models.upcycling.native_formats import NATIVE_FORMATS
from moe_hf.models.upcycling.opened import OpenedModel, other_config
from moe_hf.models.upcycling.planned import ParameterCounts, PlannedModel

GROWING = frozenset({native.moe_type for native in NATIVE_FORMATS.values()} | FAMILIES.keys()) - {"megabyte_moe"}
"""The `model_type` of the Mixtures of Experts that can be grown."""

CHOICES = ("num_experts", "num_experts_per_tok", "expert_init", "expert_init_noise", "expert_init_seed")

# With these, equal rows of a router are chosen together, and share their weight.
_ROUTERS = {"top_k", "sigmoid_bias"}
_ONE = re.compile(r"^(?P<before>.*\.experts\.)(?P<expert>\d+)(?P<after>\..*)$")
_STACK = re.compile(r"\.experts\.\w+$|\.block_sparse_moe\.(input|output)_linear\.weight$")
_ROUTER = re.compile(r"\.(gate|router|router\.layer)\.\w+$")


def plan_grown(
    opened: OpenedModel, dtype: torch.dtype | None = None, granularity: int = 1, **choices: Any
) -> PlannedModel:
    """The model with m times as many experts, which computes the same while a token visits all copies of an expert.

    Copies that are equal stay equal while they are visited together: `expert_init="noise"` sets them apart.

    Args:
        opened: a Mixture of Experts of a type in `GROWING`.
        dtype: type of the written weights; None keeps the source's.
        granularity: must be 1.
        **choices: those of `CHOICES`. `num_experts_per_tok` is m * K unless it is given.

    Raises:
        CheckpointError: its routers can't share a weight among copies.
        ConfigError: a choice is not allowed.
    """
    config = _config_of(opened)
    experts, per_token = _sizes(config)
    if granularity != 1:
        raise ConfigError(f"granularity={granularity} is not allowed for {opened.name}, which has experts; give 1")
    if opened.source.gguf_file is not None:
        raise CheckpointError(f"{opened.name} is a GGUF file with experts; only safetensors can be grown")
    wanted = _wanted(opened, config, choices)
    copies, recipe = wanted.num_experts // experts, expert_recipe(wanted, dtype)
    state: dict[str, LazyTensor] = {}
    for name, value in opened.slices.items():
        state |= _grown(name, value, experts, copies, recipe)
    for name, value in state.items():
        value.in_float32 = config.model_type in FAMILIES and any(part in name for part in IN_FLOAT32)
    _set_sizes(config, wanted)
    routed = sum(_numel(value) for name, value in state.items() if _ONE.match(name) or _STACK.search(name))
    total = sum(map(_numel, state.values()))
    active = total - routed + routed * wanted.num_experts_per_tok // wanted.num_experts
    source = sum(torch.Size(value.get_shape()).numel() for value in opened.slices.values())
    changes = []
    if wanted.num_experts_per_tok != copies * per_token:
        changes.append(f"a token visits {wanted.num_experts_per_tok} experts; {copies * per_token} keep the function")
    if wanted.expert_init != "copy":
        changes.append(f'expert_init="{wanted.expert_init}" changes the experts; "copy" keeps the logits')
    counts = ParameterCounts(total, active, source)
    origin = "A Mixture of Experts grown from the Mixture of Experts"
    return PlannedModel(config, state, wanted, counts, changes, origin)


def _config_of(opened: OpenedModel) -> PreTrainedConfig:
    family = FAMILIES.get(opened.model_type)
    if family is None:
        return other_config(opened.source)
    config: Any = family.config.from_pretrained(opened.folder)
    others = {*config.router_of_sparse_layer} - _ROUTERS
    if others or not (config.norm_topk_prob or "sigmoid_bias" not in config.router_of_sparse_layer):
        kinds = ", ".join(sorted(others)) or "sigmoid_bias without norm_topk_prob"
        raise CheckpointError(
            f"{opened.name} routes by {kinds}, whose copies of an expert would not share its weight; only "
            f"{', '.join(sorted(_ROUTERS))} can be grown"
        )
    return family.config.from_pretrained(opened.folder)


def _sizes(config: PreTrainedConfig) -> tuple[int, int]:
    found: Any = config
    return int(getattr(found, "num_experts", None) or found.num_local_experts), int(found.num_experts_per_tok)


def _wanted(opened: OpenedModel, config: PreTrainedConfig, choices: dict[str, Any]) -> MoEDecoderConfig:
    experts, per_token = _sizes(config)
    for name, value in choices.items():
        if name not in CHOICES:
            allowed = ", ".join(CHOICES)
            raise ConfigError(f"{name}={value!r} has no meaning for a model that is grown; allowed are {allowed}")
    number = choices.setdefault("num_experts", 2 * experts)
    if not isinstance(number, int) or number <= experts or number % experts:
        raise ConfigError(
            f"num_experts={number!r} is not allowed for {opened.name}, which has {experts}; it must be a multiple"
        )
    if choices.get("expert_init", "copy") not in ("copy", "noise"):
        raise ConfigError(f"expert_init={choices['expert_init']!r} is not allowed here; it must be copy or noise")
    choices.setdefault("num_experts_per_tok", number // experts * per_token)
    layers: Any = config.num_hidden_layers
    given: Any = getattr(config, "mlp_layer_types", None)
    dense = {*(getattr(config, "mlp_only_layers", None) or ())}
    kinds = given or ["dense" if i in dense else "sparse" for i in range(layers)]
    if "sparse" not in kinds:
        raise CheckpointError(f"{opened.name} has no layer with experts, and so nothing that grows")
    return MoEDecoderConfig(num_hidden_layers=layers, mlp_layer_types=kinds, **choices)


def _set_sizes(config: Any, wanted: MoEDecoderConfig) -> None:
    name = "num_experts" if hasattr(config, "num_experts") else "num_local_experts"
    setattr(config, name, wanted.num_experts)
    config.num_experts_per_tok = wanted.num_experts_per_tok


def _grown(name: str, value: Any, experts: int, copies: int, recipe: ExpertRecipe) -> Mapping[str, LazyTensor]:
    tensor = Sliced(value)
    one = _ONE.match(name)
    if one is not None:
        first = int(one["expert"]) * copies
        part = FFNParameter(0, one["before"] + one["after"], None)
        return {
            f"{one['before']}{first + i}{one['after']}": OneExpert(tensor, part, first + i, recipe)
            for i in range(copies)
        }
    if _STACK.search(name):
        return {name: _GrownStack(tensor, copies, FFNParameter(0, name, None), recipe)}
    if _ROUTER.search(name) and tensor.shape[:1] == (experts,):
        shape = (experts * copies, *tensor.shape[1:])
        return {name: Computed(tensor, shape, lambda rows: rows.repeat_interleave(copies, dim=0))}
    return {name: tensor}


class _GrownStack(LazyTensor):
    """An (E, ...) stack with m versions of each expert, one behind the other."""

    def __init__(self, stack: LazyTensor, copies: int, part: FFNParameter, recipe: ExpertRecipe) -> None:
        super().__init__((stack.shape[0] * copies, *stack.shape[1:]), stack.get_dtype())
        self._stack, self._copies, self._part, self._recipe = stack, copies, part, recipe

    def read(self) -> torch.Tensor:
        """The values, in memory of their own."""
        dense = self._stack.read()
        return torch.stack(
            [make_expert(dense[i // self._copies], self._part, i, self._recipe) for i in range(self.shape[0])]
        )


def _numel(value: LazyTensor) -> int:
    return torch.Size(value.shape).numel()
