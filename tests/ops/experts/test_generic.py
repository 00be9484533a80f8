"""Experts of any activation and norm, and the gradients of what these learn."""

import pytest
import torch

from moe_hf.ops.experts.activations import Activation
from moe_hf.ops.experts.expert_parts import ExpertStack
from moe_hf.ops.experts.generic import RowFunctions, generic_experts
from moe_hf.ops.experts.reference import reference_experts
from tests.ops.experts.problems import (
    TOLERANCE,
    D,
    F,
    T,
    assert_equal_within,
    routes,
    stack_for,
    tokens_for,
    value_and_gradients,
)


class Sharp(torch.nn.Module):
    """A smooth activation with something to learn."""

    def __init__(self) -> None:
        super().__init__()
        self.slope = torch.nn.Parameter(torch.tensor(1.3, dtype=torch.float64))

    def forward(self, z: torch.Tensor) -> torch.Tensor:
        return torch.tanh(self.slope * z)


@pytest.mark.parametrize("with_norm", [False, True])
@pytest.mark.usefixtures("chunking")
def test_any_activation_and_norm_are_differentiated(with_norm: bool) -> None:
    sharp, norm = Sharp(), torch.nn.RMSNorm(D, eps=1e-2, dtype=torch.float64)
    learned = (sharp.slope, norm.weight) if with_norm else (sharp.slope,)
    functions = RowFunctions(sharp, norm if with_norm else None, learned)
    expert, weight = routes("skips", 4)
    inputs = (tokens_for(4), weight, *stack_for(Activation("gelu")))
    torch.autograd.gradcheck(
        lambda x, weight, up, down, up_bias, down_bias, *_: generic_experts(
            x, expert, weight, ExpertStack(up, down, up_bias, down_bias), functions
        ),
        (*(tensor.double().requires_grad_() for tensor in inputs), *learned),
        fast_mode=True,
    )


@pytest.mark.parametrize("kind", ["random", "one expert", "skips", "nothing"])
@pytest.mark.parametrize("tokens", [T, 1, 0])
def test_the_generic_form_equals_the_reference(kind: str, tokens: int) -> None:
    activation = Activation("silu", "concatenated")

    def swiglu(z: torch.Tensor) -> torch.Tensor:
        return torch.nn.functional.silu(z[:, :F]) * z[:, F:]

    def generic(*arguments):
        return generic_experts(*arguments[:-1], RowFunctions(swiglu))

    arguments = (tokens_for(tokens), *routes(kind if tokens else "random", tokens), stack_for(activation), activation)
    expected = value_and_gradients(reference_experts, *arguments)
    assert_equal_within(value_and_gradients(generic, *arguments), expected, TOLERANCE[torch.float32])
    with torch.no_grad():
        torch.testing.assert_close(generic(*arguments), expected["out"])
