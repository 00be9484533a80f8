"""Which experts modules have a second copy of their weights, packed for inference on a CPU.

The copies stand here and not on the modules, so that they are never saved, cloned or moved with one.
"""

from typing import NamedTuple
from weakref import WeakKeyDictionary

import torch
from torch import nn
from transformers.utils import logging

from moe_hf.base.errors import ConfigError
from moe_hf.layers.experts.stack_of import stack_of
from moe_hf.ops.experts.expert_parts import ExpertStack
from moe_hf.ops.experts.packed import PackedStack, pack_stack

logger = logging.get_logger(__name__)


class _Packed(NamedTuple):
    stack: PackedStack
    state: tuple[tuple[int, int], ...]


_PACKED: WeakKeyDictionary[nn.Module, _Packed] = WeakKeyDictionary()


def pack_for_inference(experts: nn.Module) -> None:
    """Give an experts module a second copy of its weights in the order that oneDNN multiplies fastest.

    The "sorted" and "auto" backends use it where no gradients are asked for. It lasts until `unpack` or until the
    weights change: an optimiser's step, loading or moving them. (A write through `Parameter.data` goes unseen.)

    Raises:
        ConfigError: the weights are not float32 or bfloat16 on a CPU, PyTorch has no oneDNN, or the activation is none
            of `ACTIVATIONS`.
    """
    stack, activation = stack_of(experts)
    if activation is None:
        raise ConfigError(f"{type(experts).__name__} has an activation that packed experts do not know; leave it plain")
    if any(part is not None and part.is_inference() for part in stack):
        raise ConfigError(
            f"the weights of {type(experts).__name__} were made under torch.inference_mode and cannot be packed, as "
            "changes of them go unseen"
        )
    _PACKED[experts] = _Packed(pack_stack(stack), _state(stack))


def unpack(experts: nn.Module) -> None:
    """Drop the second copy; nothing happens where there is none."""
    _PACKED.pop(experts, None)


def packed_stack_of(experts: nn.Module, stack: ExpertStack) -> PackedStack | None:
    """The packed weights where the module has them, they are up to date and no gradient is asked for."""
    packed = _PACKED.get(experts) if _PACKED and not torch.compiler.is_compiling() else None
    if packed is None:
        return None
    if _state(stack) != packed.state:
        logger.warning("packed experts changed: their packed weights are dropped; call pack_for_inference() again")
        unpack(experts)
        return None
    return None if torch.is_grad_enabled() else packed.stack


def _state(stack: ExpertStack) -> tuple[tuple[int, int], ...]:
    # Moving or replacing weights changes the memory, writing to them the version.
    return tuple((part.data_ptr(), part._version) for part in stack if part is not None)
