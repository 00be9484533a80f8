"""The choice between packages' kernels and our own code, where no GPU is."""

from collections.abc import Callable
from typing import Any

import pytest
import torch

from moe_hf.base.errors import BackendUnavailableError
from moe_hf.ops.sequence.backends import Kernel, disagreement, obstacle, pick_kernel
from moe_hf.ops.sequence.fla_scalar_decay import FLA_SCALAR_DECAY
from moe_hf.ops.sequence.fla_ssd import FLA_SSD
from moe_hf.ops.sequence.mamba_ssm_scan import MAMBA_SSM_SELECTIVE_SCAN, MAMBA_SSM_SSD
from moe_hf.ops.sequence.scalar_decay import scalar_decay
from moe_hf.ops.sequence.ssd import ssd

CPU = torch.device("cpu")


FLA = FLA_SCALAR_DECAY._replace(run=scalar_decay)


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


def wrong_output(*args: Any, **kwargs: Any) -> Any:
    out, state = scalar_decay(*args, **kwargs)
    return 1.1 * out, state


def wrong_state(*args: Any, **kwargs: Any) -> Any:
    out, state = scalar_decay(*args, **kwargs)
    return out, None if state is None else 1.1 * state


def wrong_gradient(query: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
    return scalar_decay(1.1 * query - 0.1 * query.detach(), *args, **kwargs)


def no_gradient(*args: Any, **kwargs: Any) -> Any:
    return scalar_decay(*(x.detach() for x in args), **kwargs)


def test_what_agrees_is_taken_wherever_it_is_first_asked_for() -> None:
    assert disagreement(FLA, CPU) is None
    with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16):
        assert disagreement(FLA, CPU) is None


@pytest.mark.parametrize(
    ("run", "text"),
    [
        (wrong_output, "output, relative difference 1.0e-01"),
        (wrong_state, "final state, relative difference 1.0e-01"),
        (wrong_gradient, "gradient, relative difference 1.0e-01"),
        (no_gradient, "fails at the recurrence with scalar decay: RuntimeError"),
    ],
)
def test_what_differs_in_output_state_or_gradient_is_refused(run: Callable[..., Any], text: str) -> None:
    assert text in str(disagreement(FLA._replace(run=run), CPU))


def test_an_example_that_fails_is_an_obstacle() -> None:
    def example(device: torch.device) -> Any:
        raise ValueError("no numbers")

    assert "ValueError: no numbers" in str(disagreement(FLA._replace(example=example), CPU))


@pytest.mark.parametrize(
    "kernel",
    [FLA_SCALAR_DECAY, FLA_SSD, MAMBA_SSM_SELECTIVE_SCAN, MAMBA_SSM_SSD],
    ids=lambda kernel: f"{kernel.package}: {kernel.op}",
)
def test_examples_do_not_depend_on_the_default_device(kernel: Kernel) -> None:
    expected, _ = kernel.example(CPU)
    with torch.device("meta"):
        args, _ = kernel.example(CPU)
    assert all(map(torch.equal, args, expected))


def test_the_compiler_sees_our_own_code_whatever_is_asked_for() -> None:
    args, kwargs = FLA.example(CPU)

    def chosen(*args: torch.Tensor) -> Any:
        return (ssd if pick_kernel("fla", (FLA,), CPU) else scalar_decay)(*args, **kwargs)[0]

    compiled = torch.compile(chosen, fullgraph=True, backend="eager")
    torch.testing.assert_close(compiled(*args), scalar_decay(*args, **kwargs)[0])
