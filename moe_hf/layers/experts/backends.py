"""The experts backends that this package adds to transformers' own, each in the signature of its ExpertsInterface.

Shapes: T tokens, D width, K experts per token, E experts, F width of one expert; N = F, or 2F where gated.
"""

import os
from collections.abc import Callable

import torch
from torch import nn
from transformers.integrations.moe import (
    ALL_EXPERTS_FUNCTIONS,
    ExpertsInterface,
    batched_mm_experts_forward,
    grouped_mm_experts_forward,
)

from moe_hf.base.errors import BackendUnavailableError, ConfigError
from moe_hf.base.optional import require
from moe_hf.base.registry import Registry
from moe_hf.layers.experts.interface import OWN_EXPERTS_FUNCTIONS
from moe_hf.layers.experts.packed_weights import packed_stack_of
from moe_hf.layers.experts.stack_of import row_functions_of, stack_of
from moe_hf.ops.experts.activations import ACTIVATIONS, Activation, activate
from moe_hf.ops.experts.expert_parts import ExpertStack, compute_dtype
from moe_hf.ops.experts.generic import generic_experts
from moe_hf.ops.experts.packed import packed_experts
from moe_hf.ops.experts.sorted_experts import sorted_experts

ExpertsBackend = Callable[[nn.Module, torch.Tensor, torch.Tensor, torch.Tensor], torch.Tensor]

# Below so many slots a GPU gathers the weights of each, as transformers does when it generates.
FEW_SLOTS = 64


def sorted_backend(
    module: nn.Module, x_TD: torch.Tensor, expert_TK: torch.Tensor, weight_TK: torch.Tensor
) -> torch.Tensor:
    """Pure PyTorch, any device, dtype, width and activation; packed weights where the module has them."""
    stack, activation = stack_of(module)
    if activation is None:
        return generic_experts(x_TD, expert_TK, weight_TK, stack, row_functions_of(module))
    packed = packed_stack_of(module, stack)
    # The packed copy is of one dtype and cannot be cast, not by autocast either.
    if packed is not None and x_TD.dtype == compute_dtype(x_TD, stack) == stack.up_EFD.dtype:
        return packed_experts(x_TD, expert_TK, weight_TK, packed, activation)
    return sorted_experts(x_TD, expert_TK, weight_TK, stack, activation)


def triton_backend(
    module: nn.Module, x_TD: torch.Tensor, expert_TK: torch.Tensor, weight_TK: torch.Tensor
) -> torch.Tensor:
    """This package's Triton kernels.

    Raises:
        BackendUnavailableError: Triton is absent, or the tensors are not on a GPU.
        ConfigError: the activation is none of `ACTIVATIONS`.
    """
    # The compiler cannot trace looking for a package, and the kernels themselves refuse what they cannot do.
    if not torch.compiler.is_compiling():
        _check_triton_runs(x_TD)
    # The kernels import Triton at their top, which only those may pay for who have it and use it.
    from moe_hf.ops.experts.triton.experts import triton_experts

    stack, activation = stack_of(module)
    return triton_experts(x_TD, expert_TK, weight_TK, stack, _known(activation, "triton", module))


def scattermoe_backend(
    module: nn.Module, x_TD: torch.Tensor, expert_TK: torch.Tensor, weight_TK: torch.Tensor
) -> torch.Tensor:
    """The kernels of the scattermoe package (Tan et al. 2024), version 0.3 or newer, which knows biases.

    Raises:
        BackendUnavailableError: the package is absent.
        ConfigError: the activation is none of `ACTIVATIONS`.
    """
    package = require("scattermoe", "experts_implementation='scattermoe'")
    stack, known = stack_of(module)
    activation = _known(known, "scattermoe", module)
    num_experts, k = len(stack.up_EFD), expert_TK.shape[1]
    # transformers 5.17 does not say whether a module's routes may have skipped slots.
    if getattr(module, "_is_expert_parallel", True):
        expert_TK, weight_TK = _without_skips(expert_TK, weight_TK, num_experts)
    order = package.flatten_sort_count(expert_TK, num_experts=num_experts)
    up_EDF, down_EFD = stack.up_EFD.transpose(1, 2), stack.down_EDF.transpose(1, 2)
    z_NF = package.parallel_linear(x_TD, up_EDF, k, *order, expert_biases=stack.up_bias_EF, grouped_out=True)
    return package.parallel_linear(
        activate(z_NF, activation),
        down_EFD,
        1,
        *order,
        expert_biases=stack.down_bias_ED,
        gates=weight_TK.to(x_TD.dtype),
        grouped_in=True,
    )


