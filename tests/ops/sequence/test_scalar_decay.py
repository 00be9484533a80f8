"""Scalar decay: one recurrence in four forms, equal in values and gradients at every edge, and what it costs."""

import itertools
import math

import pytest
import torch

from moe_hf.base.errors import ConfigError
from moe_hf.ops.sequence.scalar_decay import (
    parallel_scalar_decay,
    reference_scalar_decay,
    scalar_decay,
    scalar_decay_step,
)

B, K, V = 2, 5, 3
# Rounding alone, relative in the Frobenius norm.
TOLERANCE = {torch.float64: 1e-12, torch.float32: 1e-5}


def draw(
    length: int, groups: int = 2, heads: int = 4, per_token: bool = True, state: bool = True, dtype=torch.float64
) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(length)

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=generator, dtype=dtype)

    decay_shape = (B, length, heads) if per_token else (heads,)
    inputs = {
        "query_BSGK": normal(B, length, groups, K),
        "key_BSGK": normal(B, length, groups, K),
        "value_BSHV": normal(B, length, heads, V),
        "log_decay": -0.3 * torch.rand(decay_shape, generator=generator, dtype=dtype),
    }
    return {**inputs, "initial_state": normal(B, heads, K, V)} if state else inputs


def draw_rows(length: int, kind: str) -> torch.Tensor:
    generator = torch.Generator().manual_seed(length + 1)
    rows = torch.rand(B, length, generator=generator)
    if kind == "mask":
        return (rows > 0.3).long()
    starts = rows < 0.05
    starts[0, 0] = True
    return starts


def value_and_gradients(function, inputs: dict, **options) -> dict[str, torch.Tensor]:
    leaves = {name: x.detach().requires_grad_() for name, x in inputs.items()}
    out, state = function(**leaves, **options)
    mask = options.get("mask_BS")
    out = out if mask is None else out * mask[..., None, None]
    found = {"out": out, "state": state}
    # A fixed, uneven direction, so that no gradient cancels; small integers are exact in every type.
    loss = sum((x * (torch.arange(x.numel()) % 7 - 2).to(x.dtype).view(x.shape)).sum() for x in found.values())
    gradients = torch.autograd.grad(loss, list(leaves.values()))
    return {**{name: x.detach() for name, x in found.items()}, **dict(zip(leaves, gradients, strict=True))}


