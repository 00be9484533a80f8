"""Limits how many tokens of a sequence each expert takes, and empties the slots beyond.

Shapes: B batch, S positions, E experts, K experts per token.
"""

import math
from typing import NamedTuple

import torch

from moe_hf.base.errors import ConfigError


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


def capacity_of_rows(num_tokens_B: torch.Tensor, num_experts: int, k: int, factor: float) -> torch.Tensor:
    """`capacity_per_expert` for numbers of tokens of any shape, as float32, without waiting for the device."""
    # A little less, lest rounding in float32 lifts a whole number to the next one.
    return (factor * k / num_experts * num_tokens_B.float() - 1e-4).ceil()


def admit_by_position(
    expert_BSK: torch.Tensor, num_experts: int, capacity: int | torch.Tensor, offered_BE: torch.Tensor | None = None
) -> Admission:
    """The first `capacity` slots of each expert in each sequence (Lepikhin et al. 2020, GShard; per sequence here).

    Whether a slot stays depends on earlier tokens alone, so a sequence that comes in pieces, each with the
    `offered_BE` of the pieces before, is treated as one that comes whole.

    Args:
        expert_BSK: chosen experts; E marks a slot that is empty already.
        num_experts: E.
        capacity: slots that an expert offers to a sequence; one number, or (B, 1).
        offered_BE: slots of earlier pieces; None for the first.
    """
    batch, num_bins = expert_BSK.shape[0], num_experts + 1
    flat_BN = expert_BSK.flatten(1)
    # One bin per sequence and expert: after a stable sort a slot's rank is its distance from the first of its bin.
    row_B1 = torch.arange(batch, device=flat_BN.device)[:, None]
    bin_M = (flat_BN + num_bins * row_B1).flatten()
    order_M = bin_M.argsort(stable=True)
    count_C = bin_M.new_zeros(batch * num_bins).scatter_add(0, bin_M, torch.ones_like(bin_M))
    first_C = count_C.cumsum(0) - count_C
    position_M = torch.arange(bin_M.shape[0], device=bin_M.device)
    rank_M = torch.empty_like(bin_M).scatter(0, order_M, position_M - first_C[bin_M[order_M]])
    if offered_BE is None:
        offered_BE = count_C.new_zeros(batch, num_experts)
    # Empty slots read the column that is added.
    rank_BN = rank_M.view_as(flat_BN) + torch.nn.functional.pad(offered_BE, (0, 1)).gather(1, flat_BN)
    kept_BN = (rank_BN < capacity) & (flat_BN < num_experts)
    # What was dropped counts too: a slot's rank is its place among all that asked.
    return Admission(kept_BN.view_as(expert_BSK), offered_BE + count_C.view(batch, num_bins)[:, :num_experts])


def admit_by_weight(
    expert_BSK: torch.Tensor, weight_BSK: torch.Tensor, num_experts: int, capacity: int | torch.Tensor
) -> torch.Tensor:
    """The `capacity` slots of each expert in each sequence that weigh most, (B, S, K) bool (Riquelme et al. 2021).

    A later token can push an earlier one out, so this is for training, not for generation.
    """
    flat_BN = expert_BSK.flatten(1)
    # In this order the first ones are the heaviest, so that the rule by position does the rest.
    order_BN = weight_BSK.detach().flatten(1).argsort(dim=1, descending=True, stable=True)
    admitted = admit_by_position(flat_BN.gather(1, order_BN)[..., None], num_experts, capacity)
    kept_BN = torch.zeros_like(flat_BN, dtype=torch.bool).scatter(1, order_BN, admitted.kept_BSK[..., 0])
    return kept_BN.view_as(expert_BSK)
