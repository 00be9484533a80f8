"""Finds the experts of each layer that take most tokens of some documents."""

from collections.abc import Iterable, Sequence

import torch

from moe_hf.base.errors import ConfigError
from moe_hf.inference.routing_recorder import RoutingRecorder
from moe_hf.inference.streaming import Piece
from moe_hf.inference.text_model import CausalTextModel

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
    shares: list[torch.Tensor] = []
    length = min(_PIECE_TOKENS, talker.context_limit or _PIECE_TOKENS)
    left = _MOST_TOKENS
    for document in documents:
        for start in range(0, min(len(document), left), length):
            ids = list(document[start : min(start + length, left)])
            trace = _traced(talker, ids)
            shares.append(len(ids) * torch.tensor(trace))
        left -= len(document)
        if left <= 0:
            break
    if not shares:
        raise ConfigError("the documents have no token, so no expert is busy; give longer ones")
    load_LE = torch.stack(shares).sum(dim=0)
    if not 1 <= number <= load_LE.shape[1]:
        raise ConfigError(
            f"{number} busiest experts are not to be had: {talker.name} has {load_LE.shape[1]} per layer; name 1 to "
            "that many"
        )
    # Among experts that took as many, the first.
    order_LE = load_LE.argsort(dim=1, descending=True, stable=True)[:, :number]
    return {layer: tuple(ids) for layer, ids in zip(talker.sparse_layers, order_LE.tolist(), strict=True)}


def _traced(talker: CausalTextModel, ids: list[int]) -> list[list[float]]:
    recorder = RoutingRecorder(talker.routers, talker.experts_per_token)
    with recorder.recording():
        talker.model(torch.tensor([ids], device=talker.model.device))
    trace = recorder.trace(0, [Piece("", len(ids))])
    if trace is None:
        raise ConfigError(f"{talker.name} has no layer with experts; name a Mixture of Experts")
    return [trace.load(layer) for layer in range(len(trace.layers))]
