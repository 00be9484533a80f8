"""The activations between an expert's two projections, gated or not, with their derivatives.

Shapes: N rows, F width of one expert; a gated expert projects up to 2F.
"""

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import torch
from torch.nn import functional as F

GATES = ("none", "concatenated", "interleaved")
"""How the 2F columns of a gated projection hold gate and value: [gate; value], or gate0, value0, gate1, value1, ..."""


class Function(NamedTuple):
    """An activation without its gate.

    Attributes:
        forward: its values, from (N, F) to (N, F).
        backward: the gradient of its input, from that of its values and its input.
        onednn: what oneDNN's linear layer calls it, with its numbers and its algorithm; None where it has none.
    """

    forward: Callable[[torch.Tensor], torch.Tensor]
    backward: Callable[[torch.Tensor, torch.Tensor], torch.Tensor]
    onednn: tuple[str, list[float], str] | None = None


def _relu2(z_NF: torch.Tensor) -> torch.Tensor:
    return F.relu(z_NF).square()


def _relu_backward(dh_NF: torch.Tensor, z_NF: torch.Tensor) -> torch.Tensor:
    return torch.ops.aten.threshold_backward(dh_NF, z_NF, 0)


def _relu2_backward(dh_NF: torch.Tensor, z_NF: torch.Tensor) -> torch.Tensor:
    return 2 * F.relu(z_NF) * dh_NF


_gelu_backward = torch.ops.aten.gelu_backward

# "gelu" is the exact one, "gelu_tanh" GPT-2's `gelu_new`, "relu2" the squared ReLU (So et al. 2021, Primer). Their
# twins for GPUs stand in moe_hf.ops.experts.triton.activations.
ACTIVATIONS: dict[str, Function] = {
    "gelu": Function(F.gelu, _gelu_backward, ("gelu", [], "none")),
    "gelu_tanh": Function(
        partial(F.gelu, approximate="tanh"), partial(_gelu_backward, approximate="tanh"), ("gelu", [], "tanh")
    ),
    "silu": Function(F.silu, torch.ops.aten.silu_backward, ("swish", [], "")),
    "relu": Function(F.relu, _relu_backward, ("relu", [], "")),
    "relu2": Function(_relu2, _relu2_backward),
}


class Activation(NamedTuple):
    """What turns an expert's up projection into the input of its down projection.

    `name` is one of `ACTIVATIONS`, `gate` one of `GATES`; a gated expert computes name(gate) * value (Shazeer 2020).
    """

    name: str
    gate: str = "none"


class RowFunctions(NamedTuple):
    """What is done to rows besides the projections, each row for itself.

    `activate` stands between the projections, `finish` after the second (None: nothing). `parameters` are what either
    of them learns.
    """

    activate: Callable[[torch.Tensor], torch.Tensor]
    finish: Callable[[torch.Tensor], torch.Tensor] | None = None
    parameters: tuple[torch.Tensor, ...] = ()


def function_of(activation: Activation) -> Function:
    """The row of `ACTIVATIONS` that an activation names."""
    if activation.name not in ACTIVATIONS:
        raise ValueError(f"activation {activation.name!r} is not one of {', '.join(ACTIVATIONS)}")
    return ACTIVATIONS[activation.name]


def activate(z_NF: torch.Tensor, activation: Activation) -> torch.Tensor:
    """The activated rows, (N, F); `z_NF` has 2F columns where the activation is gated."""
    if activation.gate == "none":
        return function_of(activation).forward(z_NF)
    gate_NF, value_NF = split_gate(z_NF, activation.gate)
    return function_of(activation).forward(gate_NF) * value_NF


def activate_backward(dh_NF: torch.Tensor, z_NF: torch.Tensor, activation: Activation) -> torch.Tensor:
    """The gradient for `z_NF`, same shape, from the gradient `dh_NF` of what `activate` gave."""
    if activation.gate == "none":
        return function_of(activation).backward(dh_NF, z_NF)
    gate_NF, value_NF = split_gate(z_NF, activation.gate)
    # Both halves are written into one tensor: the up projection is one matrix and needs its gradient in one piece.
    dz_NF = torch.empty_like(z_NF)
    dgate_NF, dvalue_NF = split_gate(dz_NF, activation.gate)
    dgate_NF.copy_(function_of(activation).backward(dh_NF * value_NF, gate_NF))
    torch.mul(dh_NF, function_of(activation).forward(gate_NF), out=dvalue_NF)
    return dz_NF


def split_gate(z_NF: torch.Tensor, gate: str) -> tuple[torch.Tensor, torch.Tensor]:
    """The gate's and the value's columns, as views."""
    if gate == "interleaved":
        return z_NF[..., ::2], z_NF[..., 1::2]
    gate_NF, value_NF = z_NF.chunk(2, dim=-1)
    return gate_NF, value_NF
