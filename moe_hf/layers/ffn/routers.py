"""Routers: modules of their own, so that transformers' recorder sees the logits they return.

Shapes: T tokens, D width, E experts, K experts per token.
"""

from abc import ABC, abstractmethod

import torch
from torch import nn

from moe_hf.base.registry import Registry
from moe_hf.config.decoder import MoEDecoderConfig
from moe_hf.ops.routing import top_k_routing


class Router(nn.Module, ABC):
    """Chooses K experts for each token."""

    @abstractmethod
    def forward(
        self, x_TD: torch.Tensor, token_ids: torch.Tensor | None = None
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Raw logits (T, E) in float32, weights (T, K) in the dtype of `x_TD`, experts (T, K).

        Args:
            x_TD: tokens.
            token_ids: (T,) vocabulary ids; None when only embeddings were given.
        """


class TopKRouter(Router):
    """A linear score per expert, then softmax, top-k, renormalised (Shazeer et al. 2017; Lepikhin et al. 2020)."""

    def __init__(self, config: MoEDecoderConfig) -> None:
        super().__init__()
        self.num_experts_per_tok = config.num_experts_per_tok
        self.norm_topk_prob = config.norm_topk_prob
        self.jitter = config.router_jitter_noise
        self.weight = nn.Parameter(torch.empty(config.num_experts, config.hidden_size))

    def forward(
        self, x_TD: torch.Tensor, token_ids: torch.Tensor | None = None
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """As `Router.forward`; `token_ids` is not looked at."""
        score_input = x_TD.float()
        if self.training and self.jitter > 0:
            # Only the router sees the jitter; the experts get the clean tokens.
            score_input = score_input * torch.empty_like(score_input).uniform_(1 - self.jitter, 1 + self.jitter)
        # Scores stay in float32 even under autocast: in half precision near-ties flip experts.
        with torch.autocast(device_type=x_TD.device.type, enabled=False):
            logits_TE = nn.functional.linear(score_input, self.weight.float())
        weight_TK, expert_TK = top_k_routing(logits_TE, self.num_experts_per_tok, self.norm_topk_prob)
        return logits_TE, weight_TK.to(x_TD.dtype), expert_TK


ROUTERS: Registry[type[TopKRouter]] = Registry("router_type", {"top_k": TopKRouter})
