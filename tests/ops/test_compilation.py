"""Compiles the kernels for an H200 without having one: the compiler knows what the interpreter does not."""

import contextlib
import io
import re
from typing import NamedTuple

import pytest
import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.runtime import driver
from triton.runtime.jit import JITFunction

import moe_hf.ops.experts.triton.experts
import moe_hf.ops.routing.triton.routing  # noqa: F401
from moe_hf.ops.experts.activations import GATES

pytestmark = pytest.mark.slow

# What one block may use on compute capability 9.0.
SHARED_BYTES = 227 * 1024


class Utils:
    def get_device_properties(self, device):
        return {"max_shared_mem": SHARED_BYTES}


class AbsentH200:
    """As much of Triton's driver as compiling asks for."""

    utils = Utils()

    def get_current_target(self):
        return GPUTarget("cuda", 90, 32)

    def get_current_device(self):
        return 0

    def get_current_stream(self, device=None):
        return 0


class Compiled(NamedTuple):
    name: str
    shared: int
    spilled: int
    ptx: str


@pytest.fixture
def compiled(monkeypatch, tmp_path):
    """What was compiled instead of launched, in order."""
    kernels = []
    compile_and_launch = JITFunction.run

    def only_compile(self, *args, grid, warmup, **kwargs):
        log = io.StringIO()
        with contextlib.redirect_stdout(log):
            kernel = compile_and_launch(self, *args, grid=grid, warmup=True, **kwargs)
        spilled = sum(map(int, re.findall(r"(\d+) bytes spill stores", log.getvalue())))
        kernels.append(Compiled(self.fn.__name__, kernel.metadata.shared, spilled, kernel.asm["ptx"]))

    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    monkeypatch.setenv("MOE_HF_TRITON_AUTOTUNE", "0")
    monkeypatch.setattr(triton.knobs.nvidia, "dump_ptxas_log", True)
    monkeypatch.setattr(JITFunction, "run", only_compile)
    driver.set_active(AbsentH200())
    yield kernels
    # Triton looks for a real one when it is next asked.
    driver.set_active(None)


def compile_experts(tokens, gate="none", width=768, inner=3072, experts=8, dtype=torch.bfloat16, backward=True):
    def empty(*shape, dtype=dtype):
        return torch.empty(*shape, dtype=dtype, requires_grad=backward)

    up_width = inner if gate == "none" else 2 * inner
    out_TD, *_ = torch.ops.moe_hf.triton_experts(
        empty(tokens, width),
        empty(tokens, 2, dtype=torch.float32),
        empty(experts, up_width, width),
        empty(experts, width, inner),
        empty(experts, up_width),
        empty(experts, width),
        torch.zeros(tokens, 2, dtype=torch.int64),
        "gelu_tanh",
        gate,
        backward,
        [],
    )
    if backward:
        out_TD.backward(torch.empty_like(out_TD))


@pytest.mark.parametrize("gate", ["none", "concatenated"])
@pytest.mark.parametrize("tokens", [16, 512, 16384])
def test_default_tiles_fit_the_chip_and_keep_to_registers(tokens, gate, compiled):
    compile_experts(tokens, gate)
    assert {kernel.name for kernel in compiled} >= {"_up_kernel", "_hidden_gradient_kernel", "_weight_gradient_kernel"}
    for kernel in compiled:
        assert kernel.shared <= SHARED_BYTES
        # A few words around the loop do no harm; tiles that do not fit spill thousands.
        assert kernel.spilled <= 64, kernel.name


@pytest.mark.parametrize("tokens", [512, 16384])
def test_large_gemms_use_hoppers_tensor_cores_and_wide_asynchronous_copies(tokens, compiled):
    compile_experts(tokens)
    gemms = [kernel for kernel in compiled if kernel.shared > 16 * 1024]
    assert len(gemms) >= 5
    for kernel in gemms:
        assert "wgmma.mma_async" in kernel.ptx, kernel.name
        assert re.search(r"cp\.async\.cg\.shared\.global[^;]*0x10", kernel.ptx), kernel.name


@pytest.mark.parametrize("gate", GATES)
def test_other_types_and_odd_widths_compile(gate, compiled):
    compile_experts(40, gate, width=50, inner=77, experts=3, dtype=torch.float16)
    compile_experts(1, gate, width=1, inner=1, experts=1, dtype=torch.float32)
    assert all(kernel.shared <= SHARED_BYTES for kernel in compiled)


def test_decoding_takes_five_launches(compiled):
    compile_experts(8, width=1024, inner=4096, experts=16, backward=False)
    assert [kernel.name for kernel in compiled] == [
        "_sort_few_kernel",
        "_tile_map_kernel",
        "_up_kernel",
        "_rows_kernel",
        "_combine_kernel",
    ]


@pytest.mark.parametrize("shape", [(16384, 128, 8), (16384, 8, 2), (3, 512, 16)])
def test_the_router_keeps_to_registers(shape, compiled):
    num_tokens, num_experts, k = shape
    logits_TE = torch.empty(num_tokens, num_experts, requires_grad=True)
    for normalize in (True, False):
        weight_TK, _ = torch.ops.moe_hf.triton_top_k_routing(logits_TE, k, normalize)
        weight_TK.sum().backward()
    assert {kernel.name for kernel in compiled} == {"_route_kernel", "_route_backward_kernel"}
    assert all(kernel.spilled == 0 for kernel in compiled)
