"""Plans one of transformers' own Mixtures of Experts: the dense model's tensors, and experts made of its FFNs.

Shapes: E experts, D width, F width of the FFN, G slices of it.
"""

import re
from collections.abc import Mapping
from typing import Any

import torch
from transformers import AutoModelForCausalLM, PreTrainedConfig

from moe_hf.base.errors import CheckpointError
from moe_hf.config.decoder import MoEDecoderConfig
from moe_hf.models.dense.checkpoint_files import listed
from moe_hf.models.dense.expert_init import (
    ExpertRecipe,
    FFNParameter,
    OneExpert,
    StackedExperts,
    expert_recipe,
    router_rows,
    seed_of,
)
from moe_hf.models.dense.lazy_tensors import Copied, Joined, LazyTensor, Sliced, zeros
from moe_hf.models.upcycling.native_config import choose_native
from moe_hf.models.upcycling.native_formats import NativeFormat
from moe_hf.models.upcycling.opened import OpenedModel, other_config
from moe_hf.models.upcycling.planned import ParameterCounts, PlannedModel

_BUFFERS = re.compile(r"(^|\.)(inv_freq|masked_bias)$")
_HALVES = {"gate_proj": 0, "up_proj": 0, "down_proj": 1}


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
    dense: Any = other_config(opened.source)
    native, config, wanted = choose_native(dense, granularity, **choices)
    tensors = _dense_tensors(opened, dense)
    dense_params = sum(map(_numel, tensors.values()))
    recipe = expert_recipe(wanted, dtype, granularity)
    state: dict[str, LazyTensor] = {}
    routed = 0
    for layer in range(dense.num_hidden_layers):
        if layer in wanted.sparse_layers:
            ffn = {half: tensors.pop(f"model.layers.{layer}.mlp.{half}.weight") for half in _HALVES}
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
    embedding = "model.embed_tokens.weight"
    if embedding not in tensors and (head := tied & stored.keys()):
        # Of two names for one matrix a file may hold either.
        tensors[embedding] = _lazy(stored[min(head)])
    _require_same(opened, {name: shape for name, shape in needed.items() if name not in tied}, tensors)
    for name in tied & stored.keys():
        if not torch.equal(_lazy(stored[name]).read(), tensors[embedding].read()):
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
        half: FFNParameter(layer, f"{half}.weight", dim, scale if half == "down_proj" else 1.0)
        for half, dim in _HALVES.items()
    }
    if not names.gate:
        stacks = {half: StackedExperts(ffn[half], wanted.num_experts, parts[half], recipe) for half in _HALVES}
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
        state["mlp.shared_expert_gate.weight"] = zeros((1, width))
    return state


def _numel(value: LazyTensor) -> int:
    return torch.Size(value.shape).numel()
