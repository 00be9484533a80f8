"""What a named suite is: its cases, what they must reach, and how its report reads."""

from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

from moe_hf.bench.harness.arms import Options
from moe_hf.bench.harness.cases import Case, Goal
from moe_hf.bench.harness.report import Page
from moe_hf.bench.harness.timing import SamplingPlan

Further = Callable[[bool, Options, bool, Callable[[str], None]], Iterable[tuple[str, Any]]]
"""What is measured besides the cases, by name. It is told whether to be quick, the options, whether a report is to be
written, and whom to tell what comes next."""


class Suite(NamedTuple):
    """A named set of cases, and the table that they fill.

    Attributes:
        meaning: what it is, in a line.
        device: where it is measured.
        cases: with True a quick choice of them.
        page: how its report reads.
        goals: that are no single case's.
        clock: which clock times it; None leaves the choice to the user.
        plans: how much is measured, (all of it, quick); None leaves the choice to the user.
        further: what is measured besides the cases.
    """

    meaning: str
    device: str
    cases: Callable[[bool], list[Case]]
    page: Page
    goals: Sequence[Goal] = ()
    clock: str | None = None
    plans: tuple[SamplingPlan, SamplingPlan] | None = None
    further: Further = lambda quick, options, whole, on_progress: ()