def assert_equal(found: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> None:
    assert found.keys() == expected.keys()
    for name, x in expected.items():
        assert found[name].dtype == x.dtype
        error = (found[name] - x).norm() / x.norm().clamp_min(1e-30)
        assert error <= TOLERANCE[x.dtype], f"{name}: {error:.1e}"


@pytest.mark.parametrize("length", [1, 2, 8, 9, 33, 70])
@pytest.mark.parametrize(("groups", "heads"), [(1, 4), (2, 4), (3, 3)])
@pytest.mark.parametrize("per_token", [False, True])
@pytest.mark.parametrize("function", [scalar_decay, parallel_scalar_decay])
def test_equals_the_recurrence_in_values_and_gradients(function, length, groups, heads, per_token):
    sizes = {"chunk_size": 8, "segment_size": 32} if function is scalar_decay else {}
    for state in (False, True):
        inputs = draw(length, groups, heads, per_token, state)
        expected = value_and_gradients(reference_scalar_decay, inputs)
        assert_equal(value_and_gradients(function, inputs, **sizes), expected)


@pytest.mark.parametrize("length", [1, 63, 64, 65, 130, 600])
def test_equals_the_recurrence_in_float32_with_the_usual_sizes(length):
    inputs = draw(length, dtype=torch.float32)
    expected = value_and_gradients(reference_scalar_decay, inputs)
    assert_equal(value_and_gradients(scalar_decay, inputs), expected)
    assert_equal(value_and_gradients(parallel_scalar_decay, inputs), expected)


@pytest.mark.parametrize("strength", [1e-3, 1.0, 30.0])
def test_stays_exact_when_little_and_when_much_is_forgotten(strength):
    inputs = draw(300, per_token=True, dtype=torch.float32)
    inputs["log_decay"] = inputs["log_decay"] / 0.3 * strength
    assert_equal(value_and_gradients(scalar_decay, inputs), value_and_gradients(reference_scalar_decay, inputs))


@pytest.mark.parametrize("per_token", [False, True])
@pytest.mark.parametrize("log_decay", [-5.0, -12.0, -20.0])
@pytest.mark.parametrize("function", [scalar_decay, parallel_scalar_decay])
def test_the_gradient_of_a_strong_decay_is_not_lost_in_that_of_the_token_itself(function, log_decay, per_token):
    inputs = draw(130, per_token=per_token)
    inputs["log_decay"] = torch.full_like(inputs["log_decay"], log_decay)
    expected = value_and_gradients(reference_scalar_decay, inputs)["log_decay"]
    found = value_and_gradients(function, {name: x.float() for name, x in inputs.items()})["log_decay"]
    assert (found - expected).norm() <= 1e-5 * expected.norm()


@pytest.mark.parametrize("function", [reference_scalar_decay, scalar_decay, parallel_scalar_decay])
def test_what_stands_at_padding_is_not_read(function):
    inputs = {name: x for name, x in draw(70).items() if name != "initial_state"}
    mask = draw_rows(70, "mask")
    expected, expected_state = function(**inputs, mask_BS=mask)
    for name in ("key_BSGK", "value_BSHV", "log_decay"):
        x = inputs[name]
        inputs[name] = x.masked_fill((mask == 0).view(B, 70, *[1] * (x.ndim - 2)), torch.nan)
    out, state = function(**inputs, mask_BS=mask)
    torch.testing.assert_close(out[mask != 0], expected[mask != 0], rtol=0, atol=0)
    torch.testing.assert_close(state, expected_state, rtol=0, atol=0)


def test_a_step_does_not_read_what_stands_at_padding():
    inputs = {name: x if name == "initial_state" else x[:, 0] for name, x in draw(1).items()}
    state = inputs["initial_state"]
    odd = {name: x if x is state else torch.full_like(x, torch.nan) for name, x in inputs.items()}
    _, after = scalar_decay_step(*list(odd.values())[:4], initial_state=state, mask_B=torch.zeros(B))
    torch.testing.assert_close(after, state, rtol=0, atol=0)


def test_in_the_reference_a_start_cuts_off_what_is_not_finite():
    inputs = draw(9)
    inputs["value_BSHV"][:, 3] = torch.inf
    starts = (torch.arange(9) == 5).expand(B, 9)
    out, state = reference_scalar_decay(**inputs, starts_BS=starts)
    assert not out[:, 4].isfinite().all()
    assert out[:, 5:].isfinite().all()
    assert state.isfinite().all()


@pytest.mark.parametrize("per_token", [False, True])
@pytest.mark.parametrize("kinds", [("mask",), ("starts",), ("mask", "starts")])
@pytest.mark.parametrize("function", [reference_scalar_decay, scalar_decay, parallel_scalar_decay])
def test_documents_and_padding_equal_each_document_by_itself(function, kinds, per_token):
    length = 70
    inputs = draw(length, per_token=per_token)
    options = {f"{kind}_BS": draw_rows(length, kind) for kind in kinds}
    sizes = {"chunk_size": 8, "segment_size": 32} if function is scalar_decay else {}
    found = value_and_gradients(function, inputs, **options, **sizes)
    assert_equal(found, value_and_gradients(by_documents, inputs, **options))


def by_documents(initial_state: torch.Tensor, mask_BS=None, starts_BS=None, **inputs) -> tuple:
    """Each document of each row alone, its padding taken out."""
    log_decay = inputs.pop("log_decay")
    rows, states = [], []
    for row in range(B):
        length = inputs["value_BSHV"].shape[1]
        # A start at padding is none.
        begun = (
            None if starts_BS is None else starts_BS[row] if mask_BS is None else starts_BS[row] & (mask_BS[row] != 0)
        )
        bounds = [0, *(begun.nonzero().flatten().tolist() if begun is not None else []), length]
        state, outs = initial_state[row : row + 1], []
        for index, (start, stop) in enumerate(itertools.pairwise(bounds)):
            state = torch.zeros_like(state) if index else state
            real = torch.arange(start, stop)
            if mask_BS is not None:
                real = real[mask_BS[row, start:stop] != 0]
            parts = {name: x[row : row + 1, real] for name, x in inputs.items()}
            decay = log_decay if log_decay.dim() == 1 else log_decay[row : row + 1, real]
            out = torch.zeros_like(inputs["value_BSHV"][row, start:stop])
            if len(real):
                found, state = reference_scalar_decay(**parts, log_decay=decay, initial_state=state)
                out = out.index_put((real - start,), found[0])
            outs.append(out)
        rows.append(torch.cat(outs))
        states.append(state[0])
    return torch.stack(rows), torch.stack(states)


@pytest.mark.parametrize("per_token", [False, True])
def test_gradients_agree_with_finite_differences(per_token):
    inputs = draw(5, groups=1, heads=2, per_token=per_token)
    starts = torch.zeros(B, 5, dtype=torch.bool)
    starts[1, 3] = True
    # One input at a time, so that no other gradient is there by accident.
    for name in inputs:

        def function(x: torch.Tensor, name: str = name) -> tuple:
            return scalar_decay(**{**inputs, name: x}, starts_BS=starts, chunk_size=2, segment_size=4)

        assert torch.autograd.gradcheck(function, inputs[name].clone().requires_grad_(), fast_mode=True)


def test_a_step_after_another_equals_the_sequence():
    inputs = draw(9, dtype=torch.float32)
    mask = draw_rows(9, "mask")
    out, final = scalar_decay(**inputs, mask_BS=mask)
    state, before = inputs["initial_state"], inputs["initial_state"].clone()
    for t in range(9):
        parts = (inputs[name][:, t] for name in ("query_BSGK", "key_BSGK", "value_BSHV", "log_decay"))
        found, state = scalar_decay_step(*parts, initial_state=state, mask_B=mask[:, t])
        torch.testing.assert_close(found[mask[:, t] != 0], out[:, t][mask[:, t] != 0], rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(state, final, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(inputs["initial_state"], before, rtol=0, atol=0)


def test_a_step_has_the_gradients_of_the_recurrence():
    inputs = draw(1)
    expected = value_and_gradients(reference_scalar_decay, inputs)

    def step(initial_state, **tokens):
        out, state = scalar_decay_step(*(x[:, 0] for x in tokens.values()), initial_state=initial_state)
        return out[:, None], state

    assert_equal(value_and_gradients(step, inputs), expected)


@pytest.mark.parametrize("cuts", [[1], [7], [64, 65], [13, 70, 71, 140]])
def test_parts_that_hand_on_the_state_equal_the_whole(cuts):
    inputs = draw(150, per_token=False)
    out, final = scalar_decay(**inputs)
    decay, state = inputs.pop("log_decay"), inputs.pop("initial_state")
    parts = []
    for start, stop in zip([0, *cuts], [*cuts, 150], strict=True):
        part, state = scalar_decay(
            **{n: x[:, start:stop] for n, x in inputs.items()}, log_decay=decay, initial_state=state
        )
        parts.append(part)
    torch.testing.assert_close(torch.cat(parts, dim=1), out)
    torch.testing.assert_close(state, final)


def test_gradients_flow_through_the_state_of_the_part_before():
    inputs = draw(30)

    def in_two(initial_state, **tokens):
        first, state = scalar_decay(**{n: x[:, :13] for n, x in tokens.items()}, initial_state=initial_state)
        second, state = scalar_decay(**{n: x[:, 13:] for n, x in tokens.items()}, initial_state=state)
        return torch.cat([first, second], dim=1), state

    assert_equal(value_and_gradients(in_two, inputs), value_and_gradients(reference_scalar_decay, inputs))


@pytest.mark.parametrize("of", ["out", "state"])
def test_the_gradient_of_one_result_alone_is_right(of):
    inputs = draw(20, per_token=False)
    found = []
    for function in (scalar_decay, reference_scalar_decay):
        leaves = {name: x.clone().requires_grad_() for name, x in inputs.items()}
        out, state = function(**leaves)
        (out if of == "out" else state).square().sum().backward()
        found.append([leaf.grad for name, leaf in leaves.items() if not (of == "state" and name == "query_BSGK")])
    for mine, expected in zip(*found, strict=True):
        torch.testing.assert_close(mine, expected)


def test_views_of_any_strides_are_read_as_they_stand():
    inputs = draw(70)
    odd = {name: torch.stack([x, x], dim=-1)[..., 0] for name, x in inputs.items()}
    assert not odd["value_BSHV"].is_contiguous()
    assert_equal(value_and_gradients(scalar_decay, odd), value_and_gradients(scalar_decay, inputs))


def test_half_precision_is_computed_in_float32():
    inputs = {name: x.bfloat16() for name, x in draw(100, dtype=torch.float32).items()}
    found = value_and_gradients(scalar_decay, inputs)
    expected = value_and_gradients(scalar_decay, {name: x.float() for name, x in inputs.items()})
    assert found["out"].dtype == torch.bfloat16
    assert found["state"].dtype == torch.float32
    # The recurrence itself added nothing to the rounding of its results.
    for name, x in expected.items():
        torch.testing.assert_close(found[name], x.to(found[name].dtype), rtol=0, atol=0)


def test_autocast_leaves_the_recurrence_in_float32():
    inputs = draw(20, dtype=torch.float32)
    tokens = [inputs[name][:, 0] for name in ("query_BSGK", "key_BSGK", "value_BSHV", "log_decay")]
    calls = [lambda f=f: f(**inputs) for f in (scalar_decay, reference_scalar_decay, parallel_scalar_decay)]
    calls.append(lambda: scalar_decay_step(*tokens, initial_state=inputs["initial_state"]))
    for call in calls:
        expected = call()
        with torch.autocast("cpu", dtype=torch.bfloat16):
            found = call()
        for mine, other in zip(found, expected, strict=True):
            torch.testing.assert_close(mine, other, rtol=0, atol=0)


def test_no_final_state_unless_asked_for():
    inputs = draw(5)
    for function in (scalar_decay, reference_scalar_decay, parallel_scalar_decay):
        assert function(**inputs, output_final_state=False)[1] is None


def test_an_empty_sequence_leaves_the_state():
    inputs = draw(3)
    state = inputs.pop("initial_state").requires_grad_()
    decay = inputs.pop("log_decay")[:, :0]
    out, final = scalar_decay(**{name: x[:, :0] for name, x in inputs.items()}, log_decay=decay, initial_state=state)
    assert out.shape == (B, 0, 4, V)
    torch.testing.assert_close(final, state)
    final.sum().backward()
    torch.testing.assert_close(state.grad, torch.ones_like(state))


def test_the_compiler_sees_one_operator_forward_and_backward():
    inputs = draw(70, dtype=torch.float32)
    options = {"mask_BS": draw_rows(70, "mask"), "starts_BS": draw_rows(70, "starts")}
    compiled = torch.compile(scalar_decay, fullgraph=True, backend="aot_eager")
    assert_equal(value_and_gradients(compiled, inputs, **options), value_and_gradients(scalar_decay, inputs, **options))


def test_the_operators_keep_their_promises_to_the_compiler():
    inputs = draw(20, dtype=torch.float32)
    leaves = [x.requires_grad_() for x in inputs.values()]
    starts = draw_rows(20, "starts")
    torch.library.opcheck(torch.ops.moe_hf.scalar_decay.default, (*leaves[:4], starts, leaves[4], 4, 8, True))
    fixed = [x.detach() for x in leaves[:4]]
    torch.library.opcheck(torch.ops.moe_hf.scalar_decay.default, (*fixed, None, None, 4, 8, False))


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"key_BSGK": torch.zeros(B, 6, 3, K)}, "H a multiple of G"),
        ({"value_BSHV": torch.zeros(B, 6, 5, V)}, "H a multiple of G"),
        ({"log_decay": torch.zeros(B, 4)}, "log_decay of shape"),
        ({"initial_state": torch.zeros(B, 4, V, K)}, "initial_state of shape"),
        ({"segment_size": 100}, "multiple of the chunk"),
    ],
)
def test_what_does_not_fit_is_named(change, text):
    with pytest.raises(ConfigError, match=text):
        scalar_decay(**{**draw(6), **change})


def test_a_decay_of_one_sums_and_a_huge_one_forgets():
    # By hand: q k = 1 everywhere, so that the output is the decayed sum of the values.
    ones, value = torch.ones(1, 3, 1, 1), torch.tensor([1.0, 10.0, 100.0]).view(1, 3, 1, 1)
    for decay, expected in ((1.0, [1, 11, 111]), (0.5, [1, 10.5, 105.25]), (math.exp(-100), [1, 10, 100])):
        out, state = scalar_decay(ones, ones, value, torch.tensor([math.log(decay)]))
        torch.testing.assert_close(out.flatten(), torch.tensor(expected, dtype=torch.float32))
        torch.testing.assert_close(state.flatten(), out.flatten()[-1:])
