"""Experts modules, of this package or of transformers, whose stacks are stored in 8 or 4 bits.

A module is quantised where it stands: its class becomes one that inherits from its own, so that whatever looks for
that class finds it, and its two stacks become codes and scales, which are saved and moved with it.

Shapes: E experts, O columns out, I columns in.
"""

from typing import Any, ClassVar

import torch
from torch import nn
from transformers.integrations.moe import ALL_EXPERTS_FUNCTIONS

from moe_hf.base.errors import CheckpointError, ConfigError
from moe_hf.layers.experts.stack_of import row_functions_of, up_name
from moe_hf.ops.experts.quantized_experts import (
    QuantizedStack,
    dequantized_experts,
    dequantized_stack,
    quantized_experts,
)
from moe_hf.ops.experts.quantized_product import is_aligned
from moe_hf.ops.experts.quantized_weights import QuantizedWeights, empty_weights, quantized

# Not the names of the weights: whoever renames, splits or shards those must not find these.
_UP, _DOWN = "up", "down"
BUFFERS = tuple(f"{part}_{what}" for part in (_UP, _DOWN) for what in ("codes", "scales"))
"""What a quantised module holds in place of its weights."""

IMPLEMENTATIONS = ("auto", "eager", "sorted", "grouped_mm", "batched_mm")
"""The words of `experts_implementation` under which quantised experts run. "eager" is the reference, which turns the
whole stack into numbers; the others are one product, since transformers chooses among its own by itself."""


class _AbsentWeightError(ConfigError, AttributeError):
    """Of a weight that is asked for as numbers; `hasattr` and `getattr` take it for an absent attribute."""


class QuantizedExperts(nn.Module):
    """The part of a quantised module's class that its own class has not; see `quantized_class`."""

    plain_class: ClassVar[type[nn.Module]]

    def forward(self, x_TD: torch.Tensor, expert_TK: torch.Tensor, weight_TK: torch.Tensor) -> torch.Tensor:
        """The weighted sum of each token's experts, (T, D).

        Raises:
            ConfigError: `experts_implementation` is none of `IMPLEMENTATIONS`.
        """
        name = getattr(self.config, "_experts_implementation", None)
        if name is not None and name not in IMPLEMENTATIONS:
            # What transformers does not know either it refuses by itself.
            ALL_EXPERTS_FUNCTIONS.get_interface(name, quantized_experts)
            raise ConfigError(
                f"experts_implementation={name!r} needs weights as numbers, and those of {type(self).__name__} are "
                f"quantised; use one of {', '.join(IMPLEMENTATIONS)}, or model.dequantize()"
            )
        product = dequantized_experts if name == "eager" else quantized_experts
        return product(x_TD, expert_TK, weight_TK, quantized_stack_of(self), row_functions_of(self))

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:
            if name not in ("gate_up_proj", "up_proj", "down_proj"):
                raise
        raise _AbsentWeightError(
            f"{type(self).__name__} has no {name} as numbers: its weights are quantised; model.dequantize() gives a "
            "model that has"
        )

    def __reduce__(self) -> Any:
        # The class has no name by which it could be found again.
        return _rebuild, (self.plain_class,), self.__dict__


_CLASSES: dict[type[nn.Module], type[nn.Module]] = {}


def quantized_class(plain_class: type[nn.Module]) -> type[nn.Module]:
    """The class of the quantised modules of a class of experts; one for each."""
    if plain_class not in _CLASSES:
        body = {"plain_class": plain_class, "__doc__": QuantizedExperts.__doc__}
        _CLASSES[plain_class] = type(f"Quantized{plain_class.__name__}", (QuantizedExperts, plain_class), body)
    return _CLASSES[plain_class]


def _rebuild(plain_class: type[nn.Module]) -> nn.Module:
    quantized_one = quantized_class(plain_class)
    return quantized_one.__new__(quantized_one)


def experts_modules(model: nn.Module) -> dict[str, nn.Module]:
    """The modules of a model that hold stacked experts as transformers' `use_experts_implementation` has them."""
    return {
        name: module
        for name, module in model.named_modules()
        if {"has_gate", "has_bias", "is_transposed", "num_experts"} <= module.__dict__.keys()
    }


