"""Small problems for the tests of experts, and how their results are compared."""

import torch

from moe_hf.ops.experts.activations import Activation
from moe_hf.ops.experts.expert_parts import ExpertStack

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
