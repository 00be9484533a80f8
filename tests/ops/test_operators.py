"""Two passes become one operator: nested arguments, absent gradients, types and the compiler."""

import importlib.util
from collections.abc import Sequence
from typing import NamedTuple

import pytest
import torch

from moe_hf.ops import operators
from moe_hf.ops.operators import NAMESPACE, needs_gradient, opaque


class Factors(NamedTuple):
    a: torch.Tensor
    b: torch.Tensor | None


class Options(NamedTuple):
    factors: Factors
    power: int


calls: list[tuple[bool, ...]] = []


def forward(x: torch.Tensor, options: Options) -> tuple[torch.Tensor, torch.Tensor]:
    (a, b), power = options
    return x**power * a, x.double() + (0 if b is None else b)


def shapes(x: torch.Tensor, options: Options) -> tuple[torch.Tensor, torch.Tensor]:
    return x.new_empty(x.shape), x.new_empty(x.shape, dtype=torch.float64)


def backward(
    dfirst: torch.Tensor | None,
    dsecond: torch.Tensor | None,
    x: torch.Tensor,
    a: torch.Tensor,
    power: int,
    needs: Sequence[bool],
) -> list[torch.Tensor]:
    calls.append((dfirst is None, dsecond is None, *needs))
    zeros = torch.zeros_like(x, dtype=torch.float64)
    dfirst = zeros if dfirst is None else dfirst
    dsecond = zeros if dsecond is None else dsecond.clone()
    return [dfirst * power * x ** (power - 1) * a + dsecond, dfirst * x**power, dsecond]


def gradient_shapes(
    dfirst: torch.Tensor | None,
    dsecond: torch.Tensor | None,
    x: torch.Tensor,
    a: torch.Tensor,
    power: int,
    needs: Sequence[bool],
) -> list[torch.Tensor]:
    wide = [x.new_empty(x.shape, dtype=torch.float64) for _ in range(3)]
    return wide


times_power = opaque(
    "test_times_power",
    forward,
    shapes,
    backward,
    gradient_shapes,
    returns=("first", "second"),
    gradients=("x", "a", "b"),
)


def draw(with_b: bool = True) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor | None]:
    generator = torch.Generator().manual_seed(0)
    x, a, b = (torch.randn(3, generator=generator).requires_grad_() for _ in range(3))
    return x, a, b if with_b else None


def test_values_and_gradients_are_those_of_the_function() -> None:
    x, a, b = draw()
    first, second = times_power(x, Options(Factors(a, b), 3))
    wanted = x**3 * a, x.double() + b
    assert torch.equal(first, wanted[0])
    assert torch.equal(second, wanted[1])
    ours = torch.autograd.grad(first.sum() + (2 * second).sum(), (x, a, b))
    theirs = torch.autograd.grad(wanted[0].sum() + (2 * wanted[1]).sum(), (x, a, b))
    torch.testing.assert_close(ours, theirs)
    # The backward pass computes in float64, its results come in the types of the inputs.
    assert {gradient.dtype for gradient in ours} == {torch.float32}


def test_arguments_may_be_named_and_a_wrong_or_missing_one_is() -> None:
    x, a, b = draw()
    options = Options(Factors(a, b), 3)
    torch.testing.assert_close(times_power(x, options=options), times_power(x, options))
    torch.testing.assert_close(times_power(options=options, x=x), times_power(x, options))
    with pytest.raises(TypeError, match="unexpected keyword argument 'power'"):
        times_power(x, options, power=2)
    with pytest.raises(TypeError, match="missing a required argument: 'options'"):
        times_power(x)
    with pytest.raises(TypeError, match="too many positional arguments"):
        times_power(x, options, 2)


def test_the_backward_pass_learns_which_gradients_there_are_and_are_asked_for() -> None:
    x, a, _ = draw()
    first, second = times_power(x, Options(Factors(a.detach(), None), 2))
    calls.clear()
    torch.autograd.grad(first.sum(), x, retain_graph=True)
    torch.autograd.grad(second.sum(), x)
    assert calls == [(False, True, True, False, False), (True, False, True, False, False)]


def test_the_operator_keeps_its_promises_to_the_compiler() -> None:
    x, a, b = draw()
    torch.library.opcheck(torch.ops.moe_hf.test_times_power.default, (x, a, b, 2))
    compiled = torch.compile(times_power, fullgraph=True, backend="aot_eager")
    options = Options(Factors(a, b), 2)
    torch.testing.assert_close(compiled(x, options), times_power(x, options))


def test_a_gradient_of_something_unknown_is_noticed_at_once() -> None:
    with pytest.raises(ValueError, match="'c' is not in list"):
        opaque("test_unknown", forward, shapes, backward, gradient_shapes, returns=("y", "z"), gradients=("c",))


def test_nothing_is_asked_for_where_nothing_learns() -> None:
    x, _, _ = draw()
    assert needs_gradient(None, x)
    assert not needs_gradient(None, x.detach())
    with torch.no_grad():
        assert not needs_gradient(x)


def test_a_copy_of_this_file_has_operators_of_its_own() -> None:
    spec = importlib.util.spec_from_file_location("copied_operators", operators.__file__)
    assert spec is not None
    assert spec.loader is not None
    copied = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(copied)

    def doubled(x: torch.Tensor) -> torch.Tensor:
        return 2 * x

    def tripled(x: torch.Tensor) -> torch.Tensor:
        return 3 * x

    def like(x: torch.Tensor) -> torch.Tensor:
        return torch.empty_like(x)

    def back(dout: torch.Tensor) -> list[torch.Tensor]:
        return [dout.clone()]

    def like_back(dout: torch.Tensor) -> list[torch.Tensor]:
        return [torch.empty_like(dout)]

    names = {"returns": ("out",), "gradients": ("x",)}
    first = opaque("test_copied", doubled, like, back, like_back, **names)
    second = copied.opaque("test_copied", tripled, like, back, like_back, **names)
    x = torch.ones(2)
    assert first(x).tolist() == [2, 2]
    assert second(x).tolist() == [3, 3]
    assert NAMESPACE == "moe_hf" != copied.NAMESPACE
