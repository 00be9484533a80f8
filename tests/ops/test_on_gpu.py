"""What neither the interpreter nor the compiler can tell: pytest -m gpu tests/ops"""

from collections.abc import Iterator

import pytest
import torch

from moe_hf.ops.experts.activations import Activation
from moe_hf.ops.experts.expert_parts import ExpertStack
from moe_hf.ops.experts.reference import reference_experts
from moe_hf.ops.experts.triton import tiles
from moe_hf.ops.experts.triton.experts import triton_experts
from moe_hf.ops.routing.routing import top_k_routing
from moe_hf.ops.routing.triton.routing import triton_top_k_routing

pytestmark = pytest.mark.gpu


@pytest.fixture(autouse=True)
def own_cache(monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory) -> None:
    """Timed tiles are shared by the tests of one run and leave the user's own alone."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.getbasetemp()))


@pytest.fixture
def no_host_synchronisation() -> Iterator[None]:
    """Sets torch to raise on one; to be asked for by tests that have warmed up by hand."""
    yield
    torch.cuda.set_sync_debug_mode("default")


def problem(device, tokens, width, inner, experts, k, gate="none", dtype=torch.bfloat16, skipped=0.05):
    """Leaves (x, routing weights in float32, stack) and experts chosen unevenly, some slots skipped."""
    torch.manual_seed(0)
    up_width = inner if gate == "none" else 2 * inner
    leaves = [
        torch.randn(tokens, width, device=device),
        torch.rand(tokens, k, device=device),
        torch.randn(experts, up_width, width, device=device) * width**-0.5,
        torch.randn(experts, width, inner, device=device) * inner**-0.5,
        torch.randn(experts, up_width, device=device),
        torch.randn(experts, width, device=device),
    ]
    expert_TK = (torch.rand(tokens, experts, device=device) ** 2 + torch.linspace(0, 1, experts, device=device)).topk(
        k
    )[1]
    expert_TK[torch.rand(tokens, k, device=device) < skipped] = experts
    return [leaf if index == 1 else leaf.to(dtype) for index, leaf in enumerate(leaves)], expert_TK


def run(function, leaves, expert_TK, activation):
    """The output and all gradients."""
    leaves = [leaf.detach().requires_grad_() for leaf in leaves]
    x_TD, weight_TK, *stack = leaves
    out_TD = function(x_TD, expert_TK, weight_TK, ExpertStack(*stack), activation)
    generator = torch.Generator(x_TD.device).manual_seed(1)
    dout_TD = torch.randn(out_TD.shape, device=x_TD.device, generator=generator).to(out_TD.dtype)
    return [out_TD.detach(), *torch.autograd.grad(out_TD, leaves, dout_TD)]


SHAPES = [
    {"tokens": 4096, "width": 768, "inner": 3072, "experts": 8, "k": 2},
    {"tokens": 2048, "width": 1024, "inner": 256, "experts": 64, "k": 8},
    {"tokens": 1000, "width": 200, "inner": 136, "experts": 5, "k": 3},
    {"tokens": 8, "width": 1024, "inner": 4096, "experts": 16, "k": 2},
    {"tokens": 1, "width": 512, "inner": 512, "experts": 4, "k": 1},
    {"tokens": 300, "width": 77, "inner": 51, "experts": 3, "k": 2},
]


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("activation", [Activation("gelu_tanh"), Activation("silu", "concatenated")], ids=str)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_as_near_to_float32_as_the_reference(dtype, activation, shape, device, poisoned_memory):
    leaves, expert_TK = problem(device, **shape, gate=activation.gate, dtype=dtype)
    exact = run(reference_experts, [leaf.float() for leaf in leaves], expert_TK, activation)
    rounded = run(reference_experts, leaves, expert_TK, activation)
    own = run(triton_experts, leaves, expert_TK, activation)
    for result, reference, truth in zip(own, rounded, exact, strict=True):
        assert result.dtype == reference.dtype
        # Of few numbers one can be off by a rounding more than the reference happens to be.
        slack = torch.finfo(dtype).eps if result.numel() < 100 else 0.0
        assert (result - truth).norm() <= 1.25 * (reference - truth).norm() + slack * truth.norm()


@pytest.mark.parametrize("shape", SHAPES[1:], ids=str)
@pytest.mark.parametrize("gate", ["none", "interleaved"])
def test_float32_equals_the_reference(gate, shape, device, poisoned_memory):
    leaves, expert_TK = problem(device, **shape, gate=gate, dtype=torch.float32)
    wanted = run(reference_experts, leaves, expert_TK, Activation("gelu", gate))
    for own, reference in zip(run(triton_experts, leaves, expert_TK, Activation("gelu", gate)), wanted, strict=True):
        torch.testing.assert_close(own, reference, rtol=0, atol=1e-5 * reference.abs().max().item() + 1e-7)


def test_transposed_stacks(device, poisoned_memory):
    leaves, expert_TK = problem(device, **SHAPES[0])
    wanted = run(triton_experts, leaves, expert_TK, Activation("gelu"))
    leaves[2:4] = [matrix.mT.contiguous().mT for matrix in leaves[2:4]]
    results = run(triton_experts, leaves, expert_TK, Activation("gelu"))
    for own, reference in zip(results, wanted, strict=True):
        torch.testing.assert_close(own, reference, rtol=0, atol=1e-2 * reference.abs().max().item())
    assert results[3].stride() == leaves[2].stride()


def test_runs_repeat_bit_by_bit(device):
    leaves, expert_TK = problem(device, **SHAPES[0])
    first = run(triton_experts, leaves, expert_TK, Activation("gelu"))
    for _ in range(5):
        again = run(triton_experts, leaves, expert_TK, Activation("gelu"))
        assert all(torch.equal(one, other) for one, other in zip(first, again, strict=True))


@pytest.mark.parametrize("shape", [SHAPES[0], SHAPES[3]], ids=str)
def test_nothing_waits_for_the_device(shape, device, no_host_synchronisation):
    leaves, expert_TK = problem(device, **shape)
    run(triton_experts, leaves, expert_TK, Activation("gelu"))
    logits_TE = torch.randn(shape["tokens"], shape["experts"], device=device, requires_grad=True)
    triton_top_k_routing(logits_TE, shape["k"]).weight_TK.sum().backward()
    torch.cuda.set_sync_debug_mode("error")
    # From here on whatever waits for the device raises.
    assert torch.cuda.get_sync_debug_mode() == 2
    run(triton_experts, leaves, expert_TK, Activation("gelu"))
    triton_top_k_routing(logits_TE, shape["k"]).weight_TK.sum().backward()


@pytest.mark.parametrize("tokens", [1, 8, 100])
def test_a_captured_layer_follows_new_tokens_and_routes(tokens, device):
    (x_TD, _, *stack), _ = problem(device, tokens=tokens, width=1024, inner=2048, experts=16, k=2)
    stack, activation = ExpertStack(*stack), Activation("gelu_tanh")
    logits_TE = torch.randn(tokens, 16, device=device)

    def layer():
        weight_TK, expert_TK = triton_top_k_routing(logits_TE, 2)
        return triton_experts(x_TD, expert_TK, weight_TK, stack, activation)

    with torch.no_grad():
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            layer()
        torch.cuda.current_stream().wait_stream(stream)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            out_TD = layer()
        for _ in range(3):
            x_TD.copy_(torch.randn_like(x_TD))
            logits_TE.copy_(3 * torch.randn_like(logits_TE))
            graph.replay()
            assert torch.equal(out_TD, layer())


@pytest.mark.parametrize("shape", [(16384, 128, 8), (4096, 8, 2), (7, 512, 16), (1, 64, 6)])
@pytest.mark.parametrize("normalize", [True, False])
def test_the_router_equals_the_reference(normalize, shape, device, poisoned_memory):
    torch.manual_seed(0)
    num_tokens, num_experts, k = shape
    # Distinct logits within a row, far enough apart that float32 probabilities cannot tie.
    order_TE = torch.rand(num_tokens, num_experts, device=device).argsort(dim=-1)
    logits_TE = (8 * order_TE / num_experts).requires_grad_()
    dweight_TK = torch.randn(num_tokens, k, device=device)
    results = []
    for function in (top_k_routing, triton_top_k_routing):
        weight_TK, expert_TK = function(logits_TE, k, normalize)
        results.append((expert_TK, weight_TK, *torch.autograd.grad(weight_TK, logits_TE, dweight_TK)))
    (expert, *wanted), (own_expert, *own) = results
    assert torch.equal(own_expert, expert)
    for result, reference in zip(own, wanted, strict=True):
        torch.testing.assert_close(result, reference, rtol=1e-5, atol=1e-6)


def test_timed_tiles_are_found_again_by_the_next_process(device, monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(tiles, "_remembered", {})
    leaves, expert_TK = problem(device, **SHAPES[3])
    wanted = run(triton_experts, leaves, expert_TK, Activation("gelu"))
    timed = tiles.read_tiles(tiles.cache_file())
    assert len(timed) >= 5
    # As a new process would: nothing remembered, the file alone.
    monkeypatch.setattr(tiles, "_remembered", {})
    monkeypatch.setattr(tiles, "_milliseconds", lambda launch, cut: pytest.fail("timed again"))
    results = run(triton_experts, leaves, expert_TK, Activation("gelu"))
    assert all(torch.equal(one, other) for one, other in zip(results, wanted, strict=True))


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
def test_inductor_compiles_the_experts_as_one_graph(device):
    leaves, expert_TK = problem(device, **SHAPES[2])

    def layer(*args):
        return triton_experts(*args).square()

    def eager(*args):
        return layer(*args)

    compiled = torch.compile(layer, fullgraph=True)
    wanted = run(eager, leaves, expert_TK, Activation("gelu"))
    for own, reference in zip(run(compiled, leaves, expert_TK, Activation("gelu")), wanted, strict=True):
        torch.testing.assert_close(own, reference, rtol=2e-2, atol=1e-2 * reference.abs().max().item())


@pytest.mark.slow
def test_more_numbers_than_32_bits_count(device):
    (x_TD, weight_TK, *stack), expert_TK = problem(device, tokens=300_000, width=512, inner=4096, experts=8, k=2)
    assert expert_TK.numel() * 4096 > 2**31
    leaves = [leaf.requires_grad_() for leaf in (x_TD, weight_TK, *stack)]
    stack = ExpertStack(*stack)
    out_TD = triton_experts(x_TD, expert_TK, weight_TK, stack, Activation("gelu"))
    last = slice(-64, None)
    # A loss of the last tokens alone: their gradients are those of a batch without the others.
    gradients = torch.autograd.grad(out_TD[last].float().square().sum(), leaves)
    few_TD = triton_experts(x_TD[last], expert_TK[last], weight_TK[last], stack, Activation("gelu"))
    wanted = torch.autograd.grad(few_TD.float().square().sum(), leaves)
    torch.testing.assert_close(out_TD[last], few_TD, rtol=0, atol=5e-2)
    for own, reference in zip(gradients, wanted, strict=True):
        torch.testing.assert_close(own, reference, rtol=0, atol=2e-2 * reference.abs().max().item())


@pytest.mark.multigpu
@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two GPUs")
def test_tensors_may_lie_on_another_device_than_the_current_one():
    leaves, expert_TK = problem(torch.device("cuda:1"), **SHAPES[2])
    results = run(triton_experts, leaves, expert_TK, Activation("gelu"))
    with torch.cuda.device(1):
        wanted = run(triton_experts, leaves, expert_TK, Activation("gelu"))
    assert all(torch.equal(one, other) for one, other in zip(results, wanted, strict=True))
