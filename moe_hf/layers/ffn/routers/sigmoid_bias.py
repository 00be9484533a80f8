"""DeepSeek-V3's router: sigmoid scores, and a bias per expert that balances the choice without a loss.

Shapes: T tokens, E experts, K experts per token.
"""

from typing import Any, ClassVar

import torch
from transformers.utils import logging

from moe_hf.config.decoder import MoEDecoderConfig
from moe_hf.layers.ffn.routers.base import LoadLearner
from moe_hf.ops.routing.balance import expert_counts
from moe_hf.ops.routing.routing import group_limited_top_k, router_scores, routing_weights

logger = logging.get_logger(__name__)


class SigmoidBiasRouter(LoadLearner):
    """Each expert scores a token by a sigmoid; a correction bias enters the choice but not the weights.

    After each optimizer step the bias of an expert goes down by a fixed step if it got more than its share, else up
    (Wang et al. 2024, 2408.15664; DeepSeek-AI 2024, V3, section 2.1.2).

    Args:
        dim, num_experts, k, normalize, jitter: as in `LearnedRouter`.
        num_groups: groups of neighbouring experts, 1 for none.
        groups_per_token: groups that a token may draw from.
        scale: factor of all weights.
        update_speed: the bias's step.
    """

    score: ClassVar[str] = "sigmoid"
    state_name: ClassVar[str] = "e_score_correction_bias"

    def __init__(
        self,
        dim: int,
        num_experts: int,
        k: int,
        normalize: bool = True,
        jitter: float = 0.0,
        num_groups: int = 1,
        groups_per_token: int = 1,
        scale: float = 1.0,
        update_speed: float = 1e-3,
    ) -> None:
        super().__init__(dim, num_experts, k, normalize, jitter)
        self.num_groups = num_groups
        self.groups_per_token = groups_per_token
        self.scale = scale
        self.update_speed = update_speed
        self.e_score_correction_bias: torch.Tensor
        self.register_buffer("e_score_correction_bias", torch.zeros(num_experts, dtype=torch.float32))

    @classmethod
    def options(cls, config: MoEDecoderConfig) -> dict[str, Any]:
        """As in LearnedRouter, with groups, scale and the speed of the bias."""
        if config.num_experts_per_tok == 1 and config.num_experts > 1:
            logger.warning_once(
                "sigmoid_bias with num_experts_per_tok=1: normalised, the weight is always 1 and teaches the router "
                "nothing, else it shuts experts off; set num_experts_per_tok to 2 or more, with norm_topk_prob=True"
            )
        return {
            **super().options(config),
            "num_groups": config.router_num_groups,
            "groups_per_token": config.router_groups_per_tok,
            "scale": config.router_scale,
            "update_speed": config.router_bias_update_speed,
        }

    def choose(self, logits_TE: torch.Tensor, mask_T: torch.Tensor | None) -> torch.Tensor:
        """The k best experts by score plus bias, within the best groups."""
        score_TE = router_scores(logits_TE, self.score) + self.e_score_correction_bias.float()
        return group_limited_top_k(score_TE, self.num_experts_per_tok, self.num_groups, self.groups_per_token)

    def weigh(self, logits_TE: torch.Tensor, expert_TK: torch.Tensor) -> torch.Tensor:
        """Weights (T, K) from the scores alone, scaled."""
        return self.scale * routing_weights(router_scores(logits_TE, self.score), expert_TK, self.normalize)

    def observe(self, logits_TE: torch.Tensor, expert_TK: torch.Tensor, mask_T: torch.Tensor | None) -> torch.Tensor:
        """Slots that each expert got, (E,)."""
        return expert_counts(expert_TK, self.num_experts, None if mask_T is None else mask_T.float())

    @torch.no_grad()
    def adjust(self, observed_E: torch.Tensor, num_forwards: int) -> None:
        """One step of the bias towards an even load; its mean stays where it was."""
        count_E = observed_E.to(self.e_score_correction_bias)
        step_E = (count_E.mean() - count_E).sign()
        # A choice sees only differences of biases: without the mean they cannot drift away together.
        self.e_score_correction_bias += self.update_speed * (step_E - step_E.mean())