def auto_backend(
    module: nn.Module, x_TD: torch.Tensor, expert_TK: torch.Tensor, weight_TK: torch.Tensor
) -> torch.Tensor:
    """The backend for these tensors.

    Off CUDA "sorted". On CUDA transformers' "batched_mm" for few tokens without gradients and its "grouped_mm" for
    many, or "sorted" where the latter refuses the width or dtype, or knows nothing of autocast. "triton" is taken only
    by name, as long as its kernels have not been run and measured on a GPU.
    """
    if not x_TD.is_cuda:
        return sorted_backend(module, x_TD, expert_TK, weight_TK)
    stack, _ = stack_of(module)
    # (transformers 5.17 does not say it.)
    if not getattr(module, "_is_expert_parallel", False):
        # Both would read beyond the stacks at a skipped slot.
        expert_TK, weight_TK = _without_skips(expert_TK, weight_TK, len(stack.up_EFD))
    if expert_TK.numel() <= FEW_SLOTS and not torch.is_grad_enabled():
        return batched_mm_experts_forward(module, x_TD, expert_TK, weight_TK)
    # The grouped GEMM multiplies in the dtype of the weights, whatever autocast says.
    if grouped_mm_runs(stack) and compute_dtype(x_TD, stack) == stack.up_EFD.dtype:
        return grouped_mm_experts_forward(module, x_TD, expert_TK, weight_TK)
    return sorted_backend(module, x_TD, expert_TK, weight_TK)


EXPERTS_BACKENDS: Registry[ExpertsBackend] = Registry(
    "experts backend",
    {"auto": auto_backend, "scattermoe": scattermoe_backend, "sorted": sorted_backend, "triton": triton_backend},
)


def register_experts_backends(replace: bool = True) -> None:
    """Make `EXPERTS_BACKENDS` known to transformers, for any model's `experts_implementation`.

    Args:
        replace: also under names that are taken. An exported model, which brings its own copy of them, leaves those
            of the package or of another copy alone.
    """
    OWN_EXPERTS_FUNCTIONS.update(EXPERTS_BACKENDS)
    for name, backend in EXPERTS_BACKENDS.items():
        if replace or name not in ALL_EXPERTS_FUNCTIONS:
            ExpertsInterface.register(name, backend)


def grouped_mm_runs(stack: ExpertStack) -> bool:
    """Whether torch's grouped GEMM takes these weights: rows of whole 16 bytes, and not float64."""
    if stack.up_EFD.dtype not in (torch.float32, torch.bfloat16, torch.float16):
        return False
    return all(
        stride == 1 or stride * part.element_size() % 16 == 0
        for part in (stack.up_EFD, stack.down_EDF)
        for stride in part.stride()
    )


def _check_triton_runs(x_TD: torch.Tensor) -> None:
    require("triton", "experts_implementation='triton'")
    if x_TD.device.type == "cpu" and os.environ.get("TRITON_INTERPRET") != "1":
        raise BackendUnavailableError(
            f"experts_implementation='triton' needs tensors on a GPU, got {x_TD.device.type!r}; use 'sorted', or "
            "'auto', which picks by device (TRITON_INTERPRET=1 runs the kernels on a CPU, slowly, for tests)"
        )


def _known(activation: Activation | None, backend: str, module: nn.Module) -> Activation:
    if activation is None:
        raise ConfigError(
            f"experts_implementation={backend!r} needs one of the activations {', '.join(ACTIVATIONS)}, plainly gated "
            f"or not, which {type(module).__name__} has not; use 'auto' or 'sorted'"
        )
    return activation


def _without_skips(
    expert_TK: torch.Tensor, weight_TK: torch.Tensor, num_experts: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """The same routes for a backend that knows no skipped slots: these go to the last expert and weigh nothing."""
    skip_TK = expert_TK >= num_experts
    return expert_TK.clamp(max=num_experts - 1), weight_TK.masked_fill(skip_TK, 0)
