"""Finds the experts of each layer that take most tokens of some documents."""

from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import nn

from moe_hf.base.errors import ConfigError
from moe_hf.inference.text_model import CausalTextModel
from moe_hf.models.found_routers import choice_of

# Documents are cut into pieces of this many tokens, and no more than so many tokens are read.
_PIECE_TOKENS = 512
_MOST_TOKENS = 32768


@torch.inference_mode()
def busiest_experts(
    talker: CausalTextModel, documents: Iterable[Sequence[int]], number: int
) -> dict[int, tuple[int, ...]]:
    """The experts of each decoder layer that take most tokens, the busiest first.

    Args:
        talker: a model with experts.
        documents: token ids; the first 32,768 tokens count.
        number: of experts per layer.

    Raises:
        ConfigError: the model has fewer experts, or none, or the documents have no token.
    """
    if not talker.routers:
        raise ConfigError(f"{talker.name} has no layer with experts; name a Mixture of Experts")
    counts: dict[int, torch.Tensor] = {}
    handles = [
        router.register_forward_hook(_counter(counts, layer, talker.experts_per_token))
        for layer, router in zip(talker.sparse_layers, talker.routers.values(), strict=True)
    ]
    length = min(_PIECE_TOKENS, talker.context_limit or _PIECE_TOKENS)
    left = _MOST_TOKENS
    try:
        for document in documents:
            ids = list(document[:left])
            for start in range(0, len(ids), length):
                talker.model(torch.tensor([ids[start : start + length]], device=talker.model.device))
            left -= len(ids)
            if left <= 0:
                break
    finally:
        for handle in handles:
            handle.remove()
    if not counts:
        raise ConfigError("the documents have no token, so no expert is busy; give longer ones")
    most = min(len(count_E) for count_E in counts.values())
    if not 1 <= number <= most:
        raise ConfigError(
            f"{number} busiest experts are not to be had: {talker.name} has {most} per layer; name 1 to that many"
        )
    # Among experts that took as many, the first.
    orders = {layer: count_E.argsort(descending=True, stable=True) for layer, count_E in sorted(counts.items())}
    return {layer: tuple(order_E[:number].tolist()) for layer, order_E in orders.items()}


def _counter(counts: dict[int, torch.Tensor], layer: int, top_k: int) -> Any:
    def count(module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        logits_TE, _, expert_TK = choice_of(output, top_k)
        # The id E marks an empty slot.
        num_experts = logits_TE.shape[-1]
        count_E = torch.bincount(expert_TK.flatten(), minlength=num_experts + 1)[:num_experts]
        counts[layer] = counts[layer] + count_E if layer in counts else count_E

    return count
