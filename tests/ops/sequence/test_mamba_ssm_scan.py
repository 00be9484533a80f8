"""What is handed to mamba-ssm's functions and what becomes of their answers, by stand-ins of their documented shapes.

The package computes on GPUs only: what can be tested without one is that its layouts and ours meet.
"""

from types import ModuleType
from typing import Any

import pytest
import torch

from moe_hf.base.errors import BackendUnavailableError
from moe_hf.ops.sequence import mamba_ssm_scan
from moe_hf.ops.sequence.backends import Kernel, pick_kernel
from moe_hf.ops.sequence.mamba_ssm_scan import MAMBA_SSM_SELECTIVE_SCAN, MAMBA_SSM_SSD

KERNELS = (MAMBA_SSM_SELECTIVE_SCAN, MAMBA_SSM_SSD)


def selective_scan_fn(
    u, delta, A, B, C, D=None, z=None, delta_bias=None, delta_softplus=False, return_last_state=False
):
    """(B, D, L) in and out, B and C of (B, N, L), the last state (B, D, N); it neither takes a state nor documents."""
    assert u.dtype == delta.dtype == B.dtype == C.dtype
    state, outputs = u.new_zeros(*u.shape[:2], A.shape[1]), []
    for t in range(u.shape[2]):
        state = state * torch.exp(delta[:, :, t, None] * A) + (delta * u)[:, :, t, None] * B[:, None, :, t]
        outputs.append((state * C[:, None, :, t]).sum(-1))
    return torch.stack(outputs, dim=2), state


def mamba_chunk_scan_combined(
    x,
    dt,
    A,
    B,
    C,
    chunk_size,
    D=None,
    z=None,
    dt_bias=None,
    initial_states=None,
    seq_idx=None,
    return_final_states=False,
):
    """(B, L, H, P) in and out, dt of (B, L, H), B and C of (B, L, G, N), states of (B, H, P, N)."""
    batch, length, heads, width = x.shape
    B, C = (part.repeat_interleave(heads // part.shape[2], dim=2) for part in (B, C))
    state = x.new_zeros(batch, heads, width, B.shape[-1]) if initial_states is None else initial_states
    document, outputs = torch.zeros(batch, dtype=torch.int32), []
    for t in range(length):
        if seq_idx is not None:
            state = state * (seq_idx[:, t] == document)[:, None, None, None]
            document = seq_idx[:, t]
        added = (dt[:, t, :, None] * x[:, t])[..., None] * B[:, t, :, None, :]
        state = state * torch.exp(dt[:, t] * A)[..., None, None] + added
        outputs.append((state * C[:, t, :, None, :]).sum(-1))
    return torch.stack(outputs, dim=1), state


@pytest.fixture(autouse=True)
def stand_in(monkeypatch: pytest.MonkeyPatch) -> None:
    """The package's modules, with the two functions in them."""
    scan, combined = ModuleType("scan"), ModuleType("combined")
    vars(scan)["selective_scan_fn"] = selective_scan_fn
    vars(combined)["mamba_chunk_scan_combined"] = mamba_chunk_scan_combined
    modules = {
        "mamba_ssm.ops.selective_scan_interface": scan,
        "mamba_ssm.ops.triton.ssd_combined": combined,
    }
    monkeypatch.setattr(mamba_ssm_scan, "require", lambda name, purpose: ModuleType(name))
    monkeypatch.setattr(mamba_ssm_scan.importlib, "import_module", modules.__getitem__)


def arguments(kernel: Kernel) -> tuple[Any, ...]:
    return kernel.example(torch.device("cpu"))[0]


@pytest.mark.parametrize("kernel", KERNELS, ids=lambda kernel: kernel.op)
@pytest.mark.parametrize("names", [(), ("initial_state",), ("mask_BS",), ("starts_BS",), ("initial_state", "mask_BS")])
def test_kernels_are_called_so_that_they_give_what_ours_give(kernel: Kernel, names: tuple[str, ...]) -> None:
    args = arguments(kernel)
    with torch.no_grad():
        state = torch.randn_like(kernel.ours(*args)[1])
        starts = torch.arange(140).view(2, 70) % 23 == 5
        options = {"initial_state": state, "mask_BS": torch.arange(140).view(2, 70) % 7 != 3, "starts_BS": starts}
        chosen = {name: options[name] for name in names}
        for ours, theirs in zip(kernel.ours(*args, **chosen), kernel.run(*args, **chosen), strict=True):
            assert (ours - theirs).norm() <= 1e-5 * ours.norm()


@pytest.mark.parametrize("kernel", KERNELS, ids=lambda kernel: kernel.op)
def test_what_stands_at_padding_neither_is_read_nor_begins_a_document(kernel: Kernel) -> None:
    args, mask = arguments(kernel), torch.arange(140).view(2, 70) % 7 != 3
    starts = torch.arange(140).view(2, 70) % 23 == 5
    starts[0, 10] = starts[1, 68] = True
    assert not mask[starts].all()
    for options in ({}, {"starts_BS": starts}):
        with torch.no_grad():
            expected, last = kernel.ours(*args, mask_BS=mask, **options)
            u = args[0].masked_fill(~mask.view(2, 70, *[1] * (args[0].ndim - 2)), torch.nan)
            out, state = kernel.run(u, *args[1:], mask_BS=mask, **options)
        torch.testing.assert_close(out[mask], expected[mask], rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(state, last, rtol=1e-4, atol=1e-4)


def test_a_last_state_that_must_have_a_gradient_is_not_left_to_the_kernel() -> None:
    # Its backward pass ignores the gradient of the last state.
    u, *others = arguments(MAMBA_SSM_SELECTIVE_SCAN)
    u.requires_grad_()
    _, state = MAMBA_SSM_SELECTIVE_SCAN.run(u, *others)
    assert "moe_hf_selective_scan" in state.grad_fn.name()


def test_half_precision_inputs_give_half_precision_outputs() -> None:
    u, delta, a, b, c = arguments(MAMBA_SSM_SELECTIVE_SCAN)
    with torch.no_grad():
        y, state = MAMBA_SSM_SELECTIVE_SCAN.run(u.bfloat16(), delta, a, b.bfloat16(), c.bfloat16())
    assert (y.dtype, state.dtype) == (torch.bfloat16, torch.float32)


def test_by_name_it_is_refused_where_there_is_no_gpu() -> None:
    for kernel in KERNELS:
        assert pick_kernel("auto", (kernel,), torch.device("cpu")) is None
        with pytest.raises(BackendUnavailableError, match="runs on CUDA only"):
            pick_kernel("mamba_ssm", (kernel,), torch.device("cpu"))
