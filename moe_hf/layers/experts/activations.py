"""Activations by transformers' names, each as one kernel where PyTorch has one, and which of them a module is."""

from collections.abc import Callable

import torch
from torch import nn
from torch.nn import functional as F
from transformers import activations as transformers_activations
from transformers.activations import ACT2FN

# GPT-2's gelu_new is the tanh approximation written out in seven elementwise steps; this is the same function.
_FUSED = {"gelu_new": "tanh", "gelu_fast": "tanh", "gelu_pytorch_tanh": "tanh"}

# transformers' classes by the name that moe_hf.ops.experts.activations has for what they compute.
_NAME_OF_CLASS: dict[type[nn.Module], str] = {
    nn.SiLU: "silu",
    transformers_activations.SiLUActivation: "silu",
    nn.ReLU: "relu",
    transformers_activations.ReLUSquaredActivation: "relu2",
    transformers_activations.GELUActivation: "gelu",
    transformers_activations.NewGELUActivation: "gelu_tanh",
    transformers_activations.FastGELUActivation: "gelu_tanh",
    transformers_activations.AccurateGELUActivation: "gelu_tanh",
    transformers_activations.GELUTanh: "gelu_tanh",
}
_NAME_OF_FUNCTION: dict[Callable[..., torch.Tensor], str] = {
    F.silu: "silu",
    torch.relu: "relu",
    F.relu: "relu",
    F.gelu: "gelu",
}


def activation(name: str) -> nn.Module:
    """The activation that transformers' `ACT2FN` has under `name`.

    >>> activation("gelu_new")
    GELU(approximate='tanh')
    """
    return nn.GELU(approximate=_FUSED[name]) if name in _FUSED else ACT2FN[name]


def activation_name(act_fn: Callable[[torch.Tensor], torch.Tensor]) -> str | None:
    """What `moe_hf.ops.experts.activations.ACTIVATIONS` calls the function that `act_fn` computes, or None.

    A subclass may compute anything, so that only the very classes are known.

    >>> activation_name(ACT2FN["gelu_new"]), activation_name(nn.Tanh())
    ('gelu_tanh', None)
    """
    if isinstance(act_fn, nn.GELU) and type(act_fn) is nn.GELU:
        return "gelu_tanh" if act_fn.approximate == "tanh" else "gelu"
    if isinstance(act_fn, nn.Module):
        return _NAME_OF_CLASS.get(type(act_fn))
    return _NAME_OF_FUNCTION.get(act_fn)
