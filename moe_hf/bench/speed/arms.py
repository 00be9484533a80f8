"""What a measurement is made of: arms that do the same work, measured together as one group."""

from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import torch

from moe_hf.bench.speed.sizes import Size
from moe_hf.bench.speed.timing import Step

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


class Arm(NamedTuple):
    """One way of doing the work.

    `step` is one call, the thing that is timed. `output` is the result of the forward pass, to be compared with the
    other arms' before anything is timed; None where there is nothing to compare. `saved` is a forward pass with
    gradients whose kept tensors are counted, `known` the tensors that live anyway. `flops` is what one call is worth.
    """

    name: str
    family: str
    step: Step
    output: Callable[[], torch.Tensor] | None = None
    saved: Step | None = None
    known: Callable[[], Iterable[torch.Tensor]] = tuple
    flops: float = 0.0


class Skipped(NamedTuple):
    """An arm that is not measured, and why."""

    name: str
    reason: str


class Group(NamedTuple):
    """Arms that are measured in turns, since only they may be compared.

    `gradient_bytes` is what a training step returns; `reference` what the arms' outputs are compared with.
    """

    case: str
    mode: str
    size: Size
    arms: list[Arm]
    skipped: list[Skipped]
    gradient_bytes: int = 0
    reference: Callable[[], torch.Tensor] | None = None


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


def inference_step(forward: Callable[[], torch.Tensor]) -> Step:
    """A forward pass without gradients."""

    def step() -> torch.Tensor:
        with torch.no_grad():
            return forward()

    return step
