"""Compares what each arm of a group computes with its reference, before anything is timed."""

from collections.abc import Iterable, Sequence
from typing import NamedTuple

import torch

from moe_hf.base.errors import BackendUnavailableError, ConfigError
from moe_hf.bench.harness.arms import Arm, Output, Skipped

# What rounding explains: backends add the same products up in different orders, and in their own dtype.
MOST_ERROR = {torch.float32: 1e-4, torch.bfloat16: 3e-2, torch.float16: 1e-2}
"""The relative error that is allowed to a result, by its dtype."""

# transformers' grouped_mm adds up a bias's gradient row by row in the dtype of the weights, which costs a digit.
MOST_GRADIENT_ERROR = {torch.float32: 1e-4, torch.bfloat16: 1e-1, torch.float16: 3e-2}
"""The relative error that is allowed to each gradient, by the dtype of the result."""

CANNOT_RUN = (ConfigError, BackendUnavailableError, RuntimeError, MemoryError)
"""What stops an arm or a group without stopping the others: a bad setting, a missing package, too little memory."""

# A gradient that ought to vanish, such as that of a bias in front of a softmax, is rounding noise alone. It is held
# against this share of what all the gradients together have per element.
_VANISHING = 1e-2


class Compared(NamedTuple):
    """The arms that can run here and are right, the relative error of each that was compared, and the other arms."""

    arms: list[Arm]
    errors: dict[str, float]
    skipped: list[Skipped]


def compare(arms: Iterable[Arm]) -> Compared:
    """Run every arm that has a check once and compare it; arms without a check are taken as they are."""
    found = Compared([], {}, [])
    source: Output | None = None
    expected: list[torch.Tensor] = []
    for arm in arms:
        if arm.check is None:
            found.arms.append(arm)
            continue
        # A reference is slow by design, so that arms which share one run it once.
        if arm.check.reference is not source:
            source, expected = arm.check.reference, arm.check.reference()
        try:
            of_result, *of_gradients = relative_errors(arm.check.output(), expected)
        except CANNOT_RUN as reason:
            # A backend whose package or device is absent says so at its first call.
            found.skipped.append(Skipped(arm.name, reason_text(reason)))
            continue
        dtype, given = expected[0].dtype, arm.check.most_error
        texts = [_fault("the result", of_result, given or MOST_ERROR[dtype])]
        texts += [_fault("a gradient", error, given or MOST_GRADIENT_ERROR[dtype]) for error in of_gradients]
        text = next(filter(None, texts), None)
        if text is None:
            found.arms.append(arm)
            # With the 0.0 there are two numbers at least: max takes no single one.
            found.errors[arm.name] = max(of_result, *of_gradients, 0.0)
        else:
            found.skipped.append(Skipped(arm.name, text, wrong=True))
    return found


def _fault(what: str, error: float, allowed: float) -> str | None:
    # Written so that a NaN is wrong.
    return None if error <= allowed else f"WRONG: off by {error:.1e} in {what}, rounding explains {allowed:.0e}"


def relative_errors(found: Sequence[torch.Tensor], expected: Sequence[torch.Tensor]) -> list[float]:
    """The relative error of each tensor: the norm of its difference over that of what was expected.

    The first tensor is a result; the others are gradients, and one that all but vanishes beside the others is held
    against a hundredth of their root mean square.

    >>> relative_errors([torch.tensor([3.0, 4.5])], [torch.tensor([3.0, 4.0])])
    [0.1]
    """
    sizes = [tensor.float().norm().item() for tensor in expected]
    elements = sum(tensor.numel() for tensor in expected[1:])
    mean_square = sum(size**2 for size in sizes[1:]) / max(elements, 1)
    errors = []
    for index, (one, other) in enumerate(zip(found, expected, strict=True)):
        least = 0.0 if index == 0 else _VANISHING * (mean_square * other.numel()) ** 0.5
        difference = (one.float() - other.float()).norm().item()
        errors.append(difference / max(sizes[index], least, torch.finfo(torch.float32).tiny))
    return errors


def reason_text(error: BaseException) -> str:
    """The first line of what went wrong."""
    return (str(error).splitlines() or [type(error).__name__])[0]


def further_arms(arms: Sequence[Arm]) -> tuple[list[Arm], list[Skipped]]:
    """The arms that these, all known to be right, make of themselves, not compared yet; and what could not be made."""
    made: list[Arm] = []
    skipped: list[Skipped] = []
    for arm in arms:
        if arm.further is None:
            continue
        other = arm.further()
        if isinstance(other, Skipped):
            skipped.append(other)
        else:
            made.append(other)
    return made, skipped
