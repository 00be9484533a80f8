"""The sparse feed-forward network: a router, experts, and an optional expert that every token visits.

Shapes: B batch, S positions, T = B * S tokens, D width, K experts per token.
"""

import torch
from torch import nn

from moe_hf.config.decoder import MoEDecoderConfig
from moe_hf.layers.experts.experts import Experts
from moe_hf.layers.ffn.base import FFN
from moe_hf.layers.ffn.capacity import CapacityLimit
from moe_hf.layers.ffn.dense import DenseFFN
from moe_hf.layers.ffn.routers import ROUTERS
from moe_hf.layers.inputs import PLAIN, LayerInputs


class SparseFFN(FFN):
    """A mixture of experts (Shazeer et al. 2017); `gate` is what transformers calls the router."""

    def __init__(self, config: MoEDecoderConfig, layer_idx: int = 0) -> None:
        super().__init__()
        self.gate = ROUTERS[config.router_of_layer(layer_idx)].from_config(config)
        limited = bool(config.router_capacity_factor or config.router_eval_capacity_factor)
        self.capacity = CapacityLimit(config, layer_idx) if limited else None
        # Benchmarks put other experts here.
        self.experts: nn.Module = Experts.from_config(config, limited or self.gate.leaves_slots_empty)
        shared = config.shared_expert_intermediate_size
        self.shared_expert = DenseFFN(config, width=shared) if shared else None
        gated = shared and config.shared_expert_gate
        self.shared_expert_gate = nn.Linear(config.hidden_size, 1, bias=False) if gated else None

    def forward(self, x_BSD: torch.Tensor, inputs: LayerInputs = PLAIN) -> torch.Tensor:
        """The transformed tokens, same shape."""
        x_TD = x_BSD.reshape(-1, x_BSD.shape[-1])
        _, weight_TK, expert_TK = self.gate(x_TD, inputs.token_ids, inputs.padding_mask)
        if self.capacity is not None:
            weight_TK, expert_TK, _ = self.capacity(weight_TK, expert_TK, x_BSD.shape[0], inputs)
        # The experts take ids first, then weights, as transformers calls its experts; routers give weights first.
        out_BSD = self.experts(x_TD, expert_TK, weight_TK).view_as(x_BSD)
        if self.shared_expert is not None:
            shared_BSD = self.shared_expert(x_BSD)
            if self.shared_expert_gate is not None:
                shared_BSD = shared_BSD * self.shared_expert_gate(x_BSD).sigmoid()
            out_BSD = out_BSD + shared_BSD
        return out_BSD
