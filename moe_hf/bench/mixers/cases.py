"""What a measurement of mixers is made of: arms that take turns, and what they must be to each other."""

from collections.abc import Callable
from typing import NamedTuple

import torch

from moe_hf.bench.harness.timing import Samples, Step

FORWARD, TRAINING, DECODE = "forward", "training", "decode"
"""Without gradients; forward and backward; one token after a context."""

TIME, PEAK = "time", "peak memory"


class Arm(NamedTuple):
    """One way of doing the work of its case.

    Attributes:
        name: what the tables call it.
        step: one call.
        tokens: tokens that a call brings forth; times are given per token where a case decodes.
        output: what a call computes, compared with that of the case's first arm that has one.
        once: whether it is timed in one cold call alone, since a call takes minutes.
    """

    name: str
    step: Step
    tokens: int = 1
    output: Callable[[], torch.Tensor] | None = None
    once: bool = False


class Claim(NamedTuple):
    """A number to reach: the time (or peak memory) of the least of `above` over that of `below`.

    Attributes:
        quantity: what the row of the table says.
        must: at least this where `higher`, else at most.
        above: names of arms; the best of them counts.
        below: name of an arm.
        higher: whether more is better.
        of: `TIME` or `PEAK`.
    """

    quantity: str
    must: float
    above: tuple[str, ...]
    below: str
    higher: bool = True
    of: str = TIME


class Case(NamedTuple):
    """Arms that are measured together, made only when their turn comes.

    Attributes:
        name: what is measured.
        mode: `FORWARD`, `TRAINING` or `DECODE`.
        width: of the layer.
        length: tokens of a call, or of the context before a decoded token.
        build: makes the arms.
        claims: what is to be reached.
        memory: whether the most that a call holds is measured instead of its time.
    """

    name: str
    mode: str
    width: int
    length: int
    build: Callable[[], list[Arm]]
    claims: tuple[Claim, ...] = ()
    memory: bool = False

    @property
    def label(self) -> str:
        """In a few words.

        >>> Case("Mamba-1", FORWARD, 768, 2048, list).label
        'Mamba-1, forward, 2,048 tokens, width 768'
        """
        what = f"{self.mode}, memory" if self.memory else self.mode
        after = f"after {self.length:,} tokens" if self.mode == DECODE else f"{self.length:,} tokens"
        return f"{self.name}, {what}, {after}, width {self.width}"


class ArmResult(NamedTuple):
    """One arm's samples, in seconds per call (per token where the case decodes), or the bytes that a call held."""

    name: str
    samples: Samples | None = None
    peak_bytes: int | None = None
    error: float | None = None


class CaseResult(NamedTuple):
    """What was measured of a case; `skipped` says which arms were not, and why."""

    name: str
    mode: str
    width: int
    length: int
    label: str
    arms: list[ArmResult]
    skipped: dict[str, str]

    def arm(self, name: str) -> ArmResult | None:
        """The arm of that name, if it was measured."""
        return next((arm for arm in self.arms if arm.name == name), None)
