"""Moves the states of a model's routers between optimizer steps: correction biases and thresholds.

Shapes: B batch, S positions, L sparse layers, E experts, K experts per token.
"""

from collections.abc import Mapping
from typing import Any

import torch
from torch import distributed, nn
from transformers import PreTrainedModel

from moe_hf.layers.ffn.moe import SparseFFN
from moe_hf.layers.ffn.routers import LoadLearner, Router
from moe_hf.models.router_losses import mask_of_call
from moe_hf.ops.routing.balance import flat_mask


def routers_of(model: nn.Module) -> list[Router]:
    """The routers of a model, from the first sparse layer to the last; empty for a dense model."""
    return [_router_in(module.gate) for module in model.modules() if isinstance(module, SparseFFN)]


def _router_in(gate: Any) -> Router:
    routers = [module for module in gate.modules() if isinstance(module, Router)]
    # peft wraps a router to whose weight it adds, and keeps copies of one that it trains whole, of which one is in use.
    return routers[0] if len(routers) == 1 else gate.modules_to_save[gate.active_adapters[0]]


class RouterStates:
    """Watches the training forwards of a model and moves the routers' states once per optimizer step.

    What is counted comes from the outputs of the whole model, so a layer that activation checkpointing runs twice
    counts once, and evaluation does not count. In a training loop of your own:

        states = RouterStates(model)
        for batches in steps:
            for batch in batches:
                model(**batch).loss.backward()
            states.step()
            optimizer.step()
            optimizer.zero_grad()
        states.close()

    Args:
        model: with a skeleton of this package.
    """

    def __init__(self, model: PreTrainedModel) -> None:
        self._routers = routers_of(model)
        self._observed: dict[int, torch.Tensor] = {}
        self._num_forwards = 0
        base: Any = model.base_model
        self._handles = [base.register_forward_hook(self._observe, with_kwargs=True)]
        if self.needed:
            self._handles.append(base.register_forward_pre_hook(_record_routing, with_kwargs=True))

    @property
    def needed(self) -> bool:
        """Whether any router has a state."""
        return any(router.learns_from_load for router in self._routers)

    @torch.no_grad()
    def _observe(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], outputs: Any) -> None:
        recorded = isinstance(outputs, Mapping) and outputs.get("router_logits") and outputs.get("router_experts")
        if not module.training or not recorded:
            return
        mask = mask_of_call(kwargs.get("attention_mask"), len(outputs["router_logits"][0]))
        # Nothing but padding says nothing; yet the other ranks wait for what this one saw.
        empty = mask is not None and not mask.any()
        self._num_forwards += not empty
        for layer, router in enumerate(self._routers):
            if isinstance(router, LoadLearner):
                logits_TE = outputs["router_logits"][layer]
                observed_E = torch.zeros_like(router.state_E)
                if not empty:
                    observed_E = router.observe(logits_TE, outputs["router_experts"][layer], flat_mask(mask, logits_TE))
                before = self._observed.get(layer)
                self._observed[layer] = observed_E if before is None else before + observed_E

    def step(self) -> None:
        """Move the states by everything observed since the last call, on all ranks alike."""
        layers = sorted(self._observed)
        if layers:
            device = self._observed[layers[0]].device
            # One reduction for all layers, on one device: those of a model may lie on several.
            total_LE = torch.stack([self._observed[layer].to(device) for layer in layers])
            forwards = torch.tensor(float(self._num_forwards), device=device)
            if distributed.is_initialized():
                distributed.all_reduce(total_LE)
                distributed.all_reduce(forwards)
            for layer, observed_E in zip(layers, total_LE, strict=True):
                router = self._routers[layer]
                if isinstance(router, LoadLearner) and forwards > 0:
                    router.adjust(observed_E.to(router.state_E.device), int(forwards))
        self._observed, self._num_forwards = {}, 0

    def close(self) -> None:
        """Stop watching."""
        for handle in self._handles:
            handle.remove()


def _record_routing(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    # Whether or not the caller wants to see it, and with a loss of whatever kind.
    if module.training:
        kwargs = {**kwargs, "output_router_logits": True, "output_router_experts": True}
    return args, kwargs
