"""Activations by transformers' names, each as one kernel where PyTorch has one, and which of them a module is."""

from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F
from transformers import activations as transformers_activations
from transformers.activations import ACT2FN

# GPT-2's gelu_new is the tanh approximation written out in seven elementwise steps; this is the same function.
_FUSED = {"gelu_new": "tanh", "gelu_fast": "tanh", "gelu_pytorch_tanh": "tanh"}

# What computes each of `moe_hf.ops.experts.activations.ACTIVATIONS`: classes of modules, and functions.
_KNOWN: dict[str, tuple[Any, ...]] = {
    "silu": (nn.SiLU, transformers_activations.SiLUActivation, F.silu),
    "relu": (nn.ReLU, torch.relu, F.relu),
    "relu2": (transformers_activations.ReLUSquaredActivation,),
    "gelu": (transformers_activations.GELUActivation, F.gelu),
    "gelu_tanh": (
        transformers_activations.NewGELUActivation,
        transformers_activations.FastGELUActivation,
        transformers_activations.AccurateGELUActivation,
        transformers_activations.GELUTanh,
    ),
}
_NAMES = {known: name for name, computed_by in _KNOWN.items() for known in computed_by}


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
    return _NAMES.get(type(act_fn) if isinstance(act_fn, nn.Module) else act_fn)
