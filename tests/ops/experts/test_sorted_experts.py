"""Sorted experts: the reference's values and gradients, at every edge, and what they cost."""

import math
from typing import ClassVar

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from moe_hf.ops.experts.activations import ACTIVATIONS, GATES, Activation
from moe_hf.ops.experts.expert_parts import ExpertStack
from moe_hf.ops.experts.packed import pack_stack, packed_experts
from moe_hf.ops.experts.reference import reference_experts
from moe_hf.ops.experts.sorted_experts import sorted_experts
from tests.ops.experts.problems import (
    TOLERANCE,
    D,
    E,
    F,
    K,
    T,
    assert_equal_within,
    routes,
    stack_for,
    tokens_for,
    value_and_gradients,
)


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
