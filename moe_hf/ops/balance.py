"""Losses that keep a router's experts evenly used and its logits small.

Shapes: T tokens, E experts, K experts per token, L sparse layers.
"""

from collections.abc import Sequence

import torch


def expert_load(expert_TK: torch.Tensor, num_experts: int, mask_T: torch.Tensor | None = None) -> torch.Tensor:
    """Share of the routed slots that each expert receives; sums to 1.

    Args:
        expert_TK: chosen experts.
        num_experts: E.
        mask_T: nonzero where a token counts; None counts all.

    >>> expert_load(torch.tensor([[0, 1], [0, 2]]), num_experts=4)
    tensor([0.5000, 0.2500, 0.2500, 0.0000])
    """
    slot_TK = torch.ones_like(expert_TK, dtype=torch.float32)
    if mask_T is not None:
        slot_TK = slot_TK * mask_T[:, None]
    count_E = slot_TK.new_zeros(num_experts).index_add(0, expert_TK.flatten(), slot_TK.flatten())
    return count_E / count_E.sum().clamp(min=1)


def load_balance_loss(
    router_logits: Sequence[torch.Tensor], k: int, attention_mask: torch.Tensor | None = None
) -> torch.Tensor:
    """The load-balance loss, averaged over layers; 1.0 is perfect balance whatever E and k (Fedus et al. 2021, eq. 4).

    Per layer it is E * sum over experts of (share of routed slots) * (mean router probability). Layers are averaged
    only afterwards: pooled counts let one layer's collapse cancel another's.

    Args:
        router_logits: one raw (T, E) tensor per sparse layer.
        k: experts per token.
        attention_mask: (B, S) with B * S = T, nonzero at tokens that count; None counts all.

    Returns:
        scalar, float32, in [0, E]; gradient flows through the probabilities.
    """
    mask_T = _flat_mask(attention_mask, router_logits[0])
    losses = []
    for logits_TE in router_logits:
        prob_TE = logits_TE.float().softmax(dim=-1)
        load_E = expert_load(prob_TE.topk(k, dim=-1).indices, prob_TE.shape[-1], mask_T)
        losses.append(prob_TE.shape[-1] * (load_E * _masked_mean(prob_TE, mask_T)).sum())
    return torch.stack([loss.to(losses[0].device) for loss in losses]).mean()


def router_z_loss(router_logits: Sequence[torch.Tensor], attention_mask: torch.Tensor | None = None) -> torch.Tensor:
    """Mean squared log-partition of the router, averaged over layers (Zoph et al. 2022, ST-MoE, eq. 5).

    Args:
        router_logits: one raw (T, E) tensor per sparse layer.
        attention_mask: (B, S) with B * S = T, nonzero at tokens that count; None counts all.

    Returns:
        scalar, float32, >= 0.
    """
    mask_T = _flat_mask(attention_mask, router_logits[0])
    losses = [_masked_mean(logits_TE.float().logsumexp(dim=-1).square(), mask_T) for logits_TE in router_logits]
    return torch.stack([loss.to(losses[0].device) for loss in losses]).mean()


def _flat_mask(attention_mask: torch.Tensor | None, like: torch.Tensor) -> torch.Tensor | None:
    if attention_mask is None:
        return None
    return (attention_mask.reshape(-1) != 0).to(device=like.device, dtype=torch.float32)


def _masked_mean(value: torch.Tensor, mask_T: torch.Tensor | None) -> torch.Tensor:
    if mask_T is None:
        return value.mean(dim=0)
    mask_T = mask_T.to(value.device)
    return torch.tensordot(mask_T, value, dims=([0], [0])) / mask_T.sum().clamp(min=1)
