"""Sorted experts: the reference's values and gradients, at every edge, and what they cost."""

import math
from typing import ClassVar

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from moe_hf.ops.experts import expert_parts
from moe_hf.ops.experts import few_tokens as few_tokens_experts
from moe_hf.ops.experts.activations import ACTIVATIONS, GATES, Activation
from moe_hf.ops.experts.generic import RowFunctions, generic_experts
from moe_hf.ops.experts.packed import pack_stack, packed_experts
from moe_hf.ops.experts.reference import ExpertStack, reference_experts
from moe_hf.ops.experts.sorted_experts import sorted_experts

T, D, E, K, F = 13, 10, 5, 2, 7
# What rounding alone does to sums of this length, relative to the largest entry; half precision against float32.
TOLERANCE = {torch.float64: 1e-12, torch.float32: 3e-6, torch.bfloat16: 2e-2, torch.float16: 4e-3}


def stack_for(
    activation: Activation, biased: bool = True, transposed: bool = False, dtype=torch.float32
) -> ExpertStack:
    generator = torch.Generator().manual_seed(1)

    def draw(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=generator).mul_(0.3).to(dtype)

    up = F if activation.gate == "none" else 2 * F
    weights = [draw(E, D, up).mT, draw(E, F, D).mT] if transposed else [draw(E, up, D), draw(E, D, F)]
    return ExpertStack(*weights, *([draw(E, up), draw(E, D)] if biased else [None, None]))


def routes(kind: str = "random", tokens: int = T) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(2)
    expert = torch.rand(tokens, E, generator=generator).topk(K).indices
    if kind == "one expert":
        expert = torch.full((tokens, K), 3)
    if kind == "skips":
        expert[::2, 1], expert[-1] = E, E
    if kind == "one skip":
        expert[0, 0] = E
    if kind == "nothing":
        expert = torch.full((tokens, K), E)
    return expert, torch.rand(tokens, K, generator=generator) + 0.1


