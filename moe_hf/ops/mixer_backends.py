"""Chooses who computes a recurrence: a package's GPU kernel that was seen to agree with ours, or our own code."""

from collections.abc import Callable
from functools import cache
from typing import Any, NamedTuple

import torch

from moe_hf.base.errors import BackendUnavailableError
from moe_hf.base.optional import OPTIONAL_PACKAGES, is_available

_WORST_ERROR = 1e-2
"""Relative difference beyond which a kernel counts as wrong; half precision inside a kernel explains less."""


class Kernel(NamedTuple):
    """One op in a package.

    Attributes:
        package: a key of `OPTIONAL_PACKAGES`.
        op: what it computes, for messages.
        run: takes and returns what our own op does.
        ours: our own op.
        example: small arguments on a device, positional ones and keywords, to compare the two by.
    """

    package: str
    op: str
    run: Callable[..., Any]
    ours: Callable[..., Any]
    example: Callable[[torch.device], tuple[tuple[Any, ...], dict[str, Any]]]


def pick_kernel(requested: str, kernels: tuple[Kernel, ...], device: torch.device) -> Kernel | None:
    """The kernel to use; None means our own code.

    Args:
        requested: "auto" takes the first of `kernels` that is installed and agrees with our own code, on CUDA only;
            "torch" takes ours; a package's name takes its kernel, or ours for ops that the package does not have.
        kernels: those that exist for the op.
        device: where the tensors are.

    Raises:
        BackendUnavailableError: a package was asked for by name and is absent, is not on CUDA, fails, or disagrees.
    """
    if requested == "torch":
        return None
    if requested == "auto":
        # A compiler would have to trace the comparison; what it makes of our own code needs no package.
        if device.type != "cuda" or torch.compiler.is_compiling():
            return None
        return next((kernel for kernel in kernels if obstacle(kernel, device) is None), None)
    for kernel in kernels:
        if kernel.package == requested:
            reason = obstacle(kernel, device)
            if reason is not None:
                raise BackendUnavailableError(f"mixer_backend={requested!r} cannot be used: {reason}; use 'auto'")
            return kernel
    return None


@cache
def obstacle(kernel: Kernel, device: torch.device) -> str | None:
    """Why a kernel cannot be used on a device, found out by running it once; None where it can."""
    package = OPTIONAL_PACKAGES[kernel.package]
    if device.type != "cuda":
        return f"{package.module} runs on CUDA only, and the tensors are on {device.type}"
    if not is_available(kernel.package):
        return f"the package {package.module!r} is not installed; {package.install}"
    args, kwargs = kernel.example(device)
    with torch.no_grad():
        expected = kernel.ours(*args, **kwargs)[0].float()
        try:
            got = kernel.run(*args, **kwargs)[0].float()
        # Packages fail in ways of their own, as where their compiled part is absent.
        except Exception as error:
            return f"{package.module} fails at {kernel.op}: {type(error).__name__}: {error}"
    difference = float((got - expected).norm() / expected.norm())
    if not difference <= _WORST_ERROR:
        return f"{package.module} computes {kernel.op} differently here (relative difference {difference:.1e})"
    return None
