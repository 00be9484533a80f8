"""What the experts of every case must equal: a loop over the experts in float32 that no backend has a part in.

Shapes: T tokens, D width, E experts, K experts per token, F width of one expert, N rows.
"""

import torch
from torch import nn
from torch.nn import functional as F
from transformers.activations import ACT2FN

from moe_hf.bench.speed.opponents import Weights


class ReferenceExperts(nn.Module):
    """Experts with transformers' activation and PyTorch's own derivatives, whatever the dtype of the weights."""

    def __init__(self, weights: Weights, activation: str) -> None:
        super().__init__()
        self.up_proj, self.up_proj_bias, self.down_proj, self.down_proj_bias = weights
        self.act_fn = ACT2FN[activation]

    def forward(self, x_TD: torch.Tensor, expert_TK: torch.Tensor, weight_TK: torch.Tensor) -> torch.Tensor:
        """(T, D) in the dtype of `x_TD`; an id of E is skipped."""
        out_TD = torch.zeros_like(x_TD, dtype=torch.float32)
        # Taken apart at once: the gradient of each single index would be as large as the whole stack.
        stacks = (self.up_proj, self.up_proj_bias, self.down_proj, self.down_proj_bias)
        for expert, (up_FD, up_F, down_DF, down_D) in enumerate(
            zip(*(stack.unbind() for stack in stacks), strict=True)
        ):
            token_N, slot_N = torch.where(expert_TK == expert)
            h_NF = self.act_fn(F.linear(x_TD[token_N].float(), up_FD.float(), up_F.float()))
            y_ND = F.linear(h_NF, down_DF.float(), down_D.float())
            out_TD = out_TD.index_add(0, token_N, y_ND * weight_TK[token_N, slot_N, None].float())
        return out_TD.to(x_TD.dtype)
