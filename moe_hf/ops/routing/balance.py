"""Losses that keep a router's experts evenly used and its logits small.

Shapes: B batch, S positions, T = B * S tokens, E experts, K experts per token, L sparse layers. An expert id of E marks
an empty slot, which counts for nobody.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch

from moe_hf.ops.routing.routing import routing_weights


def divisor(count: Any) -> Any:
    """A count to divide a sum by, 1 where it is 0: what is summed over nothing is 0, not 0 / 0.

    The cross-entropy of heads, of label smoothing and of the Trainer divides by it as well as the losses below.

    >>> divisor(0), divisor(3), divisor(torch.tensor([0, 2]))
    (1, 3, tensor([1, 2]))
    """
    return count + (count == 0)


def expert_counts(expert_TK: torch.Tensor, num_experts: int, mask_T: torch.Tensor | None = None) -> torch.Tensor:
    """Slots that each expert receives, (E,) float32.

    Args:
        expert_TK: chosen experts.
        num_experts: E.
        mask_T: nonzero where a token counts; None counts all.
    """
    slot_TK = torch.ones_like(expert_TK, dtype=torch.float32)
    if mask_T is not None:
        slot_TK = slot_TK * mask_T[:, None]
    # One bin more takes the empty slots, and is cut off.
    return slot_TK.new_zeros(num_experts + 1).index_add(0, expert_TK.flatten(), slot_TK.flatten())[:num_experts]


def layer_balance_loss(
    prob_TE: torch.Tensor, count_E: torch.Tensor, mask_T: torch.Tensor | None = None
) -> torch.Tensor:
    """E * sum over experts of (share of slots) * (mean probability); 1.0 at balance (Fedus et al. 2021, eq. 4).

    Args:
        prob_TE: the router's probabilities; each row sums to 1.
        count_E: slots per expert. Those of all micro-batches and ranks make it the global-batch loss (Qiu et al.
            2025, 2501.11873), which lets a batch of one domain prefer some experts.
        mask_T: nonzero where a token counts; None counts all.

    Returns:
        scalar, float32; gradient flows through the probabilities.
    """
    load_E = count_E / count_E.sum().clamp(min=1)
    return prob_TE.shape[-1] * (load_E * _masked_mean(prob_TE, mask_T)).sum()


def sequence_balance_loss(
    prob_TE: torch.Tensor, expert_TK: torch.Tensor, batch_size: int, mask_T: torch.Tensor | None = None
) -> torch.Tensor:
    """The balance loss of each sequence by itself, averaged; 1.0 at balance (DeepSeek-AI 2024, V3, eq. 17-20).

    Args:
        prob_TE: probabilities; each row sums to 1.
        expert_TK: chosen experts.
        batch_size: B; the T tokens are B sequences of the same length.
        mask_T: nonzero where a token counts; None counts all. A sequence of nothing but padding does not count.
    """
    num_experts = prob_TE.shape[-1]
    mask_T = prob_TE.new_ones(prob_TE.shape[0]) if mask_T is None else mask_T.to(prob_TE.dtype)
    mask_BS = mask_T.view(batch_size, -1)
    prob_BE = (prob_TE * mask_T[:, None]).view(batch_size, -1, num_experts).sum(dim=1)
    # P_i, eq. 20.
    prob_BE = prob_BE / mask_BS.sum(dim=1, keepdim=True).clamp(min=1)
    slot_TK = mask_T[:, None].expand(expert_TK.shape)
    count_BE = prob_BE.new_zeros(batch_size, num_experts + 1)
    count_BE = count_BE.scatter_add(1, expert_TK.view(batch_size, -1), slot_TK.reshape(batch_size, -1))[:, :-1]
    # f_i, eq. 18, without its factor E, which stands before the sum.
    load_BE = count_BE / count_BE.sum(dim=1, keepdim=True).clamp(min=1)
    real_B = (mask_BS.sum(dim=1) > 0).to(prob_BE.dtype)
    return num_experts * ((load_BE * prob_BE).sum(dim=-1) * real_B).sum() / real_B.sum().clamp(min=1)


def importance(weight_TK: torch.Tensor, expert_TK: torch.Tensor, num_experts: int) -> torch.Tensor:
    """Sum of the routing weights that each expert gets, (E,), with gradient (Shazeer et al. 2017, eq. 6)."""
    total = weight_TK.new_zeros(num_experts + 1).index_add(0, expert_TK.flatten(), weight_TK.flatten())
    return total[:num_experts]


def cv_squared(value_E: torch.Tensor) -> torch.Tensor:
    """Squared coefficient of variation, variance / mean^2; 0.0 where all are equal (Shazeer et al. 2017, eq. 7).

    >>> cv_squared(torch.tensor([1.0, 3.0]))
    tensor(0.2500)
    """
    # 0 where a batch is nothing but padding, hence the clamp.
    mean = value_E.mean()
    return (value_E - mean).square().mean() / mean.square().clamp(min=torch.finfo(value_E.dtype).tiny)


class Routed(NamedTuple):
    """What one router did with the tokens of a forward.

    Attributes:
        prob_TE: probabilities; each row sums to 1.
        expert_TK: chosen experts.
        batch_size: B.
        mask_T: nonzero where a token counts; None counts all.
        pooled: from this forward's counts (E,) to those of the whole optimizer step, over micro-batches and ranks.
    """

    prob_TE: torch.Tensor
    expert_TK: torch.Tensor
    batch_size: int
    mask_T: torch.Tensor | None
    pooled: Callable[[torch.Tensor], torch.Tensor]


def _count(routed: Routed) -> torch.Tensor:
    """Slots that each expert received in this forward."""
    return expert_counts(routed.expert_TK, routed.prob_TE.shape[-1], routed.mask_T)


def _importance(routed: Routed) -> torch.Tensor:
    """What the chosen experts weigh in all, before the weights of a token are made to sum to 1."""
    weight_TK = routing_weights(routed.prob_TE, routed.expert_TK, normalize=False)
    if routed.mask_T is not None:
        weight_TK = weight_TK * routed.mask_T[:, None]
    return importance(weight_TK, routed.expert_TK, routed.prob_TE.shape[-1])


# By the words of `router_balance_loss`.
BALANCE_LOSSES: dict[str, Callable[[Routed], torch.Tensor]] = {
    "batch": lambda routed: layer_balance_loss(routed.prob_TE, _count(routed), routed.mask_T),
    "global_batch": lambda routed: layer_balance_loss(routed.prob_TE, routed.pooled(_count(routed)), routed.mask_T),
    "sequence": lambda routed: sequence_balance_loss(*routed[:4]),
    "cv_squared": lambda routed: cv_squared(_importance(routed)),
}


def load_balance_loss(
    router_logits: Sequence[torch.Tensor], k: int, attention_mask: torch.Tensor | None = None
) -> torch.Tensor:
    """The balance loss of plain softmax top-k routers from their logits alone; no model calls it.

    Models know what was chosen and take their loss from `BALANCE_LOSSES`; this is for tests and for users of bare
    logits. The mean over layers is 1.0 at balance whatever E and k.

    Layers are averaged only afterwards: pooled counts let one layer's collapse cancel another's.

    Args:
        router_logits: one raw (T, E) tensor per sparse layer.
        k: experts per token.
        attention_mask: (B, S) with B * S = T, nonzero at tokens that count; None counts all.

    Returns:
        scalar, float32, in [0, E]; gradient flows through the probabilities.
    """
    mask_T = flat_mask(attention_mask, router_logits[0])
    losses = []
    for logits_TE in router_logits:
        prob_TE = logits_TE.float().softmax(dim=-1)
        count_E = expert_counts(prob_TE.topk(k, dim=-1).indices, prob_TE.shape[-1], mask_T)
        losses.append(layer_balance_loss(prob_TE, count_E, mask_T))
    return mean_over_layers(losses)


def router_z_loss(router_logits: Sequence[torch.Tensor], attention_mask: torch.Tensor | None = None) -> torch.Tensor:
    """Mean squared log-partition of the router, averaged over layers (Zoph et al. 2022, ST-MoE, eq. 5).

    Args:
        router_logits: one raw (T, E) tensor per sparse layer.
        attention_mask: (B, S) with B * S = T, nonzero at tokens that count; None counts all.

    Returns:
        scalar, float32, >= 0.
    """
    mask_T = flat_mask(attention_mask, router_logits[0])
    return mean_over_layers(
        [_masked_mean(logits_TE.float().logsumexp(dim=-1).square(), mask_T) for logits_TE in router_logits]
    )


def mean_over_layers(losses: Sequence[torch.Tensor]) -> torch.Tensor:
    """The mean of scalars that may lie on different devices, on the first one's."""
    return torch.stack([loss.to(losses[0].device) for loss in losses]).mean()


def flat_mask(attention_mask: torch.Tensor | None, like: torch.Tensor) -> torch.Tensor | None:
    """A (B, S) mask as (T,) float32 ones and zeros on the device of `like`."""
    if attention_mask is None:
        return None
    return (attention_mask.reshape(-1) != 0).to(device=like.device, dtype=torch.float32)


def _masked_mean(value: torch.Tensor, mask_T: torch.Tensor | None) -> torch.Tensor:
    if mask_T is None:
        return value.sum(dim=0) / divisor(len(value))
    mask_T = mask_T.to(value.device)
    return torch.tensordot(mask_T, value, dims=([0], [0])) / mask_T.sum().clamp(min=1)
