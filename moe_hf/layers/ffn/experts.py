"""The stacked experts of one sparse layer, computed by whichever backend is chosen by `experts_implementation`.

Shapes: T tokens, D width, E experts, K experts per token, F width of one expert.
"""

import torch
from torch import nn
from transformers.integrations.moe import use_experts_implementation

from moe_hf.config.decoder import MoEDecoderConfig
from moe_hf.layers.activations import activation
from moe_hf.layers.experts_modules import row_functions_of, stack_of
from moe_hf.layers.packed_weights import pack_for_inference, unpack
from moe_hf.ops.experts import reference_experts
from moe_hf.ops.generic_experts import generic_experts


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
        stack, known = stack_of(self)
        if known is None:
            return generic_experts(x_TD, expert_TK, weight_TK, stack, row_functions_of(self))
        return reference_experts(x_TD, expert_TK, weight_TK, stack, known)

    def pack_for_inference(self) -> None:
        """See `moe_hf.layers.packed_weights.pack_for_inference`."""
        pack_for_inference(self)

    def unpack(self) -> None:
        """Drop the packed weights, if there are any."""
        unpack(self)
