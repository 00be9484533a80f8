"""The step between router and experts that empties the slots beyond the experts' capacity.

Shapes: B batch, S positions, T = B * S tokens, E experts, K experts per token.
"""

from typing import NamedTuple

import torch
from transformers import Cache

from moe_hf.config.decoder import MoEDecoderConfig
from moe_hf.layers.caches.routed import require_routed_cache
from moe_hf.layers.inputs import PLAIN, LayerInputs
from moe_hf.layers.pickling import PicklesWithoutRecorder
from moe_hf.ops.routing.capacity import admit_by_position, admit_by_weight, capacity_of_rows, capacity_per_expert
from moe_hf.ops.routing.hashing import MOST_HASHED_EXPERTS


class Admitted(NamedTuple):
    """Weights and experts with the dropped slots emptied (weight 0, id E), and the dropped share of all slots."""

    weight_TK: torch.Tensor
    expert_TK: torch.Tensor
    dropped: torch.Tensor


class CapacityLimit(PicklesWithoutRecorder):
    """Drops what a full expert cannot take (Lepikhin et al. 2020, GShard), sequence by sequence.

    A module of its own, so that transformers' recorder sees the dropped share.
    """

    def __init__(self, config: MoEDecoderConfig, layer_idx: int) -> None:
        super().__init__()
        self.layer_idx = layer_idx
        self.num_experts = config.num_experts
        # Experts that pick their tokens take their share by themselves.
        picked = config.router_of_layer(layer_idx) == "expert_choice"
        self.factor = None if picked else config.router_capacity_factor
        self.eval_factor = None if picked else config.router_eval_capacity_factor
        self.drop_policy = config.router_drop_policy
        k, hashed = config.num_experts_per_tok, config.router_of_layer(layer_idx) == "hash"
        self.num_experts_per_tok = min(k, MOST_HASHED_EXPERTS) if hashed else k
        self.context_length = config.max_position_embeddings

    def forward(
        self,
        weight_TK: torch.Tensor,
        expert_TK: torch.Tensor,
        batch_size: int,
        inputs: LayerInputs = PLAIN,
    ) -> Admitted:
        """What the experts take.

        Args:
            weight_TK: routing weights.
            expert_TK: chosen experts.
            batch_size: B.
            inputs: of the layer; padding takes nobody's place and keeps its own slots, and the cache, a `RoutedCache`,
                counts over calls for a limit outside training.
        """
        factor, padding_mask = self.factor if self.training else self.eval_factor, inputs.padding_mask
        if factor is None:
            return Admitted(weight_TK, expert_TK, weight_TK.new_zeros(()))
        expert_BSK = expert_TK.view(batch_size, -1, expert_TK.shape[-1])
        padding_BSK = None
        if padding_mask is not None:
            padding_BSK = (padding_mask == 0)[..., None].expand_as(expert_BSK)
            expert_BSK = expert_BSK.masked_fill(padding_BSK, self.num_experts)
        capacity_B1 = self._capacity(expert_BSK, padding_mask, factor)
        # In training alone: elsewhere a later token could push out one that was generated already.
        if self.training and self.drop_policy == "weight":
            kept_BSK = admit_by_weight(expert_BSK, weight_TK.view_as(expert_BSK), self.num_experts, capacity_B1)
        else:
            kept_BSK = self._admit_in_order(expert_BSK, capacity_B1, inputs.cache)
        dropped_BSK = ~kept_BSK & (expert_BSK < self.num_experts)
        filled = (expert_BSK < self.num_experts).sum().clamp(min=1)
        dropped_TK = dropped_BSK.view_as(expert_TK)
        return Admitted(
            weight_TK.masked_fill(dropped_TK, 0.0),
            expert_TK.masked_fill(dropped_TK, self.num_experts),
            dropped_BSK.sum() / filled,
        )

    def _capacity(
        self, expert_BSK: torch.Tensor, padding_mask: torch.Tensor | None, factor: float
    ) -> int | torch.Tensor:
        share = (self.num_experts, self.num_experts_per_tok, factor)
        # How long a text will be is not known while it is generated: its share is that of a full context.
        if not self.training:
            return capacity_per_expert(self.context_length, *share)
        if padding_mask is None:
            return capacity_per_expert(expert_BSK.shape[1], *share)
        # A tensor, since each row has its own number of real tokens; none of them is waited for.
        return capacity_of_rows((padding_mask != 0).sum(dim=1), *share)[:, None]

    def _admit_in_order(
        self, expert_BSK: torch.Tensor, capacity: int | torch.Tensor, given: Cache | None
    ) -> torch.Tensor:
        if self.training or given is None:
            return admit_by_position(expert_BSK, self.num_experts, capacity).kept_BSK
        cache = require_routed_cache(given)
        offered_BE = cache.offered.get(self.layer_idx)
        kept_BSK, cache.offered[self.layer_idx] = admit_by_position(expert_BSK, self.num_experts, capacity, offered_BE)
        return kept_BSK
