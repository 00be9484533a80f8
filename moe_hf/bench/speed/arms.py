"""What a measurement is made of: arms that do the same work, measured together as one group."""

from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import torch

from moe_hf.bench.harness.timing import Step
from moe_hf.bench.speed.sizes import Size

TRANSFORMERS = "transformers"
FUSED = "transformers, our activation"
OWN = "own"
PACKAGE = "other package"
ROOF = "roof"
GEMM = "plain GEMM"

FAMILIES = (TRANSFORMERS, FUSED, OWN, PACKAGE, ROOF, GEMM)
"""Whose an arm is. The roof is the dense computation of as many FLOPs, the plain GEMM what the machine can do."""

FORWARD, TRAINING = "forward", "training"
"""`forward` is without gradients; `training` is forward and backward (and the optimizer, for a whole model)."""

NOT_COMPARED = frozenset({ROOF, GEMM})


Output = Callable[[], list[torch.Tensor]]
"""Gives what one call computes: the result and, in training, the gradient of every leaf, always in the same order."""


class Check(NamedTuple):
    """What an arm computes, and what it must equal; arms may share one `reference`, which then runs once."""

    output: Output
    reference: Output


class Arm(NamedTuple):
    """One way of doing the work.

    `step` is one call, the thing that is timed. `check` is looked at before anything is timed; None where there is
    nothing to compare with. `saved` is a forward pass with gradients whose kept tensors are counted, `known` the
    tensors that live anyway. `flops` is what one call is worth. `further` makes another arm of this one, once its
    result is known to be right.
    """

    name: str
    family: str
    step: Step
    check: Check | None = None
    saved: Step | None = None
    known: Callable[[], Iterable[torch.Tensor]] = tuple
    flops: float = 0.0
    further: "Callable[[], Arm | Skipped] | None" = None


class Skipped(NamedTuple):
    """An arm that is not measured, and why; `wrong` where it computed something else than the reference."""

    name: str
    reason: str
    wrong: bool = False


class Group(NamedTuple):
    """Arms that are measured in turns, since only they may be compared.

    `gradient_bytes` is what a training step returns.
    """

    case: str
    mode: str
    size: Size
    arms: list[Arm]
    skipped: list[Skipped]
    gradient_bytes: int = 0


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


def training_step(forward: Callable[[], torch.Tensor], leaves: list[torch.Tensor], grad: torch.Tensor) -> Step:
    """A forward and backward pass that ends as it began, without gradients.

    Args:
        forward: the pass whose result is differentiated.
        leaves: tensors that receive gradients; they are released at the end, as `zero_grad` does.
        grad: gradient of the result.
    """

    def step() -> Any:
        forward().backward(grad)
        for leaf in leaves:
            leaf.grad = None

    return step


def training_output(forward: Callable[[], torch.Tensor], leaves: list[torch.Tensor], grad: torch.Tensor) -> Output:
    """What the step of `training_step` computes: the result, then the gradient of each leaf, 0 where it gets none."""

    def output() -> list[torch.Tensor]:
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


def inference_output(forward: Callable[[], torch.Tensor]) -> Output:
    """What the step of `inference_step` computes: the result alone."""

    def output() -> list[torch.Tensor]:
        with torch.no_grad():
            return [forward()]

    return output


def inference_step(forward: Callable[[], torch.Tensor]) -> Step:
    """A forward pass without gradients."""

    def step() -> torch.Tensor:
        with torch.no_grad():
            return forward()

    return step
