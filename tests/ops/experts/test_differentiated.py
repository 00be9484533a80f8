"""The node of autograd hands its passes what they need, and their gradients to the right inputs."""

from collections.abc import Sequence

import torch

from moe_hf.ops.experts.activations import Activation
from moe_hf.ops.experts.differentiated import Passes, differentiated
from moe_hf.ops.experts.expert_parts import ExpertCall, Gradients, Keep, Needs, StackGradients
from moe_hf.ops.experts.expert_rows import ExpertRows, sort_rows
from tests.ops.experts.problems import E, routes, stack_for, tokens_for

asked: list[Needs] = []


def forward(call: ExpertCall, keep: Keep) -> tuple[torch.Tensor, ExpertRows]:
    keep(2 * call.x_TD)
    return call.x_TD * 3, sort_rows(call.expert_TK, E, 4)


def backward(
    dout_TD: torch.Tensor, call: ExpertCall, rows: ExpertRows, kept: Sequence[torch.Tensor], needs: Needs
) -> Gradients:
    asked.append(needs)
    (twice_TD,) = kept
    assert torch.equal(twice_TD, 2 * call.x_TD)
    assert rows.chunks == sort_rows(call.expert_TK, E, 4).chunks
    stack = StackGradients(
        *(
            torch.full_like(part, n) if need else None
            for n, (part, need) in enumerate(zip(call.stack, needs.stack, strict=True))
        )
    )
    return Gradients(dout_TD * 3, call.weight_TK * 5, stack, [torch.tensor(7.0)])


def test_each_input_gets_its_own_gradient() -> None:
    x, (expert, weight), learned = tokens_for().requires_grad_(), routes(), torch.tensor(1.0, requires_grad=True)
    stack = stack_for(Activation("gelu"))
    stack.down_EDF.requires_grad_()
    call = ExpertCall(x, expert, weight.requires_grad_(), stack, torch.float32)
    asked.clear()
    out = differentiated(call, Passes(forward, backward, (learned,)))
    assert torch.equal(out, 3 * x)
    dx, dweight, ddown, dlearned = torch.autograd.grad(out.sum(), (x, weight, stack.down_EDF, learned))
    assert asked == [Needs(True, True, (False, True, False, False), (True,))]
    assert dx.eq(3).all()
    assert torch.equal(dweight, 5 * weight)
    assert ddown.eq(1).all()
    assert dlearned == 7
