"""Holds measured groups against the numbers that they have to reach."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from moe_hf.bench.harness.cases import PEAK, SAVED, TEMPORARY, TIME, Fastest, Goal
from moe_hf.bench.harness.results import ArmResult, GroupResult
from moe_hf.bench.harness.spread import ratio


class Value(NamedTuple):
    """One measured number and where it was measured; `paired` is its second form (see `Ratio`), where it has one."""

    where: str
    number: float
    paired: float | None = None


class Verdict(NamedTuple):
    """A goal held against what was measured; `worst` decides. Without values it was not measured."""

    goal: Goal
    values: list[Value]

    @property
    def worst(self) -> Value | None:
        """The value that is furthest from the goal."""
        choose = min if self.goal.higher else max
        return choose(self.values, key=lambda value: value.number) if self.values else None

    @property
    def best(self) -> Value | None:
        """The value that is nearest to the goal or most beyond it."""
        choose = max if self.goal.higher else min
        return choose(self.values, key=lambda value: value.number) if self.values else None

    def reached(self, limit: float) -> int:
        """How many of the values reach `limit`, unrounded."""
        numbers = [value.number for value in self.values]
        return sum(number >= limit if self.goal.higher else number <= limit for number in numbers)

    @property
    def met(self) -> bool:
        """Whether it was measured and every value reaches `must`."""
        return bool(self.values) and self.reached(self.goal.must) == len(self.values)

    @property
    def text(self) -> str:
        """The verdict in words."""
        count = len(self.values)
        if not count:
            return "not measured"
        if not self.met:
            return f"MISSED in {count - self.reached(self.goal.must)} of {count}"
        if self.goal.goal is None:
            return "met"
        hoped = self.reached(self.goal.goal)
        return "met, goal met" if hoped == count else f"met, goal met in {hoped} of {count}"


def judge(
    goals: Iterable[Goal], groups: Sequence[GroupResult], further: Mapping[str, Any] | None = None
) -> list[Verdict]:
    """One verdict for each quantity and number to reach, with what the groups and the report's further numbers say."""
    rows: dict[Any, Verdict] = {}
    for goal in goals:
        # Several cases may claim the same quantity; they share a row, and the worst of them decides it. Not so where
        # they ask for different numbers: the row's verdict would hold one case against what another has to reach.
        row = (goal.quantity, goal.must, goal.goal, goal.higher)
        verdict = rows.setdefault(row, Verdict(goal, []))
        if goal.of in _BYTES or goal.of == TIME:
            for group in groups:
                if (group.case, group.mode) == (goal.case, goal.mode) and goal.sizes(group.size):
                    verdict.values.extend(_values(goal, group))
        else:
            number_of = (further or {}).get(goal.of, {})
            if goal.above in number_of and goal.below in number_of:
                verdict.values.append(Value(goal.case, number_of[goal.above] / number_of[goal.below]))
    return list(rows.values())


def _values(goal: Goal, group: GroupResult) -> list[Value]:
    above = _arms(goal.above, group)
    if goal.of == TIME:
        below = _arms(goal.below, group)
        found = [ratio(arm.samples, below[0].samples) for arm in above if below]
        if not found:
            return []
        if goal.by_round:
            return [Value(group.place, min(one.paired for one in found))]
        least = min(found, key=lambda one: one.of_medians)
        return [Value(group.place, least.of_medians, least.paired)]
    measure = _BYTES[goal.of]
    numbers = [number for arm in above if (number := measure(arm)) is not None]
    limit = _limit(goal, group)
    if not numbers or limit is None:
        return []
    least_bytes = min(numbers)
    # Bytes repeat exactly, so there is no second ratio that would have to agree.
    if goal.of == SAVED:
        what = f"{least_bytes / group.size.tokens:,.0f} B per token"
    else:
        what = f"{_mebibytes(least_bytes)} and {_mebibytes(limit)} MiB"
    return [Value(f"{group.place}: {what}", least_bytes / max(limit, 1))]


def _arms(which: Any, group: GroupResult) -> list[ArmResult]:
    """The arms meant, all of them; none if one of them was not measured."""
    if isinstance(which, Fastest):
        found = [group.best(which.family)]
    else:
        found = [group.arm(name) for name in ([which] if isinstance(which, str) else which)]
    # The best of several opponents is not known while one of them is missing.
    return [] if None in found else [arm for arm in found if arm is not None]


def _limit(goal: Goal, group: GroupResult) -> float | None:
    """The bytes of the arm below, or what the size allows."""
    if callable(goal.below):
        return goal.below(group.size)
    return next((_BYTES[goal.of](arm) for arm in _arms(goal.below, group)), None)


def _temporary(arm: ArmResult) -> int | None:
    return None if arm.peak_bytes is None else arm.peak_bytes - arm.gradient_bytes


_BYTES: dict[str, Callable[[ArmResult], int | None]] = {
    PEAK: lambda arm: arm.peak_bytes,
    SAVED: lambda arm: arm.saved_bytes,
    TEMPORARY: _temporary,
}


def _mebibytes(number: float) -> str:
    return f"{number / 2**20:,.1f}".removesuffix(".0")
