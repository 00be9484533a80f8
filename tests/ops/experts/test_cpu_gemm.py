"""Linear layers on a CPU: the value is F.linear's whichever library computes it, and wherever it can."""

import os
import subprocess
import sys

import pytest
import torch
from torch.nn import functional as F

from moe_hf.ops.experts.activations import Activation, activate
from moe_hf.ops.experts.cpu_gemm import linear, linear_activated, onednn_available, onednn_wins

# Large enough for oneDNN in both types.
N, WIDTH, OUT = 144, 1024, 512
BIASES = {
    "none": lambda bias: None,
    "plain": lambda bias: bias[:OUT],
    "strided": lambda bias: bias[::2],
    "expanded": lambda bias: bias[:1].expand(OUT),
}


def draw(*shape: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(sum(shape))).to(dtype)


@pytest.mark.parametrize("transposed", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("kind", BIASES)
def test_any_bias_is_added_as_it_is(kind: str, dtype: torch.dtype, transposed: bool) -> None:
    x, bias = draw(N, WIDTH, dtype=dtype), BIASES[kind](3 * draw(2 * OUT, dtype=dtype))
    weight = (
        draw(WIDTH, OUT, dtype=dtype).mul_(WIDTH**-0.5).t()
        if transposed
        else draw(OUT, WIDTH, dtype=dtype).mul_(WIDTH**-0.5)
    )
    assert onednn_wins(x, weight) is onednn_available(dtype)
    tolerance = 1e-5 if dtype == torch.float32 else 8e-2
    expected = F.linear(x.double(), weight.double(), None if bias is None else bias.double())
    torch.testing.assert_close(linear(x, weight, bias).double(), expected, rtol=0, atol=tolerance)
    for activation in (Activation("gelu_tanh"), Activation("relu2"), Activation("silu", "concatenated")):
        found = linear_activated(x, weight, bias, activation)
        torch.testing.assert_close(found.double(), activate(expected, activation), rtol=2e-2, atol=4 * tolerance)


@pytest.mark.skipif(not onednn_available(torch.float32), reason="this PyTorch has no oneDNN")
def test_the_user_may_turn_onednn_off(monkeypatch: pytest.MonkeyPatch) -> None:
    x, weight = draw(N, WIDTH), draw(OUT, WIDTH)
    assert onednn_wins(x, weight)
    assert not onednn_wins(x.double(), weight.double())
    assert not onednn_available(torch.float16)
    monkeypatch.setattr(torch.backends.mkldnn, "enabled", False)
    assert not onednn_wins(x, weight)
    torch.testing.assert_close(linear(x, weight), F.linear(x, weight))


# oneDNN reads the variable once, before its first product.
WITHOUT_BFLOAT16 = """
import torch
from moe_hf.base.errors import ConfigError
from moe_hf.ops.experts.activations import Activation
from moe_hf.ops.experts.cpu_gemm import onednn_available
from moe_hf.ops.experts.expert_parts import ExpertStack
from moe_hf.ops.experts.reference import reference_experts
from moe_hf.ops.experts.packed import pack_stack
from moe_hf.ops.experts.sorted_experts import sorted_experts

torch.manual_seed(0)
plain = ExpertStack(torch.randn(2, 512, 1024) / 32, torch.randn(2, 1024, 512) / 22)
x, expert, weight = torch.randn(144, 1024), torch.arange(2).repeat(144, 1), torch.rand(144, 2)
expected = reference_experts(x, expert, weight, plain, Activation("gelu_tanh"))


def check(x, stack):
    leaves = [part.detach().requires_grad_() for part in stack[:2]]
    out = sorted_experts(x, expert, weight, ExpertStack(*leaves), Activation("gelu_tanh"))
    out.float().sum().backward()
    with torch.no_grad():
        few = sorted_experts(x[:3], expert[:3], weight[:3], stack, Activation("gelu_tanh"))
    torch.testing.assert_close(out.float(), expected, rtol=0, atol=0.1)
    torch.testing.assert_close(few.float(), expected[:3], rtol=0, atol=0.1)


half = ExpertStack(*(part.bfloat16() for part in plain[:2]))
check(x.bfloat16(), half)
with torch.autocast("cpu", dtype=torch.bfloat16):
    check(x, plain)
check(x, plain)
if not onednn_available(torch.bfloat16):
    try:
        pack_stack(half)
    except ConfigError as error:
        print(error)
"""


@pytest.mark.skipif(not onednn_available(torch.float32), reason="this PyTorch has no oneDNN")
def test_bfloat16_runs_on_cpus_for_which_onednn_has_no_bfloat16() -> None:
    environment = {**os.environ, "ONEDNN_MAX_CPU_ISA": "AVX2", "OMP_NUM_THREADS": "1"}
    run = subprocess.run(
        [sys.executable, "-c", WITHOUT_BFLOAT16], env=environment, capture_output=True, text=True, timeout=300
    )
    assert run.returncode == 0, run.stderr
    assert "torch.bfloat16 with oneDNN on this CPU" in run.stdout
