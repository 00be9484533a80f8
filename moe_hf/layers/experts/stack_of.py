"""Reads weights and activation from any experts module under transformers' `use_experts_implementation`.

Shapes: E experts, D width, F width of one expert.
"""

from typing import Any

from transformers.integrations.moe import _default_apply_gate

from moe_hf.layers.experts.activations import activation_name
from moe_hf.ops.experts.activations import Activation, RowFunctions
from moe_hf.ops.experts.expert_parts import ExpertStack

_STACK_NAMES = ("up_proj", "up_proj_bias", "gate_up_proj", "gate_up_proj_bias", "down_proj", "down_proj_bias")


# What transformers' decorator adds to a module stands in no class that could be named here.
ExpertsModule = Any


def stack_of(module: ExpertsModule) -> tuple[ExpertStack, Activation | None]:
    """The weights of the module, as views, and its activation if it is a known one.

    The activation is None where it is none of `ACTIVATIONS`, where the module gates in its own way, as GPT-OSS does,
    and where it normalises what its experts give; `row_functions_of` serves all of these.
    """
    up = up_name(module)
    up_EFD, down_EDF = getattr(module, up), module.down_proj
    if module.is_transposed:
        up_EFD, down_EDF = up_EFD.transpose(1, 2), down_EDF.transpose(1, 2)
    biases = (getattr(module, f"{up}_bias"), module.down_proj_bias) if module.has_bias else (None, None)
    return ExpertStack(up_EFD, down_EDF, *biases), _activation_of(module)


def up_name(module: ExpertsModule) -> str:
    """What the module calls its projection up."""
    return "gate_up_proj" if module.has_gate else "up_proj"


def row_functions_of(module: ExpertsModule) -> RowFunctions:
    """What the module does to rows between and after its projections, whatever it is."""
    # By identity, since tensors compare by their numbers.
    in_stack = {id(module._parameters.get(name)) for name in _STACK_NAMES}
    return RowFunctions(
        activate=module._apply_gate if module.has_gate else module.act_fn,
        finish=module.post_expert_norm if _normalises(module) else None,
        parameters=tuple(parameter for parameter in module.parameters() if id(parameter) not in in_stack),
    )


def _activation_of(module: ExpertsModule) -> Activation | None:
    if _normalises(module) or (module.has_gate and type(module)._apply_gate is not _default_apply_gate):
        return None
    name = activation_name(module.act_fn)
    # transformers' own gate reads [gate; value] whatever the module says of its layout.
    return None if name is None else Activation(name, "concatenated" if module.has_gate else "none")


def _normalises(module: ExpertsModule) -> bool:
    # transformers 5.17 knows no such norm.
    return getattr(module, "has_post_expert_norm", False)
