"""Activations by transformers' names, each as one kernel where PyTorch has one."""

from torch import nn
from transformers.activations import ACT2FN

# GPT-2's gelu_new is the tanh approximation written out in seven elementwise steps; this is the same function.
_FUSED = {"gelu_new": "tanh", "gelu_fast": "tanh", "gelu_pytorch_tanh": "tanh"}


def activation(name: str) -> nn.Module:
    """The activation that transformers' `ACT2FN` has under `name`.

    >>> activation("gelu_new")
    GELU(approximate='tanh')
    """
    return nn.GELU(approximate=_FUSED[name]) if name in _FUSED else ACT2FN[name]
