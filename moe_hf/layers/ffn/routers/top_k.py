"""Softmax routers: the k most probable experts, and Switch's single one.

Shapes: T tokens, E experts, K experts per token.
"""

from typing import Self

import torch
from transformers.utils import logging

from moe_hf.config.decoder import MoEDecoderConfig
from moe_hf.layers.ffn.routers.base import LearnedRouter

logger = logging.get_logger(__name__)


class TopKRouter(LearnedRouter):
    """A linear score per expert, softmax, top-k (Shazeer et al. 2017; Lepikhin et al. 2020).

    Normalised weights are the same whether softmax comes before top-k or after it, as in Mixtral and GPT-OSS.
    """

    @classmethod
    def from_config(cls, config: MoEDecoderConfig) -> Self:
        """The router of one sparse layer of a model."""
        router = super().from_config(config)
        if router.normalize and router.num_experts_per_tok == 1 and router.num_experts > 1:
            logger.warning_once(
                "num_experts_per_tok=1 with norm_topk_prob=True: the only weight is always 1, so the task teaches the "
                'router nothing; set norm_topk_prob=False, or router_type="switch"'
            )
        return router

    def choose(self, logits_TE: torch.Tensor, mask_T: torch.Tensor | None) -> torch.Tensor:
        """The k experts with the largest logits."""
        return logits_TE.topk(self.num_experts_per_tok, dim=-1).indices


class SwitchRouter(TopKRouter):
    """Weights are the probabilities themselves, so that even a single expert's teaches the router (Fedus et al. 2021).

    Args:
        dim: width D of the tokens; None takes that of the first tokens it is given, before which it has no weights.
        num_experts: E.
        k: experts per token; Switch's own is 1.
        normalize, jitter: as in `LearnedRouter`.
    """

    def __init__(
        self,
        dim: int | None = None,
        num_experts: int = 8,
        k: int = 1,
        normalize: bool = False,
        jitter: float = 0.0,
    ) -> None:
        # A single normalised weight is always 1 and has no gradient.
        super().__init__(dim, num_experts, k, normalize=normalize and k > 1, jitter=jitter)
