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
        run: takes and returns what our own op does: an output and, unless `output_final_state` is False, a state.
        ours: our own op.
        example: small arguments on a device, positional ones and keywords, to compare the two by; those that the
            kernel itself computes with, or only our own code would be tested.
    """

    package: str
    op: str
    run: Callable[..., Any]
    ours: Callable[..., Any]
    example: Callable[[torch.device], tuple[tuple[Any, ...], dict[str, Any]]]


def pick_kernel(requested: str, kernels: tuple[Kernel, ...], device: torch.device) -> Kernel | None:
    """The kernel to use; None means our own code, as it always does while torch.compile looks.

    Args:
        requested: "auto" takes the first of `kernels` that is installed and agrees with our own code, on CUDA only;
            "torch" takes ours; a package's name takes its kernel, or ours for ops that the package does not have.
        kernels: those that exist for the op.
        device: where the tensors are.

    Raises:
        BackendUnavailableError: a package was asked for by name and is absent, is not on CUDA, fails, or disagrees.
    """
    # A compiler would have to trace the comparison; what it makes of our own code needs no package.
    if requested == "torch" or torch.compiler.is_compiling():
        return None
    if requested == "auto":
        if device.type != "cuda":
            return None
        return next((kernel for kernel in kernels if obstacle(kernel, device) is None), None)
    for kernel in kernels:
        if kernel.package == requested:
            reason = obstacle(kernel, device)
            if reason is not None:
                raise BackendUnavailableError(f"mixer_backend={requested!r} cannot be used: {reason}; use 'auto'")
            return kernel
    return None


# Comparing runs both, forwards and backwards; so once per process, kernel and device.
@cache
def obstacle(kernel: Kernel, device: torch.device) -> str | None:
    """Why a kernel cannot be used on a device, found out by running it once; None where it can."""
    package = OPTIONAL_PACKAGES[kernel.package]
    if device.type != "cuda":
        return f"{package.module} runs on CUDA only, and the tensors are on {device.type}"
    if not is_available(kernel.package):
        return f"the package {package.module!r} is not installed; {package.install}"
    return disagreement(kernel, device)


def disagreement(kernel: Kernel, device: torch.device) -> str | None:
    """How a kernel fails, or differs from our own code in output, final state or gradient of its first argument."""
    module = OPTIONAL_PACKAGES[kernel.package].module
    # The first call may come from anywhere, and what is found holds for all.
    with torch.inference_mode(False), torch.autocast(device.type, enabled=False):
        try:
            args, kwargs = kernel.example(device)
            ours, theirs = (_results(op, args, kwargs) for op in (kernel.ours, kernel.run))
            differences = {
                name: float((theirs[name] - expected).norm() / expected.norm()) for name, expected in ours.items()
            }
        # Packages fail in ways of their own, as where their compiled part is absent.
        except Exception as error:
            return f"{module} fails at {kernel.op}: {type(error).__name__}: {error}"
    for name, difference in differences.items():
        # Written this way round, so that NaN is a disagreement.
        if not difference <= _WORST_ERROR:
            return f"{module} computes {kernel.op} differently here ({name}, relative difference {difference:.1e})"
    return None


def _results(op: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> dict[str, torch.Tensor]:
    """Output and state as in generation; and the gradient as in training, which asks for no state."""
    with torch.no_grad():
        out, state = op(*args, **kwargs)
    first = args[0].detach().clone().requires_grad_()
    with torch.enable_grad():
        trained = op(first, *args[1:], **{**kwargs, "output_final_state": False})[0]
        (gradient,) = torch.autograd.grad(trained.float().square().sum(), [first])
    return {"output": out.float(), "final state": state.float(), "gradient": gradient.float()}
