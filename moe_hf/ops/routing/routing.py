"""Chooses experts for tokens from router logits, and weighs the chosen ones.

Shapes: T tokens, E experts, K experts per token, G groups of M experts. A chosen expert's id is in [0, E);
the id E marks an empty slot, which weighs 0 and which every experts backend skips.
"""

from typing import NamedTuple

import torch

SCORES = ("softmax", "sigmoid")
"""How logits become scores in (0, 1): experts compete for a token, or each says for itself how well it fits."""


class Routes(NamedTuple):
    """Which experts each token visits and how much each counts."""

    weight_TK: torch.Tensor
    expert_TK: torch.Tensor


def router_scores(logits_TE: torch.Tensor, score: str = "softmax") -> torch.Tensor:
    """Scores in (0, 1), same shape, of raw logits; `score` is one of `SCORES`."""
    return logits_TE.sigmoid() if score == "sigmoid" else logits_TE.softmax(dim=-1)


def top_k_routing(logits_TE: torch.Tensor, k: int, normalize: bool = True) -> Routes:
    """The k most probable experts of each token (Shazeer et al. 2017, Lepikhin et al. 2020); models do not call this.

    Their routers choose and weigh in two steps (`moe_hf.layers.ffn.routers`). This is for users of bare logits, and the
    reference of the Triton kernel.

    With `normalize` softmax-then-top-k and top-k-then-softmax (Mixtral, GPT-OSS) are one function: a softmax over
    the chosen logits is the whole softmax, rescaled.

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


def routing_weights(
    score_TE: torch.Tensor, expert_TK: torch.Tensor, normalize: bool, may_be_empty: bool = True
) -> torch.Tensor:
    """The scores of the chosen experts, (T, K); 0 in empty slots.

    Args:
        score_TE: non-negative scores.
        expert_TK: chosen experts; E marks an empty slot.
        normalize: scale each token's weights to sum to 1, where it has any expert at all.
        may_be_empty: whether some slots may be; where none is, False saves looking.
    """
    if may_be_empty:
        empty_TK = expert_TK >= score_TE.shape[-1]
        # The id E is out of bounds for gather; what stands at 0 instead goes out again, its gradient too.
        weight_TK = score_TE.gather(-1, expert_TK.masked_fill(empty_TK, 0)).masked_fill(empty_TK, 0.0)
    else:
        weight_TK = score_TE.gather(-1, expert_TK)
    if normalize:
        weight_TK = weight_TK / weight_TK.sum(dim=-1, keepdim=True).clamp(min=torch.finfo(weight_TK.dtype).tiny)
    return weight_TK


def group_limited_top_k(score_TE: torch.Tensor, k: int, num_groups: int, groups_per_token: int) -> torch.Tensor:
    """The k best experts of each token within its best groups of experts (DeepSeek-AI 2024, V3, section 2.1.2).

    A group of neighbouring experts counts as much as its two best ones together.

    Args:
        score_TE: scores to choose by.
        k: experts per token.
        num_groups: divides E.
        groups_per_token: groups that a token may draw from; together they hold at least k experts.

    Returns:
        (T, K) indices.
    """
    if num_groups > 1:
        score_TGM = score_TE.unflatten(-1, (num_groups, -1))
        group_TG = score_TGM.topk(min(2, score_TGM.shape[-1]), dim=-1).values.sum(dim=-1)
        allowed_TG = torch.zeros_like(group_TG, dtype=torch.bool)
        allowed_TG.scatter_(-1, group_TG.topk(groups_per_token, dim=-1).indices, True)
        # Not 0: with a correction bias scores can be negative, and then a forbidden expert could win.
        score_TE = score_TGM.masked_fill(~allowed_TG[..., None], float("-inf")).flatten(-2)
    return score_TE.topk(k, dim=-1).indices


def best_tokens(
    score_TE: torch.Tensor, tokens_per_expert: int | torch.Tensor, mask_T: torch.Tensor | None = None
) -> torch.Tensor:
    """Expert choice: whether each token is among the best of each expert, (T, E) bool (Zhou et al. 2022).

    Args:
        score_TE: scores to choose by.
        tokens_per_expert: how many tokens each expert takes, if there are so many; a tensor is not waited for.
        mask_T: False at padding, which no expert takes.
    """
    order_TE = _without_padding(score_TE, mask_T).argsort(dim=0, descending=True, stable=True)
    # Ranks, not topk, which would have to know the number on the host.
    rank_TE = order_TE.argsort(dim=0)
    chosen_TE = rank_TE < tokens_per_expert
    return chosen_TE if mask_T is None else chosen_TE & mask_T[:, None]


def nth_best_score(score_TE: torch.Tensor, n: int | torch.Tensor, mask_T: torch.Tensor | None = None) -> torch.Tensor:
    """The n-th largest score of each expert over the tokens, (E,): what a token must reach to be among its n best.

    Args:
        score_TE: scores, non-negative.
        n: at least 1; of fewer tokens the last one counts, of none 0. A tensor is not waited for.
        mask_T: False at padding, which does not count.
    """
    if score_TE.shape[0] == 0:
        return score_TE.new_zeros(score_TE.shape[-1])
    num_real = score_TE.shape[0] if mask_T is None else mask_T.sum()
    last = torch.as_tensor(n, device=score_TE.device).clamp(max=num_real).long() - 1
    sorted_TE = _without_padding(score_TE, mask_T).sort(dim=0, descending=True).values
    # The index stays a tensor, so that nobody waits for it; -inf, where no token is real, becomes 0,
    # as does any negative score: shares and sigmoids have none.
    return sorted_TE.index_select(0, last.clamp(min=0).view(1))[0].clamp(min=0)


def _without_padding(score_TE: torch.Tensor, mask_T: torch.Tensor | None) -> torch.Tensor:
    return score_TE if mask_T is None else score_TE.masked_fill(~mask_T[:, None], float("-inf"))


def slots_of(chosen_TE: torch.Tensor) -> torch.Tensor:
    """Any number of experts per token as (T, E) slots: the expert's own id where it is chosen, else the empty id E.

    >>> slots_of(torch.tensor([[True, False, True]]))
    tensor([[0, 3, 2]])
    """
    num_experts = chosen_TE.shape[-1]
    expert_E = torch.arange(num_experts, device=chosen_TE.device)
    return torch.where(chosen_TE, expert_E, num_experts)


def balanced_assignment(num_tokens: int, k: int, num_experts: int, device: torch.device | None = None) -> torch.Tensor:
    """Experts (T, K) dealt out in turn, so that all get the same number of slots, give or take one; for benchmarks."""
    return (torch.arange(num_tokens * k, device=device) % num_experts).view(num_tokens, k)
