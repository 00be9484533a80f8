"""The sparse feed-forward network: a router, experts, and an optional expert that every token visits.

Shapes: B batch, S positions, T = B * S tokens, D width, K experts per token.
"""

import torch

from moe_hf.config.decoder import MoEDecoderConfig
from moe_hf.layers.ffn.base import FFN
from moe_hf.layers.ffn.dense import DenseFFN
from moe_hf.layers.ffn.experts import Experts
from moe_hf.layers.ffn.routers import ROUTERS


class SparseFFN(FFN):
    """A mixture of experts (Shazeer et al. 2017); `gate` is what transformers calls the router."""

    def __init__(self, config: MoEDecoderConfig) -> None:
        super().__init__()
        self.gate = ROUTERS[config.router_type](config)
        self.experts = Experts(config)
        shared = config.shared_expert_intermediate_size
        self.shared_expert = DenseFFN(config, width=shared) if shared else None

    def forward(self, x_BSD: torch.Tensor, token_ids: torch.Tensor | None = None) -> torch.Tensor:
        """The transformed tokens, same shape."""
        x_TD = x_BSD.reshape(-1, x_BSD.shape[-1])
        _, weight_TK, expert_TK = self.gate(x_TD, None if token_ids is None else token_ids.reshape(-1))
        out_BSD = self.experts(x_TD, expert_TK, weight_TK).view_as(x_BSD)
        if self.shared_expert is not None:
            out_BSD = out_BSD + self.shared_expert(x_BSD)
        return out_BSD
