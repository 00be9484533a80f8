"""Counts how many tokens each expert of a model takes, while it serves.

Shapes: T tokens, E experts, K experts per token.
"""

from collections.abc import Iterator
from typing import Any

import torch
from torch import nn

from moe_hf.models.found_routers import choice_of
from moe_hf.serving.metrics import Sample


class ExpertLoad:
    """Hooks on the routers of a model, for as long as it lives.

    Args:
        name: of the model, for the labels.
        routers: with the decoder layer of each.
        top_k: experts per token, for routers that return their logits alone.
    """

    def __init__(self, name: str, routers: list[tuple[int, nn.Module]], top_k: int) -> None:
        self._name, self._top_k = name, top_k
        # On the device of the model: nothing waits for it before somebody asks.
        self._counts: dict[int, torch.Tensor] = {}
        for layer, router in routers:
            router.register_forward_hook(self._hook(layer))

    def samples(self) -> Iterator[Sample]:
        """Tokens per layer and expert so far."""
        for layer, count_E in sorted(self._counts.items()):
            for expert, count in enumerate(count_E.tolist()):
                labels = ("expert", str(expert)), ("layer", str(layer)), ("model", self._name)
                yield Sample("moe_hf_expert_tokens_total", labels, count)

    def _hook(self, layer: int) -> Any:
        def count(module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
            logits_TE, _, expert_TK = choice_of(output, self._top_k)
            # The id E marks an empty slot.
            num_experts = logits_TE.shape[-1]
            count_E = torch.bincount(expert_TK.flatten(), minlength=num_experts + 1)[:num_experts]
            # Not in place: a pass in inference mode may come between others.
            self._counts[layer] = count_E + self._counts[layer] if layer in self._counts else count_E

        return count
