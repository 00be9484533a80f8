"""The reference of what experts compute, itself checked against one token at a time."""

import pytest
import torch

from moe_hf.ops.experts.activations import Activation, activate
from moe_hf.ops.experts.expert_parts import ExpertStack
from moe_hf.ops.experts.reference import reference_experts

T, D, E, K, F = 7, 5, 4, 2, 3


def make(gate: str, biased: bool) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, ExpertStack]:
    generator = torch.Generator().manual_seed(0)

    def draw(*shape: int) -> torch.Tensor:
        return torch.randn(shape, dtype=torch.float64, generator=generator).requires_grad_()

    up = F if gate == "none" else 2 * F
    biases = (draw(E, up), draw(E, D)) if biased else (None, None)
    expert_TK = torch.rand(T, E + 1, generator=generator).topk(K).indices
    return draw(T, D), expert_TK, draw(T, K), ExpertStack(draw(E, up, D), draw(E, D, F), *biases)


@pytest.mark.parametrize("gate", ["none", "concatenated", "interleaved"])
@pytest.mark.parametrize("biased", [True, False])
def test_equals_a_token_at_a_time(gate: str, biased: bool) -> None:
    x, expert, weight, stack = make(gate, biased)
    rows = []
    for token in range(T):
        row = torch.zeros(D, dtype=torch.float64)
        for slot in range(K):
            e = int(expert[token, slot])
            if e < E:
                z = stack.up_EFD[e] @ x[token] + (stack.up_bias_EF[e] if biased else 0)
                y = stack.down_EDF[e] @ activate(z, Activation("silu", gate))
                row = row + weight[token, slot] * (y + (stack.down_bias_ED[e] if biased else 0))
        rows.append(row)
    found = reference_experts(x, expert, weight, stack, Activation("silu", gate))
    torch.testing.assert_close(found, torch.stack(rows))


def test_its_gradients_are_those_of_differences() -> None:
    x, expert, weight, stack = make("none", biased=True)
    assert (expert == E).any()
    torch.autograd.gradcheck(
        lambda x, weight, *parts: reference_experts(x, expert, weight, ExpertStack(*parts), Activation("gelu")),
        (x, weight, *stack),
    )


def test_a_skipped_slot_counts_for_nothing_and_gets_no_gradient() -> None:
    x, _, weight, stack = make("none", biased=True)
    skipped = torch.full((T, K), E)
    out = reference_experts(x, skipped.index_fill(0, torch.tensor([0]), 1), weight, stack, Activation("relu"))
    assert out[1:].abs().max() == 0
    assert out[0].abs().max() > 0
    out.sum().backward()
    assert x.grad[1:].abs().max() == 0
    assert weight.grad[1:].abs().max() == 0
