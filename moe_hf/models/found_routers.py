"""Finds the routers of any model with experts, ours or transformers' own, and reads what they return.

Shapes: T tokens, E experts, K experts per token.
"""

from typing import Any, NamedTuple

import torch
from torch import nn
from transformers import PreTrainedModel

# What a layer calls its router.
_ROUTER_NAMES = ("gate", "router")


class LayerChoice(NamedTuple):
    """What one router did with the tokens of a forward: raw logits (T, E), and chosen experts with weights (T, K)."""

    logits_TE: torch.Tensor
    weight_TK: torch.Tensor
    expert_TK: torch.Tensor


def find_routers(model: nn.Module) -> dict[str, nn.Module]:
    """The routers of a model by module name, in layer order; empty for a dense model.

    They are the modules that the model declares to transformers' recorder as the source of `router_logits`, or, where
    it declares none, those beside experts.
    """
    bodies = [module for module in model.modules() if isinstance(module, PreTrainedModel)]
    declared: Any = next((found for body in bodies if (found := body.can_record_outputs.get("router_logits"))), [])
    recorders = declared if isinstance(declared, list) else [declared]
    named = dict(model.named_modules())
    beside = {f"{name.removesuffix('experts')}{word}" for name in named for word in _ROUTER_NAMES if _is_stack(name)}
    found = {
        name: module
        for name, module in named.items()
        if any(_records(recorder, name, module) for recorder in recorders) or (not recorders and name in beside)
    }
    return {name: module for name, module in found.items() if not _is_idle(model, name)}


def _records(recorder: Any, name: str, module: nn.Module) -> bool:
    if isinstance(recorder, type):
        return isinstance(module, recorder)
    # A class as wide as Linear is told by its name in the layer.
    place = recorder.layer_name
    return isinstance(module, recorder.target_class) and (place is None or name.endswith(f".{place}"))


def _is_stack(name: str) -> bool:
    return name.endswith(".experts")


def _is_idle(model: nn.Module, name: str) -> bool:
    """Whether a router only lies beside the one in use: peft keeps those that it trains whole apart from the first."""
    wrapper, _, kept = name.rpartition(".modules_to_save.")
    if wrapper:
        active: Any = model.get_submodule(wrapper)
        return kept not in active.active_adapters
    return name.endswith(".original_module")


def choice_of(output: Any, top_k: int) -> LayerChoice:
    """What a router returned: (logits, weights, experts), in some versions the other way round, or logits alone.

    Args:
        output: of the router.
        top_k: experts per token, where the logits are all that it tells; they are taken for those of a softmax.
    """
    # What JetMoE says of its order of the slots has one dimension, or is a list.
    found = [x for x in (output if isinstance(output, tuple) else (output,)) if isinstance(x, torch.Tensor)]
    parts = [part for part in found if part.dim() > 1]
    if not parts[0].is_floating_point():
        parts = parts[::-1]
    logits_TE = parts[0].reshape(-1, parts[0].shape[-1])
    told = [part for part in parts if not part.is_floating_point()]
    if len(parts) < 3 or not told:
        return LayerChoice(logits_TE, *logits_TE.float().softmax(dim=-1).topk(top_k, dim=-1))
    # In both orders the weights stand in the middle.
    return LayerChoice(logits_TE, parts[1].reshape(logits_TE.shape[0], -1), told[0].reshape(logits_TE.shape[0], -1))
