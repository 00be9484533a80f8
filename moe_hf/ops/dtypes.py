"""The types of number that ops compute in and keep states in, whatever the type of their inputs."""

from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch


def float32_or_more(*tensors: torch.Tensor | None) -> torch.dtype:
    """The type of states and of sums: float64 where one of the tensors is, else float32.

    >>> float32_or_more(torch.zeros(1, dtype=torch.bfloat16), None)
    torch.float32
    """
    for x in tensors:
        if x is not None and x.dtype == torch.float64:
            return torch.float64
    return torch.float32


def without_autocast(like: torch.Tensor) -> AbstractContextManager[Any]:
    """A context in which products on the device of `like` keep the type of their factors."""
    device = like.device.type
    # Entering autocast costs microseconds, of which a decoding step has few.
    return torch.amp.autocast(device, enabled=False) if torch.is_autocast_enabled(device) else nullcontext()
