"""Routers in which experts pick tokens: by rank in a batch, or causally by a threshold.

Shapes: T tokens, E experts. Any number of experts may take a token, so K = E slots, most of them empty.
"""

from abc import abstractmethod
from typing import Any, ClassVar

import torch

from moe_hf.config.decoder import MoEDecoderConfig
from moe_hf.layers.ffn.routers.base import LoadLearner
from moe_hf.ops.routing.capacity import capacity_of_rows
from moe_hf.ops.routing.routing import best_tokens, nth_best_score, router_scores, slots_of


class _ThresholdKeeper(LoadLearner):
    """Keeps, for each expert, a moving average of the score that a token must reach to be among its best.

    While the averages are unknown (no `adjust` yet) a token takes its k best experts.

    Args:
        dim, num_experts, k, normalize, jitter: as in `LearnedRouter`; `k` is the mean number of experts per token.
        capacity_factor: each expert's share of tokens is this times k / E.
        decay: how much of the old average stays at each update, in [0, 1).
    """

    balanced_by_loss: ClassVar[bool] = False
    leaves_slots_empty: ClassVar[bool] = True
    state_name: ClassVar[str] = "score_threshold"
    # No score is negative.
    fresh_state: ClassVar[float] = -1.0

    def __init__(
        self,
        dim: int,
        num_experts: int,
        k: int,
        normalize: bool = False,
        jitter: float = 0.0,
        capacity_factor: float = 1.0,
        decay: float = 0.95,
    ) -> None:
        super().__init__(dim, num_experts, k, normalize, jitter)
        self.capacity_factor = capacity_factor
        self.decay = decay
        self.score_threshold: torch.Tensor
        self.register_buffer("score_threshold", torch.full((num_experts,), self.fresh_state, dtype=torch.float32))

    @classmethod
    def options(cls, config: MoEDecoderConfig) -> dict[str, Any]:
        """As in LearnedRouter, with the share of the tokens and the decay."""
        factor, decay = config.router_capacity_factor or 1.0, config.router_threshold_decay
        return {**super().options(config), "capacity_factor": factor, "decay": decay}

    def tokens_per_expert(self, num_tokens: torch.Tensor) -> torch.Tensor:
        """How many of `num_tokens` tokens each expert takes, at least 1; whole numbers, as a tensor."""
        share = capacity_of_rows(num_tokens, self.num_experts, self.num_experts_per_tok, self.capacity_factor)
        return share.clamp(min=1)

    def best_tokens(self, score_TE: torch.Tensor, mask_T: torch.Tensor | None) -> torch.Tensor:
        """Whether each token is in the share of each expert, (T, E) bool; padding is in none."""
        return best_tokens(score_TE.detach(), self.tokens_per_expert(_num_real(score_TE, mask_T)), mask_T)

    def above_threshold(self, score_TE: torch.Tensor) -> torch.Tensor:
        """Whether each expert takes each token, (T, E) bool, by that token alone."""
        k_best_TE = torch.zeros_like(score_TE, dtype=torch.bool)
        k_best_TE.scatter_(1, score_TE.topk(self.num_experts_per_tok, dim=-1).indices, True)
        threshold_E = self.score_threshold.float()
        # Both are worked out: to ask whether thresholds are known would be to wait for the device.
        return torch.where(threshold_E < 0, k_best_TE, score_TE >= threshold_E)

    def choose(self, logits_TE: torch.Tensor, mask_T: torch.Tensor | None) -> torch.Tensor:
        """(T, E) slots: each expert that takes the token, the others empty."""
        return slots_of(self.takes(router_scores(logits_TE, self.score), mask_T))

    @abstractmethod
    def takes(self, score_TE: torch.Tensor, mask_T: torch.Tensor | None) -> torch.Tensor:
        """Whether each expert takes each token, (T, E) bool."""

    @torch.no_grad()
    def observe(self, logits_TE: torch.Tensor, expert_TK: torch.Tensor, mask_T: torch.Tensor | None) -> torch.Tensor:
        """The score of each expert's last token of its share, (E,)."""
        score_TE = router_scores(logits_TE.float(), self.score)
        mask_T = None if mask_T is None else mask_T != 0
        return nth_best_score(score_TE, self.tokens_per_expert(_num_real(score_TE, mask_T)), mask_T)

    @torch.no_grad()
    def adjust(self, observed_E: torch.Tensor, num_forwards: int) -> None:
        """Move the averages towards the mean observation; the first one is taken as it is."""
        new_E = (observed_E / max(1, num_forwards)).to(self.score_threshold)
        moved_E = torch.lerp(new_E, self.score_threshold, self.decay)
        self.score_threshold.copy_(torch.where(self.score_threshold < 0, new_E, moved_E))


class ExpertChoiceRouter(_ThresholdKeeper):
    """In training each expert takes its best tokens of the batch: balanced by construction (Zhou et al. 2022).

    That looks at later tokens, which a generating model does not have. In eval the experts take the tokens that reach
    their threshold instead, which is the causal form (Expert-Threshold routing).
    """

    score: ClassVar[str] = "softmax"

    def takes(self, score_TE: torch.Tensor, mask_T: torch.Tensor | None) -> torch.Tensor:
        """By rank in training, by threshold in eval."""
        if not self.training:
            return self.above_threshold(score_TE)
        return self.best_tokens(score_TE, mask_T)


class ExpertThresholdRouter(_ThresholdKeeper):
    """Each expert takes every token whose score reaches its threshold (2603.11535): causal, and no balance loss.

    Until the thresholds are known, training takes each expert's best tokens of the batch.
    """

    score: ClassVar[str] = "sigmoid"

    def takes(self, score_TE: torch.Tensor, mask_T: torch.Tensor | None) -> torch.Tensor:
        """By threshold; before the first update, in training, by rank."""
        causal_TE = self.above_threshold(score_TE)
        if not self.training:
            return causal_TE
        return torch.where(self.score_threshold < 0, self.best_tokens(score_TE, mask_T), causal_TE)

    @classmethod
    def options(cls, config: MoEDecoderConfig) -> dict[str, Any]:
        """As in LearnedRouter; `router_capacity_factor` limits its experts, not their share."""
        return {**super().options(config), "capacity_factor": 1.0}


def _num_real(score_TE: torch.Tensor, mask_T: torch.Tensor | None) -> torch.Tensor:
    return score_TE.new_tensor(score_TE.shape[0]) if mask_T is None else mask_T.sum().to(score_TE.dtype)
