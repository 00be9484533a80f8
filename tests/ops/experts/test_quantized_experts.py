"""Quantised experts compute what the numbers that their codes stand for compute, in value and gradient."""

import pytest
import torch

from moe_hf.ops.experts.activations import Activation, RowFunctions, activate
from moe_hf.ops.experts.expert_parts import ExpertStack
from moe_hf.ops.experts.quantized_experts import (
    QuantizedStack,
    dequantized_experts,
    dequantized_stack,
    quantized_experts,
)
from moe_hf.ops.experts.quantized_weights import quantized
from moe_hf.ops.experts.reference import reference_experts

T, D, E, K, F = 11, 32, 5, 2, 64
GATED = Activation("silu", "concatenated")


def functions(activation: Activation = GATED, finish=None) -> RowFunctions:
    return RowFunctions(lambda z: activate(z, activation), finish)


def stack_for(bits: int, biased: bool) -> QuantizedStack:
    generator = torch.Generator().manual_seed(0)

    def draw(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=generator) * 0.3

    group_size = 32 if bits == 4 else None
    up, down = (quantized(draw(*shape), bits, group_size) for shape in ((E, 2 * F, D), (E, D, F)))
    return QuantizedStack(up, down, *((draw(E, 2 * F), draw(E, D)) if biased else (None, None)))


def call(tokens: int = T, skips: bool = False) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(tokens, D, generator=generator)
    expert = torch.rand(tokens, E, generator=generator).topk(K).indices
    weight = torch.rand(tokens, K, generator=generator) + 0.1
    if skips:
        expert[::2, 1] = E
        expert[-1] = E
    return x, expert, weight


@pytest.mark.parametrize("skips", [False, True], ids=["all", "skips"])
@pytest.mark.parametrize("biased", [True, False], ids=["biased", "plain"])
@pytest.mark.parametrize("bits", [8, 4])
def test_value_and_gradient_are_the_references(bits, biased, skips) -> None:
    stack = stack_for(bits, biased)
    x, expert, weight = call(skips=skips)
    found = []
    for product in (quantized_experts, dequantized_experts):
        leaves = [part.clone().requires_grad_() for part in (x, weight, *stack[2:]) if part is not None]
        parts = stack if not biased else stack._replace(up_bias_EF=leaves[2], down_bias_ED=leaves[3])
        out = product(leaves[0], expert, leaves[1], parts, functions())
        out.backward(torch.linspace(-1, 1, out.numel()).view_as(out))
        found.append([out.detach(), *(leaf.grad for leaf in leaves)])
    for ours, expected in zip(*found, strict=True):
        torch.testing.assert_close(ours, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("bits", [8, 4])
def test_the_reference_is_that_of_the_numbers(bits) -> None:
    stack, (x, expert, weight) = stack_for(bits, biased=True), call()
    numbers = dequantized_stack(stack, torch.float32)
    assert isinstance(numbers, ExpertStack)
    expected = reference_experts(x, expert, weight, numbers, GATED)
    torch.testing.assert_close(dequantized_experts(x, expert, weight, stack, functions()), expected)


@pytest.mark.parametrize("tokens", [1, 3, 300])
@pytest.mark.parametrize("skips", [False, True], ids=["all", "skips"])
@pytest.mark.parametrize("bits", [8, 4])
def test_without_gradients_few_and_many_tokens_stay_near(bits, skips, tokens) -> None:
    stack, (x, expert, weight) = stack_for(bits, biased=True), call(tokens, skips)
    with torch.no_grad():
        found = quantized_experts(x, expert, weight, stack, functions())
        expected = dequantized_experts(x, expert, weight, stack, functions())
    assert found.dtype == x.dtype
    assert (found - expected).norm() <= 1e-2 * max(expected.norm(), 1e-6)


@pytest.mark.parametrize("tokens", [0, 1, 4])
def test_nothing_to_visit_gives_zeros(tokens) -> None:
    x, expert, weight = call(max(tokens, 1))
    x, expert, weight = x[:tokens], torch.full_like(expert[:tokens], E), weight[:tokens]
    for product in (quantized_experts, dequantized_experts):
        with torch.no_grad():
            assert torch.equal(product(x, expert, weight, stack_for(8, biased=True), functions()), torch.zeros_like(x))


def test_a_token_that_visits_an_expert_twice_counts_twice() -> None:
    stack, (x, expert, weight) = stack_for(8, biased=False), call(2)
    # With a gradient, both compute in float32.
    x, expert = x.requires_grad_(), torch.full_like(expert, 3)
    torch.testing.assert_close(
        quantized_experts(x, expert, weight, stack, functions()),
        dequantized_experts(x, expert, weight, stack, functions()),
    )


def test_what_is_done_after_the_projections_is_done() -> None:
    stack, (x, expert, weight) = stack_for(8, biased=True), call()
    x.requires_grad_()
    with_norm = functions(finish=lambda y: torch.nn.functional.rms_norm(y, (D,)))
    found, expected = (f(x, expert, weight, stack, with_norm) for f in (quantized_experts, dequantized_experts))
    torch.testing.assert_close(found, expected)
    assert not torch.allclose(found, quantized_experts(x, expert, weight, stack, functions()))


def test_under_autocast_it_computes_in_autocasts_type() -> None:
    stack, (x, expert, weight) = stack_for(8, biased=True), call(tokens=300)
    with torch.no_grad():
        expected = quantized_experts(x, expert, weight, stack, functions())
        with torch.autocast("cpu", dtype=torch.bfloat16):
            found = quantized_experts(x, expert, weight, stack, functions())
    assert found.dtype == torch.float32
    assert 1e-5 < (found - expected).norm() / expected.norm() < 2e-2
