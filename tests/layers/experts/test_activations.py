"""Activations: fused ones are the functions that transformers has under their names, and modules are recognised."""

import pytest
import torch
from torch import nn
from transformers.activations import ACT2FN

from moe_hf.layers.experts.activations import activation, activation_name
from moe_hf.ops.experts.activations import ACTIVATIONS, Activation, activate

UNKNOWN = {
    "gelu_10",
    "hardswish",
    "laplace",
    "leaky_relu",
    "linear",
    "mish",
    "prelu",
    "quick_gelu",
    "relu6",
    "sigmoid",
    "sqrtsoftplus",
    "tanh",
}


@pytest.mark.parametrize("name", ["gelu_new", "gelu_fast", "gelu_pytorch_tanh", "gelu", "relu", "silu"])
def test_is_the_same_function_with_the_same_gradient(name: str) -> None:
    results = []
    for function in (activation(name), ACT2FN[name]):
        x = torch.linspace(-6, 6, 101, dtype=torch.float64, requires_grad=True)
        value = function(x)
        value.sum().backward()
        results.append((value.detach(), x.grad))
    torch.testing.assert_close(results[0], results[1], atol=1e-7, rtol=0)


@pytest.mark.parametrize("name", sorted(set(ACT2FN) - {"xielu"}))
def test_a_known_activation_is_the_function_of_its_name(name: str) -> None:
    x = torch.linspace(-6, 6, 101, dtype=torch.float64)
    found = activation_name(ACT2FN[name])
    assert (found is None) == (name in UNKNOWN)
    if found is not None:
        torch.testing.assert_close(ACT2FN[name](x), activate(x, Activation(found)), atol=1e-9, rtol=0)


def test_functions_are_known_and_subclasses_are_not() -> None:
    class Louder(torch.nn.SiLU):
        pass

    assert activation_name(torch.nn.functional.silu) == "silu"
    assert activation_name(torch.tanh) is None
    assert activation_name(torch.nn.GELU("tanh")) == "gelu_tanh"
    assert activation_name(Louder()) is None


def test_something_computes_every_activation_that_the_operations_know() -> None:
    known = (nn.SiLU(), nn.ReLU(), nn.GELU(), nn.GELU("tanh"), ACT2FN["relu2"])
    assert {activation_name(act_fn) for act_fn in known} == set(ACTIVATIONS)
