"""Arms: ways of doing the same work, which are measured together as one group."""

from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple

import torch

from moe_hf.bench.harness.timing import Step

TRANSFORMERS = "transformers"
FUSED = "transformers, our activation"
OWN = "own"
PACKAGE = "other package"
ROOF = "roof"
GEMM = "plain GEMM"
PEER = "peer"
"""Whose an arm is. The roof is the dense computation of as many FLOPs, the plain GEMM what the machine can do; peers
are held against each other, whoever's they are."""

FORWARD, TRAINING, DECODE, GENERATE = "forward", "training", "decode", "generate"
"""`forward` is without gradients; `training` is forward and backward (and the optimizer, for a whole model); `decode`
is a forward pass of few tokens, for a mixer of one after a context; `generate` is a whole model's answer."""

# A yardstick does less work than the arms, so that it does not make them look slow.
YARDSTICKS = frozenset({ROOF, GEMM})
# Whoever of these is slow is sampled less.
OPPONENTS = frozenset({TRANSFORMERS, FUSED, PEER})

Output = Callable[[], list[torch.Tensor]]
"""Gives what one call computes: the result and, in training, the gradient of every leaf, always in the same order."""


class Check(NamedTuple):
    """What an arm computes, and what it must equal; arms may share one `reference`, which then runs once.

    `most_error` is the relative error that is allowed; None is what rounding explains in the dtype of the result.
    """

    output: Output
    reference: Output
    most_error: float | None = None


class Arm(NamedTuple):
    """One way of doing the work.

    Attributes:
        name: what the tables call it.
        step: one call, the thing that is timed.
        family: whose it is.
        check: looked at before anything is timed; None where there is nothing to compare with.
        saved: a forward pass with gradients whose kept tensors are counted.
        known: the tensors that live anyway.
        flops: what one call is worth.
        gradient_bytes: what a call returns as gradients.
        tokens: that a call brings forth; its time is divided by them.
        once: whether it is timed in one cold call alone, since a call takes minutes.
        further: makes another arm of this one, once its result is known to be right.
    """

    name: str
    step: Step
    family: str = PEER
    check: Check | None = None
    saved: Step | None = None
    known: Callable[[], Iterable[torch.Tensor]] = tuple
    flops: float = 0.0
    gradient_bytes: int = 0
    tokens: int = 1
    once: bool = False
    further: "Callable[[], Arm | Skipped] | None" = None


class Skipped(NamedTuple):
    """An arm that is not measured, and why; `wrong` where it computed something else than the reference."""

    name: str
    reason: str
    wrong: bool = False


class Group(NamedTuple):
    """Arms that are measured in turns, since only they may be compared."""

    arms: list[Arm]
    skipped: Sequence[Skipped] = ()


class Options(NamedTuple):
    """What holds for a whole run.

    Args:
        device: where to measure.
        seed: of weights, tokens, routing and the order of the arms.
        backends: names of the arms to measure; None means all. Roof and plain GEMM are always measured.
        memory_limit: bytes that a backend may gather or hold for itself before it is skipped.
    """

    device: torch.device = torch.device("cpu")
    seed: int = 0
    backends: tuple[str, ...] | None = None
    memory_limit: int = 2**29

    def wants(self, name: str) -> bool:
        """Whether the arm of that name is to be measured."""
        return self.backends is None or name in self.backends

    def generator(self) -> torch.Generator:
        """A fresh generator on the CPU, so that every device draws the same."""
        return torch.Generator().manual_seed(self.seed)


def step_of(
    forward: Callable[[], torch.Tensor], leaves: Sequence[torch.Tensor] = (), grad: torch.Tensor | None = None
) -> Step:
    """A pass without gradients or, with `grad`, forward and backward that end as they began, without gradients.

    Args:
        forward: the pass.
        leaves: tensors that receive gradients; they are released at the end, as `zero_grad` does.
        grad: gradient of the result.
    """
    if grad is None:
        return torch.no_grad()(forward)

    def step() -> None:
        forward().backward(grad)
        for leaf in leaves:
            leaf.grad = None

    return step


def output_of(
    forward: Callable[[], torch.Tensor], leaves: Sequence[torch.Tensor] = (), grad: torch.Tensor | None = None
) -> Output:
    """What the step of `step_of` computes: the result, then the gradient of each leaf, 0 where it gets none."""

    def output() -> list[torch.Tensor]:
        if grad is None:
            with torch.no_grad():
                return [forward()]
        result = forward()
        result.backward(grad)
        return [result.detach(), *released_gradients(leaves)]

    return output


def released_gradients(leaves: Iterable[torch.Tensor]) -> list[torch.Tensor]:
    """The gradient of each leaf, 0 where it has none; the leaves are left without."""
    found = []
    for leaf in leaves:
        found.append(torch.zeros_like(leaf) if leaf.grad is None else leaf.grad)
        leaf.grad = None
    return found
