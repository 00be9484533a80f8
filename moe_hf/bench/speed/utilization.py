"""How fresh routers spread tokens over experts, and what a capacity limit drops of it.

Shapes: T tokens, E experts, K experts per token.
"""

from collections.abc import Iterable
from typing import NamedTuple

import torch

from moe_hf.base.errors import ConfigError
from moe_hf.bench.harness.arms import Options
from moe_hf.bench.speed.configs import batch_shape
from moe_hf.bench.speed.router_case import draw_tokens, make_router
from moe_hf.bench.speed.sizes import Size
from moe_hf.layers.ffn.routers import ROUTERS
from moe_hf.ops.routing.capacity import admit_by_position, capacity_per_expert


class Utilization(NamedTuple):
    """One router's choice for T tokens: slots that each expert got and kept, and the share that was dropped.

    `k` is what was asked for; a switch router takes one expert all the same, a hash router at most two. `fair` is the
    mean number of slots per expert. The capacity is per sequence of the batch, as in a model.
    """

    router_type: str
    num_experts: int
    k: int
    capacity_factor: float | None
    offered: list[int]
    kept: list[int]
    fair: float
    dropped: float


def measure_utilization(sizes: Iterable[Size], options: Options) -> list[Utilization]:
    """Every router on normal tokens with Zipf's ids, for each distinct E, K and capacity factor of the sizes."""
    found: dict[tuple, Utilization] = {}
    for size in sizes:
        for name in ROUTERS:
            key = (size.num_experts, size.k, size.capacity_factor, name)
            if key in found:
                continue
            try:
                found[key] = _utilization(name, size, options)
            except ConfigError:
                # This kind cannot route this size, which the router case says in words.
                continue
    return list(found.values())


@torch.no_grad()
def _utilization(name: str, size: Size, options: Options) -> Utilization:
    x_TD, token_ids_T = draw_tokens(size, options)
    router = make_router(name, size, options).train()
    expert_TK = router(x_TD, token_ids_T).expert_TK.cpu()
    kept_TK = expert_TK < size.num_experts
    # Experts that pick their tokens take their share by themselves.
    if size.capacity_factor is not None and name != "expert_choice":
        batch, length = batch_shape(size)
        capacity = capacity_per_expert(length, size.num_experts, router.num_experts_per_tok, size.capacity_factor)
        expert_BSK = expert_TK.view(batch, length, -1)
        kept_TK = admit_by_position(expert_BSK, size.num_experts, capacity).kept_BSK.view_as(expert_TK)
    # The id E marks an empty slot.
    offered = expert_TK.flatten().bincount(minlength=size.num_experts + 1)[: size.num_experts]
    kept = expert_TK[kept_TK].bincount(minlength=size.num_experts)
    total = int(offered.sum())
    return Utilization(
        name,
        size.num_experts,
        size.k,
        size.capacity_factor,
        offered.tolist(),
        kept.tolist(),
        total / size.num_experts,
        1 - int(kept.sum()) / max(total, 1),
    )