def tokens_for(tokens: int = T, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.randn(tokens, D, generator=torch.Generator().manual_seed(3)).to(dtype)


def value_and_gradients(function, x, expert, weight, stack, activation) -> dict[str, torch.Tensor]:
    leaves = {"x": x, "weight": weight, **stack._asdict()}
    leaves = {name: part.detach().requires_grad_() for name, part in leaves.items() if part is not None}
    parts = ExpertStack(*(leaves.get(name) for name in ExpertStack._fields))
    out = function(leaves["x"], expert, leaves["weight"], parts, activation)
    # A fixed, uneven direction, so that no gradient cancels.
    if out.requires_grad:
        # (The reference is cut off from its inputs where it visits nobody.)
        out.backward(torch.linspace(-1, 1, out.numel()).view_as(out).to(out.dtype))
    gradients = {name: torch.zeros_like(leaf) if leaf.grad is None else leaf.grad for name, leaf in leaves.items()}
    return {**gradients, "out": out.detach()}


def assert_equal_within(found: dict[str, torch.Tensor], expected: dict[str, torch.Tensor], tolerance: float) -> None:
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        scale = max(value.abs().max().item() if value.numel() else 0, 1e-3)
        torch.testing.assert_close(
            found[name].to(value.dtype),
            value,
            atol=tolerance * scale,
            rtol=0,
            msg=lambda text, name=name: f"{name}: {text}",
        )


# The bytes that a chunk and a group may have; a row has 10 float32 numbers.
CHUNKING = {
    "whole": (2**20, 2**20),
    "one by one": (2**20, 0),
    "groups of nine rows": (2**20, 9 * 40),
    "chunks of three rows": (3 * 40, 0),
    "groups of chunks": (3 * 40, 9 * 40),
}


@pytest.fixture(params=CHUNKING)
def chunking(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, limit in zip(("CHUNK_BYTES", "GROUP_BYTES"), CHUNKING[request.param], strict=True):
        monkeypatch.setattr(expert_parts, name, limit)


@pytest.mark.parametrize("kind", ["random", "one expert", "skips", "one skip", "nothing"])
@pytest.mark.parametrize("tokens", [T, 1, 0])
@pytest.mark.usefixtures("chunking")
def test_equals_the_reference_for_all_routes(kind: str, tokens: int) -> None:
    activation = Activation("gelu_tanh")
    arguments = (tokens_for(tokens), *routes(kind if tokens else "random", tokens), stack_for(activation), activation)
    expected = value_and_gradients(reference_experts, *arguments)
    assert_equal_within(value_and_gradients(sorted_experts, *arguments), expected, TOLERANCE[torch.float32])
    with torch.no_grad():
        assert_equal_within({"out": sorted_experts(*arguments)}, {"out": expected["out"]}, TOLERANCE[torch.float32])


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("gate", GATES)
@pytest.mark.parametrize("name", ACTIVATIONS)
@pytest.mark.parametrize(("biased", "transposed"), [(True, False), (False, True)])
def test_equals_the_reference_for_all_experts(name: str, gate: str, dtype, biased: bool, transposed: bool) -> None:
    activation = Activation(name, gate)
    x, (expert, weight) = tokens_for(dtype=dtype), routes("skips")
    weight = weight.to(torch.float64 if dtype == torch.float64 else torch.float32)
    stack = stack_for(activation, biased, transposed, dtype)
    found = value_and_gradients(sorted_experts, x, expert, weight, stack, activation)
    assert {name: value.dtype for name, value in found.items()} == {
        name: weight.dtype if name == "weight" else dtype for name in found
    }
    if dtype.itemsize == 2:
        x, stack = x.float(), ExpertStack(*(None if part is None else part.float() for part in stack))
    expected = value_and_gradients(reference_experts, x, expert, weight, stack, activation)
    assert_equal_within(found, expected, TOLERANCE[dtype])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", ["gelu", "gelu_tanh", "silu", "relu", "relu2"])
def test_large_products_equal_the_reference(name: str, dtype: torch.dtype) -> None:
    # Large enough for oneDNN, where the machine has it, and its fused activations.
    generator = torch.Generator().manual_seed(0)
    up, down = (torch.randn(2, 512, 512, generator=generator).mul_(0.04).to(dtype) for _ in range(2))
    stack = ExpertStack(up, down, torch.randn(2, 512, generator=generator).to(dtype))
    x = torch.randn(40, 512, generator=generator).to(dtype)
    expert, weight = torch.tensor([[0, 1]]).repeat(40, 1), torch.rand(40, 2, generator=generator)
    arguments = (x, expert, weight, stack, Activation(name))
    expected = value_and_gradients(reference_experts, *arguments)
    assert_equal_within(value_and_gradients(sorted_experts, *arguments), expected, 4 * TOLERANCE[dtype])
    with torch.no_grad():
        assert_equal_within({"out": sorted_experts(*arguments)}, {"out": expected["out"]}, 4 * TOLERANCE[dtype])
        packed = packed_experts(x, expert, weight, pack_stack(stack), Activation(name))
        assert_equal_within({"out": packed}, {"out": expected["out"]}, 4 * TOLERANCE[dtype])


def test_gradients_are_those_of_differences() -> None:
    activation = Activation("silu", "interleaved")
    expert, weight = routes("skips", 4)
    inputs = (tokens_for(4), weight, *stack_for(activation))
    torch.autograd.gradcheck(
        lambda x, weight, *parts: sorted_experts(x, expert, weight, ExpertStack(*parts), activation),
        tuple(tensor.double().requires_grad_() for tensor in inputs),
        fast_mode=True,
    )


@pytest.mark.parametrize("needed", ["x", "weight", *ExpertStack._fields])
def test_each_gradient_can_be_asked_for_alone(needed: str) -> None:
    activation = Activation("gelu")
    x, (expert, weight), stack = tokens_for(), routes(), stack_for(activation)
    expected = value_and_gradients(reference_experts, x, expert, weight, stack, activation)[needed]
    leaves = {"x": x, "weight": weight, **stack._asdict()}
    leaf = leaves[needed].requires_grad_()
    out = sorted_experts(x, expert, weight, stack, activation)
    out.backward(torch.linspace(-1, 1, out.numel()).view_as(out))
    assert [name for name, tensor in leaves.items() if tensor.grad is not None] == [needed]
    assert_equal_within({needed: leaf.grad}, {needed: expected}, TOLERANCE[torch.float32])


@pytest.mark.parametrize("function", [reference_experts, sorted_experts])
def test_strided_tokens_and_stacks_will_do(function) -> None:
    activation = Activation("gelu")
    (expert, weight), stack = routes(), stack_for(activation)
    x = tokens_for(2 * T).view(T, 2, D)[:, 1]
    strided = ExpertStack(*(torch.stack([part, part], dim=-1)[..., 0] for part in stack))
    assert not any(part.is_contiguous() for part in (x, *strided))
    expected = value_and_gradients(reference_experts, x.contiguous(), expert, weight, stack, activation)
    found = value_and_gradients(function, x, expert, weight, strided, activation)
    assert_equal_within(found, expected, TOLERANCE[torch.float32])


def test_an_expanded_gradient_will_do() -> None:
    activation = Activation("gelu")
    x = tokens_for().requires_grad_()
    sorted_experts(x, *routes(), stack_for(activation), activation).sum().backward()
    (expected,) = torch.autograd.grad(reference_experts(x, *routes(), stack_for(activation), activation).sum(), x)
    torch.testing.assert_close(x.grad, expected)


@pytest.mark.parametrize("weight_of_skipped", [math.nan, math.inf])
def test_what_a_skipped_slot_weighs_does_not_matter(weight_of_skipped: float) -> None:
    activation = Activation("relu")
    expert, weight = routes("skips")
    wild = weight.masked_fill(expert == E, weight_of_skipped)
    found = value_and_gradients(sorted_experts, tokens_for(), expert, wild, stack_for(activation), activation)
    expected = value_and_gradients(sorted_experts, tokens_for(), expert, weight, stack_for(activation), activation)
    assert_equal_within(found, expected, 0)


@pytest.mark.parametrize("tokens", [1, 4])
def test_decoding_forms_equal_the_reference(tokens: int, monkeypatch: pytest.MonkeyPatch) -> None:
    activation = Activation("silu", "concatenated")
    for kind in ("random", "skips", "one expert", "nothing"):
        for limit in (0, 2**20):
            monkeypatch.setattr(few_tokens_experts, "GATHERED_BYTES", limit)
            arguments = (tokens_for(tokens), *routes(kind, tokens), stack_for(activation), activation)
            with torch.no_grad():
                expected = reference_experts(*arguments)
                torch.testing.assert_close(sorted_experts(*arguments), expected)
                with torch.autocast("cpu", dtype=torch.bfloat16):
                    found = sorted_experts(*arguments)
            assert found.dtype == torch.float32
            assert_equal_within({"out": found}, {"out": expected}, TOLERANCE[torch.bfloat16])


def test_autocast_multiplies_in_its_dtype_and_keeps_master_gradients() -> None:
    activation = Activation("gelu")
    x, (expert, weight), stack = tokens_for(), routes(), stack_for(activation)
    with torch.autocast("cpu", dtype=torch.bfloat16), ProductDtypes() as products:
        found = value_and_gradients(sorted_experts, x, expert, weight, stack, activation)
        expected = value_and_gradients(reference_experts, x, expert, weight, stack, activation)
    assert products.seen == {torch.bfloat16}
    assert {value.dtype for value in found.values()} == {torch.float32}
    assert_equal_within(found, expected, TOLERANCE[torch.bfloat16])
    with torch.no_grad(), torch.autocast("cpu", dtype=torch.bfloat16):
        out = sorted_experts(x, expert, weight, stack, activation)
    assert_equal_within({"out": out}, {"out": expected["out"]}, TOLERANCE[torch.bfloat16])


class ProductDtypes(TorchDispatchMode):
    """Collects the dtypes that matrices are multiplied in, and counts the products."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: set[torch.dtype] = set()
        self.count = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        if function.overloadpacket.__name__ in ("mm", "addmm", "_linear_pointwise", "linear"):
            self.seen.add(args[-1].dtype if isinstance(args[-1], torch.Tensor) else args[0].dtype)
            self.count += 1
        return function(*args, **(kwargs or {}))


def test_experts_that_nobody_visits_cost_no_product_and_get_zero() -> None:
    activation = Activation("gelu")
    stack = stack_for(activation, biased=False)
    for part in stack[:2]:
        part[1:3] = math.nan
    weight = routes()[1]
    with ProductDtypes() as products:
        expert = torch.tensor([[0, 4]]).repeat(T, 1)
        found = value_and_gradients(sorted_experts, tokens_for(), expert, weight, stack, activation)
    # Up, down, and for the gradients of h, x, up and down: each once for each of two experts.
    assert products.count == 2 * 6
    for name in ("up_EFD", "down_EDF"):
        assert found[name][1:4].abs().max() == 0
        assert found[name][0].abs().max() > 0


def test_keeps_the_pre_activations_and_hardly_more() -> None:
    activation = Activation("gelu_tanh")
    x, (expert, weight), stack = tokens_for().requires_grad_(), routes(), stack_for(activation)
    given = {tensor.data_ptr() for tensor in (x, expert, weight, *stack)}
    kept = 0

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        nonlocal kept
        kept += 0 if tensor.data_ptr() in given else tensor.nbytes
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        sorted_experts(x, expert, weight, stack, activation)
    assert K * F * 4 <= kept / T <= K * F * 4 + 128


def test_makes_nothing_of_the_size_of_the_stacks_but_their_gradients() -> None:
    activation, many = Activation("gelu"), 64
    generator = torch.Generator().manual_seed(0)
    up, down = (torch.randn(many, 16, 16, generator=generator).requires_grad_() for _ in range(2))
    x, expert = torch.randn(T, 16, generator=generator), torch.randint(many, (T, K), generator=generator)

    class LargeOnes(TorchDispatchMode):
        # Held on to, so that no memory serves twice.
        storages: ClassVar[dict[int, torch.UntypedStorage]] = {}

        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            result = function(*args, **(kwargs or {}))
            if isinstance(result, torch.Tensor) and result.untyped_storage().nbytes() >= many * 16 * 4:
                self.storages[result.untyped_storage().data_ptr()] = result.untyped_storage()
            return result

    with LargeOnes() as large:
        out = sorted_experts(x, expert, torch.rand(T, K, generator=generator), ExpertStack(up, down), activation)
        out.sum().backward()
    given = {tensor.untyped_storage().data_ptr() for tensor in (up, down)}
    assert set(large.storages) - given == {tensor.grad.untyped_storage().data_ptr() for tensor in (up, down)}


def test_works_under_gradient_checkpointing() -> None:
    from torch.utils.checkpoint import checkpoint

    activation = Activation("gelu")
    arguments = (tokens_for(), *routes("skips"), stack_for(activation), activation)
    found = value_and_gradients(
        lambda *args: checkpoint(sorted_experts, *args, use_reentrant=False, preserve_rng_state=False), *arguments
    )
    assert_equal_within(found, value_and_gradients(sorted_experts, *arguments), 0)


def test_uninitialised_memory_never_shows(monkeypatch: pytest.MonkeyPatch) -> None:
    activation = Activation("silu", "concatenated")
    arguments = (tokens_for(), *routes("skips"), stack_for(activation), activation)
    expected = value_and_gradients(sorted_experts, *arguments)
    # Deterministic mode fills what torch.empty and its kin return with NaN.
    monkeypatch.setattr(torch.utils.deterministic, "fill_uninitialized_memory", True)
    torch.use_deterministic_algorithms(True)
    try:
        found = value_and_gradients(sorted_experts, *arguments)
    finally:
        torch.use_deterministic_algorithms(False)
    assert_equal_within(found, expected, 0)


@pytest.mark.parametrize("kind", ["random", "skips"])
def test_compiles_into_one_graph(kind: str) -> None:
    activation = Activation("gelu", "concatenated")
    arguments = (tokens_for(), *routes(kind), stack_for(activation), activation)
    compiled = torch.compile(sorted_experts, fullgraph=True, backend="aot_eager")
    expected = value_and_gradients(sorted_experts, *arguments)
    assert_equal_within(value_and_gradients(compiled, *arguments), expected, 0)
    with torch.no_grad():
        torch.testing.assert_close(compiled(*arguments), expected["out"])


def test_no_gradient_of_the_pre_activations_is_made_up() -> None:
    class Zeros(TorchDispatchMode):
        shapes: ClassVar[list[tuple[int, ...]]] = []

        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            result = function(*args, **(kwargs or {}))
            if "zeros" in function.overloadpacket.__name__:
                self.shapes.append(tuple(result.shape))
            return result

    x, (expert, weight), stack = tokens_for().requires_grad_(), routes(), stack_for(Activation("gelu"))
    # What torch.compile calls.
    out, z = torch.ops.moe_hf.sorted_experts(x, expert, weight, *stack, torch.float32, "gelu", "none", True)
    assert z.shape == (T * K, F)
    with Zeros() as zeros:
        out.sum().backward()
    assert (T * K, F) not in zeros.shapes
    assert x.grad.abs().max() > 0


class Sharp(torch.nn.Module):
    """A smooth activation with something to learn."""

    def __init__(self) -> None:
        super().__init__()
        self.slope = torch.nn.Parameter(torch.tensor(1.3, dtype=torch.float64))

    def forward(self, z: torch.Tensor) -> torch.Tensor:
        return torch.tanh(self.slope * z)


@pytest.mark.parametrize("with_norm", [False, True])
@pytest.mark.usefixtures("chunking")
def test_any_activation_and_norm_are_differentiated(with_norm: bool) -> None:
    sharp, norm = Sharp(), torch.nn.RMSNorm(D, eps=1e-2, dtype=torch.float64)
    learned = (sharp.slope, norm.weight) if with_norm else (sharp.slope,)
    functions = RowFunctions(sharp, norm if with_norm else None, learned)
    expert, weight = routes("skips", 4)
    inputs = (tokens_for(4), weight, *stack_for(Activation("gelu")))
    torch.autograd.gradcheck(
        lambda x, weight, up, down, up_bias, down_bias, *_: generic_experts(
            x, expert, weight, ExpertStack(up, down, up_bias, down_bias), functions
        ),
        (*(tensor.double().requires_grad_() for tensor in inputs), *learned),
        fast_mode=True,
    )


@pytest.mark.parametrize("kind", ["random", "one expert", "skips", "nothing"])
@pytest.mark.parametrize("tokens", [T, 1, 0])
def test_the_generic_form_equals_the_reference(kind: str, tokens: int) -> None:
    activation = Activation("silu", "concatenated")

    def swiglu(z: torch.Tensor) -> torch.Tensor:
        return torch.nn.functional.silu(z[:, :F]) * z[:, F:]

    def generic(*arguments):
        return generic_experts(*arguments[:-1], RowFunctions(swiglu))

    arguments = (tokens_for(tokens), *routes(kind if tokens else "random", tokens), stack_for(activation), activation)
    expected = value_and_gradients(reference_experts, *arguments)
    assert_equal_within(value_and_gradients(generic, *arguments), expected, TOLERANCE[torch.float32])
    with torch.no_grad():
        torch.testing.assert_close(generic(*arguments), expected["out"])
