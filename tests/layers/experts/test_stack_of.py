"""Weights and activation are read from any experts module as it means them."""

import torch
from torch import nn
from transformers.integrations.moe import use_experts_implementation

from moe_hf.layers.experts.stack_of import stack_of
from moe_hf.ops.experts.activations import Activation
from tests.layers.experts.any_experts import (
    MODELS,
    D,
    assert_equal_within,
    make,
    routes,
    tokens_for,
    value_and_gradients,
)


def test_a_stack_is_read_as_its_model_means_it() -> None:
    layers = {kind: model_class(config()).model.layers[0].mlp for kind, (model_class, config) in MODELS.items()}
    stack, known = stack_of(layers["mixtral"].experts)
    assert known == Activation("silu", "concatenated")
    assert [tuple(part.shape) for part in stack[:2]] == [(4, 40, 32), (4, 32, 20)]
    assert stack[2:] == (None, None)
    stack, known = stack_of(layers["gpt_oss"].experts)
    # Clamped, and with a sigmoid of its own.
    assert known is None
    assert [tuple(part.shape) for part in stack] == [(4, 40, 32), (4, 32, 20), (4, 40), (4, 32)]
    assert not stack.up_EFD.is_contiguous()


def test_what_a_module_learns_besides_its_stacks_gets_its_gradient() -> None:
    class Slope(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.slope = nn.Parameter(torch.tensor(0.7))

        def forward(self, z: torch.Tensor) -> torch.Tensor:
            return z.clamp(min=0) + self.slope * z.clamp(max=0)

    results = []
    for backend in ("batched_mm", "sorted"):
        experts = make(backend, "gelu", torch.float32, gated=False, transposed=False, biased=True)
        experts.act_fn = Slope()
        experts.has_post_expert_norm, experts.post_expert_norm = True, nn.RMSNorm(D)
        results.append(value_and_gradients(experts, tokens_for(), *routes(skips=False)))
    if "has_post_expert_norm" in use_experts_implementation.__kwdefaults__:
        assert_equal_within(results[1], results[0], 1e-5)
    else:
        assert results[1]["post_expert_norm.weight"].abs().max() > 0
