"""The choice between packages' kernels and our own code, where no GPU is."""

from typing import Any

import pytest
import torch

from moe_hf.base.errors import BackendUnavailableError
from moe_hf.ops.mixer_backends import Kernel, obstacle, pick_kernel
from moe_hf.ops.short_conv import token_shift

CPU = torch.device("cpu")


def example(device: torch.device) -> tuple[tuple[Any, ...], dict[str, Any]]:
    return (torch.ones(2, 3, 4, device=device),), {}


FLA = Kernel("fla", "a shift", token_shift, token_shift, example)


def test_our_own_code_is_taken_on_a_cpu() -> None:
    assert pick_kernel("auto", (FLA,), CPU) is None
    assert pick_kernel("torch", (FLA,), CPU) is None


def test_a_package_by_name_says_why_it_cannot_run() -> None:
    with pytest.raises(BackendUnavailableError, match="mixer_backend='fla' cannot be used: fla runs on CUDA only"):
        pick_kernel("fla", (FLA,), CPU)


def test_a_package_without_the_op_leaves_it_to_ours() -> None:
    assert pick_kernel("mamba_ssm", (FLA,), CPU) is None


def test_an_absent_package_is_named_with_the_way_to_get_it() -> None:
    if torch.cuda.is_available():
        pytest.skip("what is installed beside a GPU is not known here")
    assert "pip install" in str(obstacle(FLA, torch.device("cuda")))
