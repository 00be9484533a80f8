"""The activations and their derivatives, known and written out."""

import math

import pytest
import torch

from moe_hf.ops.experts.activations import ACTIVATIONS, GATES, Activation, activate, activate_backward, split_gate

N, F = 5, 6

WRITTEN_OUT = {
    "gelu": lambda z: 0.5 * z * (1 + torch.erf(z / math.sqrt(2))),
    "gelu_tanh": lambda z: 0.5 * z * (1 + torch.tanh(math.sqrt(2 / math.pi) * (z + 0.044715 * z**3))),
    "silu": lambda z: z / (1 + torch.exp(-z)),
    "relu": lambda z: z.clamp(min=0),
    "relu2": lambda z: z.clamp(min=0) ** 2,
}


def columns(activation: Activation) -> torch.Tensor:
    width = F if activation.gate == "none" else 2 * F
    return torch.randn(N, width, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_is_the_function_of_its_name(name: str) -> None:
    z = columns(Activation(name))
    torch.testing.assert_close(activate(z, Activation(name)), WRITTEN_OUT[name](z))


def test_a_gate_multiplies_the_values_of_its_own_columns() -> None:
    z = torch.arange(8.0).view(2, 4)
    assert activate(z, Activation("relu", "concatenated")).tolist() == [[0, 3], [24, 35]]
    assert activate(z, Activation("relu", "interleaved")).tolist() == [[0, 6], [20, 42]]


def test_split_columns_are_views() -> None:
    for gate in GATES[1:]:
        z = torch.zeros(2, 4)
        split_gate(z, gate)[1].fill_(1)
        assert z.sum() == 4


@pytest.mark.parametrize("gate", GATES)
@pytest.mark.parametrize("name", ACTIVATIONS)
def test_the_derivative_is_autograds(name: str, gate: str) -> None:
    activation = Activation(name, gate)
    z = columns(activation).requires_grad_()
    h = activate(z, activation)
    dh = torch.linspace(-1, 1, h.numel(), dtype=h.dtype).view_as(h)
    (expected,) = torch.autograd.grad(h, z, dh)
    torch.testing.assert_close(activate_backward(dh, z.detach(), activation), expected)


def test_an_unknown_name_is_refused() -> None:
    with pytest.raises(ValueError, match="activation 'mish' is not one of gelu, gelu_tanh"):
        activate(torch.zeros(1, 2), Activation("mish"))
    with pytest.raises(ValueError, match="activation 'mish' is not one of gelu, gelu_tanh"):
        activate_backward(torch.zeros(1, 2), torch.zeros(1, 2), Activation("mish"))
