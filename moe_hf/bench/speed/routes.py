"""Draws which expert each token visits, seeded, balanced or not, so that routing is the same for every backend.

Shapes: T tokens, E experts, K experts per token.
"""

import torch

from moe_hf.bench.speed.sizes import Size
from moe_hf.ops.routing.capacity import admit_by_position, capacity_per_expert
from moe_hf.ops.routing.routing import Routes


def draw_routes(size: Size, generator: torch.Generator) -> Routes:
    """Weights that sum to 1 per token, in the dtype of `size`, and K different experts per token.

    Experts are drawn in proportion to (i + 1) ** -skew, so 0 is uniform; uniform draws are balanced on average only,
    as those of a balanced router are. With a capacity factor, slots beyond an expert's capacity get id E and weight 0.
    """
    shape = (size.tokens, size.num_experts)
    # The K largest of log p + Gumbel noise are K draws without replacement.
    noise_TE = -torch.empty(shape).exponential_(generator=generator).log()
    popularity_E = -size.skew * torch.arange(1, size.num_experts + 1).log()
    expert_TK = (noise_TE + popularity_E).topk(size.k, dim=-1).indices
    weight_TK = torch.rand(size.tokens, size.k, generator=generator).add(0.1)
    weight_TK = weight_TK / weight_TK.sum(dim=-1, keepdim=True)
    if size.capacity_factor is not None:
        capacity = capacity_per_expert(size.tokens, size.num_experts, size.k, size.capacity_factor)
        kept_TK = admit_by_position(expert_TK[None], size.num_experts, capacity).kept_BSK[0]
        expert_TK = expert_TK.masked_fill(~kept_TK, size.num_experts)
        weight_TK = weight_TK.masked_fill(~kept_TK, 0.0)
    return Routes(weight_TK.to(size.torch_dtype), expert_TK)
