"""What a suite says of a measurement, as data: a case builds arms of one size, a goal is a number to reach."""

from collections.abc import Callable, Iterable
from functools import partial
from operator import eq
from typing import Any, NamedTuple, Protocol

from moe_hf.bench.harness.arms import Group, Options

TIME, PEAK, SAVED, TEMPORARY = "time", "peak memory", "saved for backward", "temporary memory"
"""What two arms are compared by. Temporary is the peak without the gradients that a call returns."""


class Fastest(NamedTuple):
    """The arm of a family with the smallest median."""

    family: str


class Goal(NamedTuple):
    """A number to reach: `of` the least of `above`, over that of `below`.

    Attributes:
        quantity: what the row of the table says; goals of one quantity and number to reach share a row.
        must: at least this where `higher`, else at most.
        above: name of an arm, names of several of which the least counts, or the fastest of a family.
        below: the name of an arm, the fastest of a family, or what a size allows in bytes.
        goal: what is hoped for.
        higher: whether more is better.
        of: `TIME`, `PEAK`, `SAVED`, `TEMPORARY`, or the name of further numbers of the report, by arm.
        by_round: take the median of the ratios within a round, which bursts of other load hardly shift.
        case, mode: which groups count; for further numbers `case` says where they are from.
        sizes: which of their sizes.
    """

    quantity: str
    must: float
    above: str | tuple[str, ...] | Fastest
    below: str | Fastest | Callable[[Any], float]
    goal: float | None = None
    higher: bool = True
    of: str = TIME
    by_round: bool = False
    case: str = ""
    mode: str = ""
    sizes: Callable[[Any], bool] = lambda size: True


class CaseSize(Protocol):
    """How large a case is, in the suite's own numbers; a NamedTuple, which a JSON file holds field by field."""

    @property
    def threads(self) -> int:
        """PyTorch's intra-op threads."""
        ...

    @property
    def tokens(self) -> int:
        """Tokens of a call, or of the context before it."""
        ...

    def place(self, case: str, mode: str) -> str:
        """Where a number was measured, in a few words."""
        ...

    def title(self, case: str, mode: str) -> str:
        """What stands above the case's table."""
        ...


class Case(NamedTuple):
    """Something to measure, built only when its turn comes.

    Attributes:
        name: what is measured.
        mode: `FORWARD`, `TRAINING`, `DECODE` or `GENERATE`, or what else the suite tells apart.
        size: of the work.
        build: makes the arms.
        goals: what this very case has to reach; goals of several cases are the suite's.
        timed: whether the arms are compared and timed.
        memory: whether the most that a call holds is counted, which costs a call or two per arm.
        backends: replaces the choice in `Options`, unless it is None.
    """

    name: str
    mode: str
    size: CaseSize
    build: Callable[[Options], Group]
    goals: tuple[Goal, ...] = ()
    timed: bool = True
    memory: bool = False
    backends: tuple[str, ...] | None = None

    @property
    def place(self) -> str:
        """Which case it is, in a few words."""
        return self.size.place(self.name, self.mode)


def goals_of(cases: Iterable[Case]) -> list[Goal]:
    """The goals that cases carry themselves, each bound to the groups of its case."""
    return [
        goal._replace(case=case.name, mode=case.mode, sizes=partial(eq, case.size))
        for case in cases
        for goal in case.goals
    ]
