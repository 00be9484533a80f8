"""The stacked experts of one sparse layer, computed by whichever backend is chosen by `experts_implementation`.

Shapes: T tokens, D width, E experts, K experts per token, F width of one expert.
"""

from typing import Any, Self

import torch
from torch import nn
from transformers import initialization as init
from transformers.integrations.moe import use_experts_implementation

from moe_hf.config.decoder import MoEDecoderConfig
from moe_hf.layers.experts.activations import activation
from moe_hf.layers.experts.interface import OWN_EXPERTS_FUNCTIONS
from moe_hf.layers.experts.packed_weights import pack_for_inference, unpack
from moe_hf.layers.experts.stack_of import row_functions_of, stack_of
from moe_hf.layers.init import DrawsOwnWeights
from moe_hf.ops.experts.generic import generic_experts
from moe_hf.ops.experts.reference import reference_experts


@use_experts_implementation(experts_interface=OWN_EXPERTS_FUNCTIONS, has_gate=False, has_bias=True)
class Experts(nn.Module, DrawsOwnWeights):
    """E two-layer FFNs, gated or not, with biases or without, as stacks so that one grouped GEMM serves them all.

    The names of the parameters and of `act_fn` are those that transformers' backends read. Gated experts hold gate and
    value one above the other in `gate_up_proj` (E, 2F, D).
    """

    def __init__(self, config: MoEDecoderConfig) -> None:
        super().__init__()
        self.num_experts = config.num_experts
        width, inner = config.hidden_size, config.expert_width
        name, rows = ("gate_up_proj", 2 * inner) if config.mlp_gated else ("up_proj", inner)
        self.register_parameter(name, nn.Parameter(torch.empty(self.num_experts, rows, width)))
        self.register_parameter(f"{name}_bias", _bias(config, rows))
        self.down_proj = nn.Parameter(torch.empty(self.num_experts, width, inner))
        self.down_proj_bias = _bias(config, width)
        self.act_fn = activation(config.hidden_act)

    @classmethod
    def from_config(cls, config: MoEDecoderConfig, leaves_slots_empty: bool = False) -> Self:
        """The experts of one sparse layer of a model.

        Args:
            config: of the model.
            leaves_slots_empty: whether some slots will hold the id E, to be skipped.
        """
        experts: Any = cls(config)
        # The decorator has one answer per class to what is a choice of the configuration here.
        experts.has_gate, experts.has_bias = config.mlp_gated, config.mlp_bias
        # transformers' backends skip empty slots only where told to expect some.
        experts._is_expert_parallel = leaves_slots_empty
        return experts

    def draw_weights(self, std: float, residual_std: float) -> None:
        """Normal draws, smaller ones for what is added to the residual stream."""
        for name, parameter in self.named_parameters(recurse=False):
            if name.endswith("bias"):
                init.zeros_(parameter)
            else:
                init.normal_(parameter, mean=0.0, std=residual_std if name == "down_proj" else std)

    def forward(self, x_TD: torch.Tensor, expert_TK: torch.Tensor, weight_TK: torch.Tensor) -> torch.Tensor:
        """The reference, "eager": for each expert, its tokens through its FFN, weighted and added up; (T, D).

        The class's decorator calls the chosen backend in its place: one of the table in
        `moe_hf.layers.experts.backends`, which `moe_hf.public` hands to transformers; "auto" unless the model was told
        another (`MoEPreTrainedModel.get_correct_experts_implementation`).

        Ids equal to `num_experts` mark slots to skip, as expert parallelism and token dropping use them.
        """
        stack, known = stack_of(self)
        if known is None:
            return generic_experts(x_TD, expert_TK, weight_TK, stack, row_functions_of(self))
        return reference_experts(x_TD, expert_TK, weight_TK, stack, known)

    def pack_for_inference(self) -> None:
        """See `moe_hf.layers.experts.packed_weights.pack_for_inference`."""
        pack_for_inference(self)

    def unpack(self) -> None:
        """Drop the packed weights, if there are any."""
        unpack(self)


def _bias(config: MoEDecoderConfig, rows: int) -> nn.Parameter | None:
    return nn.Parameter(torch.empty(config.num_experts, rows)) if config.mlp_bias else None
