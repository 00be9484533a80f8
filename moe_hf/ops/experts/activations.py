"""The activations between an expert's two projections, gated or not, with their derivatives.

Shapes: N rows, F width of one expert; a gated expert projects up to 2F.
"""

from typing import NamedTuple

import torch
from torch.nn import functional as F

GATES = ("none", "concatenated", "interleaved")
"""How the 2F columns of a gated projection hold gate and value: [gate; value], or gate0, value0, gate1, value1, ..."""

ACTIVATIONS = ("gelu", "gelu_tanh", "silu", "relu", "relu2")


class Activation(NamedTuple):
    """What turns an expert's up projection into the input of its down projection.

    `name` is one of `ACTIVATIONS`: "gelu" the exact one, "gelu_tanh" GPT-2's `gelu_new`, "relu2" the squared ReLU (So
    et al. 2021, Primer). `gate` is one of `GATES`; a gated expert computes name(gate) * value (Shazeer 2020).
    """

    name: str
    gate: str = "none"


def activate(z_NF: torch.Tensor, activation: Activation) -> torch.Tensor:
    """The activated rows, (N, F); `z_NF` has 2F columns where the activation is gated."""
    if activation.gate == "none":
        return _plain(z_NF, activation.name)
    gate_NF, value_NF = split_gate(z_NF, activation.gate)
    return _plain(gate_NF, activation.name) * value_NF


def activate_backward(dh_NF: torch.Tensor, z_NF: torch.Tensor, activation: Activation) -> torch.Tensor:
    """The gradient for `z_NF`, same shape, from the gradient `dh_NF` of what `activate` gave."""
    if activation.gate == "none":
        return _plain_backward(dh_NF, z_NF, activation.name)
    gate_NF, value_NF = split_gate(z_NF, activation.gate)
    dz_NF = torch.empty_like(z_NF)
    dgate_NF, dvalue_NF = split_gate(dz_NF, activation.gate)
    dgate_NF.copy_(_plain_backward(dh_NF * value_NF, gate_NF, activation.name))
    torch.mul(dh_NF, _plain(gate_NF, activation.name), out=dvalue_NF)
    return dz_NF


def split_gate(z_NF: torch.Tensor, gate: str) -> tuple[torch.Tensor, torch.Tensor]:
    """The gate's and the value's columns, as views."""
    if gate == "interleaved":
        return z_NF[..., ::2], z_NF[..., 1::2]
    gate_NF, value_NF = z_NF.chunk(2, dim=-1)
    return gate_NF, value_NF


def _plain(z_NF: torch.Tensor, name: str) -> torch.Tensor:
    match name:
        case "gelu":
            return F.gelu(z_NF)
        case "gelu_tanh":
            return F.gelu(z_NF, approximate="tanh")
        case "silu":
            return F.silu(z_NF)
        case "relu":
            return F.relu(z_NF)
        case "relu2":
            return F.relu(z_NF).square()
    raise ValueError(f"activation {name!r} is not one of {', '.join(ACTIVATIONS)}")


def _plain_backward(dh_NF: torch.Tensor, z_NF: torch.Tensor, name: str) -> torch.Tensor:
    match name:
        case "gelu":
            return torch.ops.aten.gelu_backward(dh_NF, z_NF)
        case "gelu_tanh":
            return torch.ops.aten.gelu_backward(dh_NF, z_NF, approximate="tanh")
        case "silu":
            return torch.ops.aten.silu_backward(dh_NF, z_NF)
        case "relu":
            return torch.ops.aten.threshold_backward(dh_NF, z_NF, 0)
        case "relu2":
            return 2 * F.relu(z_NF) * dh_NF
    raise ValueError(f"activation {name!r} is not one of {', '.join(ACTIVATIONS)}")
