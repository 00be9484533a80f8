"""What the experts of one layer compute, written to be read: the reference that every backend must equal.

Shapes: T tokens, D width, E experts, K experts per token, F width of one expert (2F columns up where it is gated).
"""

import torch
from torch.nn import functional as F

from moe_hf.ops.experts.activations import Activation, activate
from moe_hf.ops.experts.expert_parts import ExpertStack


def reference_experts(
    x_TD: torch.Tensor, expert_TK: torch.Tensor, weight_TK: torch.Tensor, stack: ExpertStack, activation: Activation
) -> torch.Tensor:
    """For each expert, its tokens through its FFN, weighted and added up (Shazeer et al. 2017, eq. 1).

    Args:
        x_TD: tokens.
        expert_TK: experts of each token, in [0, E]; E marks a slot to skip, as dropped tokens and expert parallelism
            leave them. It costs nothing and gets no gradient.
        weight_TK: how much each of them counts.
        stack: the experts.
        activation: between the two projections.

    Returns:
        (T, D) in the dtype of `x_TD`.
    """
    num_experts = len(stack.up_EFD)
    out_TD = torch.zeros_like(x_TD)
    for expert in expert_TK.unique().tolist():
        if expert >= num_experts:
            continue
        token_N, place_N = torch.where(expert_TK == expert)
        up_bias_F = None if stack.up_bias_EF is None else stack.up_bias_EF[expert]
        down_bias_D = None if stack.down_bias_ED is None else stack.down_bias_ED[expert]
        h_NF = activate(F.linear(x_TD[token_N], stack.up_EFD[expert], up_bias_F), activation)
        y_ND = F.linear(h_NF, stack.down_EDF[expert], down_bias_D)
        out_TD = out_TD.index_add(0, token_N, (y_ND * weight_TK[token_N, place_N, None]).to(out_TD.dtype))
    return out_TD
