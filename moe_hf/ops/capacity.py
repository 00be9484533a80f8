"""Limits how many tokens of a sequence each expert takes, and empties the slots beyond.

Shapes: B batch, S positions, E experts, K experts per token.
"""

import math
from typing import NamedTuple

import torch

from moe_hf.base.errors import ConfigError

DROP_POLICIES = ("position", "weight")
"""Who stays when an expert is full: whoever came first in the sequence, or whom the router weighs most."""


class Admission(NamedTuple):
    """Which slots stay, (B, S, K) bool, and how many of each sequence's each expert was offered so far, (B, E)."""

    kept_BSK: torch.Tensor
    offered_BE: torch.Tensor


def capacity_per_expert(num_tokens: int, num_experts: int, k: int, factor: float) -> int:
    """Token slots that each expert offers to a sequence: `factor` times its fair share, rounded up.

    Raises:
        ConfigError: `factor` is not positive.

    >>> capacity_per_expert(num_tokens=512, num_experts=8, k=2, factor=1.25)
    160
    """
    if factor <= 0:
        raise ConfigError(f"router_capacity_factor must be > 0, got {factor}; 1.0 to 2.0 is usual, None drops nothing")
    return math.ceil(factor * num_tokens * k / num_experts)


def admit_by_position(
    expert_BSK: torch.Tensor, num_experts: int, capacity: int, offered_BE: torch.Tensor | None = None
) -> Admission:
    """The first `capacity` slots of each expert in each sequence (Lepikhin et al. 2020, GShard; per sequence here).

    Whether a slot stays depends on earlier tokens alone, so a sequence that comes in pieces, each with the
    `offered_BE` of the pieces before, is treated as one that comes whole.

    Args:
        expert_BSK: chosen experts; E marks a slot that is empty already.
        num_experts: E.
        capacity: slots that an expert offers to a sequence.
        offered_BE: slots of earlier pieces; None for the first.
    """
    flat_BN = expert_BSK.flatten(1)
    slot_BNE = torch.nn.functional.one_hot(flat_BN, num_experts + 1)[..., :num_experts]
    if offered_BE is None:
        offered_BE = slot_BNE.new_zeros(len(expert_BSK), num_experts)
    rank_BNE = slot_BNE.cumsum(dim=1) + offered_BE[:, None]
    rank_BN = (rank_BNE * slot_BNE).sum(dim=-1)
    kept_BN = (rank_BN <= capacity) & (flat_BN < num_experts)
    return Admission(kept_BN.view_as(expert_BSK), offered_BE + slot_BNE.sum(dim=1))


def admit_by_weight(
    expert_BSK: torch.Tensor, weight_BSK: torch.Tensor, num_experts: int, capacity: int
) -> torch.Tensor:
    """The `capacity` slots of each expert in each sequence that weigh most, (B, S, K) bool (Riquelme et al. 2021).

    A later token can push an earlier one out, so this is for training, not for generation.
    """
    flat_BN = expert_BSK.flatten(1)
    order_BN = weight_BSK.detach().flatten(1).argsort(dim=1, descending=True, stable=True)
    admitted = admit_by_position(flat_BN.gather(1, order_BN)[..., None], num_experts, capacity)
    kept_BN = torch.zeros_like(flat_BN, dtype=torch.bool).scatter(1, order_BN, admitted.kept_BSK[..., 0])
    return kept_BN.view_as(expert_BSK)
