"""Chooses experts for tokens from router logits.

Shapes: T tokens, E experts, K experts per token.
"""

from typing import NamedTuple

import torch


class Routes(NamedTuple):
    """Which experts each token visits and how much each counts."""

    weight_TK: torch.Tensor
    expert_TK: torch.Tensor


def top_k_routing(logits_TE: torch.Tensor, k: int, normalize: bool = True) -> Routes:
    """The k most probable experts of each token (Shazeer et al. 2017, Lepikhin et al. 2020).

    Args:
        logits_TE: raw scores, float32.
        k: experts per token, 1 <= k <= E.
        normalize: scale each token's k weights to sum to 1; else they are the probabilities themselves.

    Returns:
        weights in (0, 1], largest first, in the dtype of the logits, and the experts' indices.

    >>> top_k_routing(torch.tensor([[0.0, 2.0, 1.0]]), k=2).expert_TK
    tensor([[1, 2]])
    """
    prob_TE = logits_TE.softmax(dim=-1)
    weight_TK, expert_TK = prob_TE.topk(k, dim=-1)
    if normalize:
        weight_TK = weight_TK / weight_TK.sum(dim=-1, keepdim=True)
    return Routes(weight_TK, expert_TK)
