"""The stacked experts of one sparse layer, computed by whichever backend transformers has for the chosen name.

Shapes: T tokens, D width, E experts, K experts per token, F width of one expert.
"""

import torch
from torch import nn
from transformers.integrations.moe import use_experts_implementation

from moe_hf.config.decoder import MoEDecoderConfig
from moe_hf.layers.activations import activation


@use_experts_implementation(has_gate=False, has_bias=True)
class Experts(nn.Module):
    """E two-layer FFNs with biases, stored as stacks so that one grouped GEMM serves them all.

    The names of the parameters and of `act_fn` are those that transformers' backends read.
    """

    def __init__(self, config: MoEDecoderConfig) -> None:
        super().__init__()
        self.num_experts = config.num_experts
        width, inner = config.hidden_size, config.expert_width
        self.up_proj = nn.Parameter(torch.empty(self.num_experts, inner, width))
        self.up_proj_bias = nn.Parameter(torch.empty(self.num_experts, inner))
        self.down_proj = nn.Parameter(torch.empty(self.num_experts, width, inner))
        self.down_proj_bias = nn.Parameter(torch.empty(self.num_experts, width))
        self.act_fn = activation(config.hidden_act)

    def forward(self, x_TD: torch.Tensor, expert_TK: torch.Tensor, weight_TK: torch.Tensor) -> torch.Tensor:
        """The reference, "eager": for each expert, its tokens through its FFN, weighted and added up; (T, D).

        Ids equal to `num_experts` mark slots to skip, as expert parallelism and token dropping use them.
        """
        out_TD = torch.zeros_like(x_TD)
        for expert in expert_TK.unique().tolist():
            if expert >= self.num_experts:
                continue
            token, slot = torch.where(expert_TK == expert)
            hidden = self.act_fn(nn.functional.linear(x_TD[token], self.up_proj[expert], self.up_proj_bias[expert]))
            result = nn.functional.linear(hidden, self.down_proj[expert], self.down_proj_bias[expert])
            out_TD = out_TD.index_add(0, token, (result * weight_TK[token, slot, None]).to(out_TD.dtype))
        return out_TD
