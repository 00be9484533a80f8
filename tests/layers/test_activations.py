"""The fused activations are the functions that transformers has under their names."""

import pytest
import torch
from transformers.activations import ACT2FN

from moe_hf.layers.activations import activation


@pytest.mark.parametrize("name", ["gelu_new", "gelu_fast", "gelu_pytorch_tanh", "gelu", "relu", "silu"])
def test_is_the_same_function_with_the_same_gradient(name: str) -> None:
    results = []
    for function in (activation(name), ACT2FN[name]):
        x = torch.linspace(-6, 6, 101, dtype=torch.float64, requires_grad=True)
        value = function(x)
        value.sum().backward()
        results.append((value.detach(), x.grad))
    torch.testing.assert_close(results[0], results[1], atol=1e-7, rtol=0)
