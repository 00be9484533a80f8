"""Records which experts the routers of a model chose, while it generates.

Shapes: L sparse layers, T tokens, K experts per token, E experts.
"""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import nn

from moe_hf.inference.streaming import Piece
from moe_hf.models.found_routers import choice_of


class RoutingTrace(NamedTuple):
    """The experts that took the tokens of one answer.

    The choice is the routers' own, taken down in the passes that produced the answer, not computed again. A token meets
    the experts when it is fed back to get the next one; the last token of an answer never is, so it has no experts.

    Attributes:
        pieces: the answer, cut where text became whole; their token counts add up to the tokens of the answer.
        layers: the decoder layer that each entry of L stands for.
        num_experts: E, the same in every layer.
        experts_LTK: experts of each token of the answer that was fed back.
        weights_LTK: the routers' weights of those experts.
    """

    pieces: tuple[Piece, ...]
    layers: tuple[int, ...]
    num_experts: int
    experts_LTK: torch.Tensor
    weights_LTK: torch.Tensor

    def top_experts(self, layer: int) -> list[int]:
        """The expert with the largest weight for each token, in the L-th recorded layer."""
        best_T = self.weights_LTK[layer].argmax(dim=-1, keepdim=True)
        return [int(expert) for expert in self.experts_LTK[layer].gather(1, best_T)[:, 0]]

    def load(self, layer: int) -> list[float]:
        """Share of the token-to-expert assignments that each expert got in the L-th recorded layer; sums to 1."""
        # The id E marks an empty slot.
        counts = torch.bincount(self.experts_LTK[layer].reshape(-1), minlength=self.num_experts + 1)[:-1]
        return [float(share) for share in counts / counts.sum().clamp(min=1)]


def sparse_layers(routers: dict[str, nn.Module]) -> tuple[int, ...]:
    """The decoder layer that each router belongs to: the first number in its module name."""
    numbers = [re.search(r"\.(\d+)\.", name) for name in routers]
    return tuple(index if number is None else int(number.group(1)) for index, number in enumerate(numbers))


class RoutingRecorder:
    """Takes down what the routers return.

    Args:
        routers: by module name.
        top_k: experts per token, for routers that return their logits alone.
    """

    def __init__(self, routers: dict[str, nn.Module], top_k: int = 1) -> None:
        self._routers, self._top_k = routers, top_k
        self._seen: list[list[tuple[torch.Tensor, torch.Tensor]]] = [[] for _ in routers]
        self._num_experts = 0

    @contextmanager
    def recording(self) -> Iterator[None]:
        """Records every forward pass inside the `with`; the model is left as it was."""
        handles = [
            router.register_forward_hook(self._hook(index)) for index, router in enumerate(self._routers.values())
        ]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    def _hook(self, index: int) -> Any:
        def take_down(module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
            logits_TE, weights_TK, experts_TK = choice_of(output, self._top_k)
            self._num_experts = logits_TE.shape[-1]
            self._seen[index].append((weights_TK.detach().float().cpu(), experts_TK.detach().cpu()))

        return take_down

    def trace(self, prompt_length: int, pieces: list[Piece]) -> RoutingTrace | None:
        """The trace of the answer after a prompt of `prompt_length` tokens; None if no router ran."""
        if not self._routers or not all(self._seen):
            return None
        weights_LTK = _stacked([torch.cat([weights for weights, _ in layer]) for layer in self._seen], 0.0)
        experts_LTK = _stacked(
            [torch.cat([experts for _, experts in layer]) for layer in self._seen], self._num_experts
        )
        num_tokens = sum(piece.num_tokens for piece in pieces)
        answer = slice(prompt_length, prompt_length + num_tokens)
        return RoutingTrace(
            pieces=tuple(pieces),
            layers=sparse_layers(self._routers),
            num_experts=self._num_experts,
            experts_LTK=experts_LTK[:, answer],
            weights_LTK=weights_LTK[:, answer],
        )


def _stacked(layers: list[torch.Tensor], empty: float) -> torch.Tensor:
    # Routers of one model may differ in K; the missing slots are empty ones.
    most = max(layer.shape[-1] for layer in layers)
    return torch.stack([nn.functional.pad(layer, (0, most - layer.shape[-1]), value=empty) for layer in layers])
