"""How evenly experts are used, in numbers that can be told apart from chance.

Shapes: T tokens, E experts, K experts per token; N = T * K slots. The expert id E marks an empty slot.
"""

import math
from typing import NamedTuple

import torch

from moe_hf.base.errors import ConfigError

Routing = tuple[torch.Tensor, torch.Tensor, torch.Tensor]
"""What a router returns: raw logits (T, E), weights (T, K), experts (T, K)."""


class LoadStatistics(NamedTuple):
    """What the loads of E experts say.

    Attributes:
        num_slots: slots that were counted, N.
        relative_std: standard deviation of the loads over their mean; 0 where all are equal.
        sampling_floor: the relative_std of perfectly uniform random routing, as a root mean square: sqrt((E - 1) / N)
            for slots drawn one by one, sqrt((E - K) / N) where each token draws K different experts.
        p_value: of a chi-square test: how often uniform random routing is at least as uneven, in [0, 1]. Tokens of a
            text are not independent, so on real data it is small even for a good router.
        max_over_mean: load of the busiest expert over the mean, 1 to E.
        entropy: of the loads, over its largest possible value, 0 (one expert) to 1 (even).
        dead_experts: experts without a token.
    """

    num_slots: int
    relative_std: float
    sampling_floor: float
    p_value: float
    max_over_mean: float
    entropy: float
    dead_experts: int


def load_statistics(count_E: torch.Tensor, k: int = 1) -> LoadStatistics:
    """The statistics of slots per expert.

    Args:
        count_E: slots of each expert, non-negative integers of any dtype.
        k: how many different experts each token was given, which makes the counts more even than independent slots
            are; 1 takes the slots to be independent. Floor and p-value depend on it.

    Raises:
        ConfigError: `k` is not in [1, E].

    >>> load_statistics(torch.tensor([30, 10])).relative_std
    0.5
    """
    count_E = count_E.double().cpu()
    num_experts, num_slots = len(count_E), int(count_E.sum())
    if not 1 <= k <= num_experts:
        raise ConfigError(f"k={k} different experts per token are impossible with {num_experts} experts; give 1 to E")
    if num_slots == 0:
        return LoadStatistics(0, 0.0, 0.0, 1.0, 0.0, 0.0, num_experts)
    mean = num_slots / num_experts
    entropy = torch.special.entr(count_E / num_slots).sum().item()
    return LoadStatistics(
        num_slots=num_slots,
        relative_std=count_E.std(correction=0).item() / mean,
        sampling_floor=math.sqrt((num_experts - k) / num_slots),
        p_value=_chi_square_p(count_E, k),
        max_over_mean=count_E.max().item() / mean,
        entropy=entropy / math.log(num_experts) if num_experts > 1 else 1.0,
        dead_experts=int((count_E == 0).sum()),
    )


def _chi_square_p(count_E: torch.Tensor, k: int) -> float:
    freedom = len(count_E) - 1
    if k == len(count_E):
        return 1.0
    mean = count_E.mean()
    # K different experts per token shrink every variance and covariance of the counts by the same factor.
    chi_square = ((count_E - mean).square() / mean).sum() * freedom / (len(count_E) - k)
    # The upper tail of the chi-square distribution is a regularised incomplete gamma function.
    return torch.special.gammaincc(torch.tensor(freedom / 2).double(), chi_square / 2).item()


def load_balance_std(assign: torch.Tensor | Routing, num_experts: int | None = None) -> float:
    """Standard deviation of the experts' loads over their mean; see `LoadStatistics.sampling_floor` for what to expect.

    Args:
        assign: chosen experts in [0, E], any shape; or all that a router returns.
        num_experts: E; may be left out where `assign` is what a router returns.

    Raises:
        ConfigError: `num_experts` is needed and missing, or too small for `assign`.

    >>> load_balance_std(torch.tensor([[0, 1], [2, 3]]), num_experts=4)
    0.0
    """
    return load_statistics(slots_per_expert(assign, num_experts)).relative_std


def expert_utilization(assign: torch.Tensor | Routing, num_experts: int | None = None) -> torch.Tensor:
    """Share of the slots that each expert got, (E,) float32; sums to 1 where any slot is filled.

    Args:
        assign, num_experts: as in `load_balance_std`.

    Raises:
        ConfigError: as in `load_balance_std`.

    >>> expert_utilization(torch.tensor([[0, 1], [0, 2]]), num_experts=4)
    tensor([0.5000, 0.2500, 0.2500, 0.0000])
    """
    count_E = slots_per_expert(assign, num_experts)
    return (count_E / count_E.sum().clamp(min=1)).float()


def slots_per_expert(assign: torch.Tensor | Routing, num_experts: int | None = None) -> torch.Tensor:
    """Slots that each expert got, (E,) int64; empty slots count for nobody.

    Args:
        assign, num_experts: as in `load_balance_std`.

    Raises:
        ConfigError: as in `load_balance_std`.
    """
    if not isinstance(assign, torch.Tensor):
        logits_TE, _, assign = assign
        num_experts = logits_TE.shape[-1] if num_experts is None else num_experts
    if num_experts is None:
        raise ConfigError(
            f"num_experts is missing: a tensor {tuple(assign.shape)} of chosen experts does not say how many there "
            "are; give it as the second argument, or pass what the router returned"
        )
    count = torch.bincount(assign.flatten(), minlength=num_experts + 1)
    if len(count) > num_experts + 1:
        raise ConfigError(
            f"assign holds expert {len(count) - 1}, but with num_experts={num_experts} ids go from 0 to "
            f"{num_experts - 1}, and {num_experts} marks an empty slot"
        )
    return count[:num_experts]