def weight_names(module: nn.Module) -> tuple[str, str]:
    """What the stacks of an experts module are called: its projection up, and that down."""
    return up_name(module), "down_proj"


def quantize_weight(module: nn.Module, name: str, weight: torch.Tensor, bits: int, group_size: int | None) -> None:
    """Put a stack into an experts module in codes; its parameter of that name goes.

    Args:
        module: the experts, quantised so far or not.
        name: one of `weight_names(module)`.
        weight: the numbers, as the module lays them out.
        bits: 8 or 4.
        group_size: as in `require_format`.
    """
    weight_EOI = weight.mT if module.is_transposed else weight
    _replace(module, name, quantized(weight_EOI, bits, group_size))


def expect_quantized(module: nn.Module, bits: int, group_size: int | None) -> None:
    """Give an experts module empty codes and scales in place of its weights, on their device."""
    for name in weight_names(module):
        weight = module._parameters[name]
        assert weight is not None
        shape_EOI = (weight.mT if module.is_transposed else weight).shape
        _replace(module, name, empty_weights(shape_EOI, bits, group_size, weight.device))


def require_shapes(name: str, module: nn.Module, bits: int, group_size: int | None) -> None:
    """Refuse codes or scales of other shapes or types than this format has.

    Raises:
        CheckpointError: what was loaded is in another format than the configuration says.
    """
    stack = quantized_stack_of(module)
    num_experts: Any = module.num_experts
    for part, weights in ((_UP, stack.up), (_DOWN, stack.down)):
        columns = stack.down.rows if part == _UP else _inner_width(module, stack)
        shape = torch.Size([num_experts, weights.rows, columns])
        expected = empty_weights(shape, bits, group_size, torch.device("meta"))
        for what in ("codes", "scales"):
            found, wanted = getattr(weights, what), getattr(expected, what)
            if found.shape != wanted.shape or (what == "codes" and found.dtype != wanted.dtype):
                raise CheckpointError(
                    f"{name}.{part}_{what} is {found.dtype} of {tuple(found.shape)}, and the configuration wants "
                    f"{wanted.dtype} of {tuple(wanted.shape)}; the folder is damaged, or its config.json was changed"
                )


def align(module: nn.Module) -> None:
    """Copy codes that the products for CPUs could not read where they lie, as after loading."""
    for name in BUFFERS:
        buffer = module._buffers[name]
        assert buffer is not None
        if buffer.is_cpu and not is_aligned(buffer):
            module._buffers[name] = buffer.clone()


def _inner_width(module: nn.Module, stack: QuantizedStack) -> int:
    return stack.up.rows // 2 if module.has_gate else stack.up.rows


def quantized_stack_of(module: Any) -> QuantizedStack:
    """The codes, scales and biases of a quantised module, as they are."""
    biases = (getattr(module, f"{up_name(module)}_bias"), module.down_proj_bias) if module.has_bias else (None, None)
    up = QuantizedWeights(module.up_codes, module.up_scales, module.up_rows)
    return QuantizedStack(up, QuantizedWeights(module.down_codes, module.down_scales, module.down_rows), *biases)


def dequantize_module(module: Any, dtype: torch.dtype) -> None:
    """Give a quantised module its weights as numbers again, and its own class."""
    stack = dequantized_stack(quantized_stack_of(module), dtype)
    for name in BUFFERS:
        del module._buffers[name]
    del module.up_rows, module.down_rows
    module.__class__ = module.plain_class
    for name, weight_EOI in zip(weight_names(module), stack[:2], strict=True):
        weight = weight_EOI.mT.contiguous() if module.is_transposed else weight_EOI
        module.register_parameter(name, nn.Parameter(weight))


def _replace(module: Any, name: str, weights: QuantizedWeights) -> None:
    part = _DOWN if name == "down_proj" else _UP
    module._parameters.pop(name, None)
    for what in ("codes", "scales"):
        buffer = getattr(weights, what)
        module.register_buffer(f"{part}_{what}", buffer)
    setattr(module, f"{part}_rows", weights.rows)
    # transformers' word for what must not be drawn at random: its classes would look for their weights.
    module._is_hf_initialized = True
    if not isinstance(module, QuantizedExperts):
        module.__class__ = quantized_class(type(module))
