"""What was measured, in a form that a JSON file holds without loss, and what can be asked of it."""

import math
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

from moe_hf.bench.harness.arms import GEMM, ROOF, TRANSFORMERS, Skipped
from moe_hf.bench.harness.spread import Ratio, Spread, ratio, spread
from moe_hf.bench.harness.timing import Samples

UNTIMED = Samples(0, [], [])


class ArmResult(NamedTuple):
    """One arm's samples and memory; None where something was not measured.

    `error` is the relative error of its output, `saved_bytes` what it keeps for backward, `peak_bytes` the most that
    one call holds at once beyond what was there, `gradient_bytes` the returned gradients among it.
    """

    name: str
    family: str
    samples: Samples = UNTIMED
    flops: float = 0.0
    error: float | None = None
    saved_bytes: int | None = None
    peak_bytes: int | None = None
    gradient_bytes: int = 0

    @property
    def spread(self) -> Spread:
        """Median and quartiles, in seconds per call; of an arm that was not timed they are not a number."""
        return spread(self.samples.seconds)

    @property
    def gflops(self) -> float | None:
        """Achieved 10^9 floating-point operations per second."""
        return self.flops / self.spread.median / 1e9 if self.flops and self.samples.seconds else None


class GroupResult(NamedTuple):
    """One group's arms, which may be compared with one another and with nothing else."""

    case: str
    mode: str
    size: Any
    clock: str
    arms: list[ArmResult]
    skipped: list[Skipped]

    @property
    def place(self) -> str:
        """Where its numbers were measured."""
        return self.size.place(self.case, self.mode)

    @property
    def title(self) -> str:
        """What stands above its table."""
        return self.size.title(self.case, self.mode)

    def arm(self, name: str) -> ArmResult | None:
        """The arm of that name, if it was measured."""
        return next((arm for arm in self.arms if arm.name == name), None)

    def first_of(self, family: str) -> ArmResult | None:
        """The first measured arm of a family; of roof and plain GEMM there is at most one."""
        return next((arm for arm in self.arms if arm.family == family), None)

    def best(self, family: str = TRANSFORMERS) -> ArmResult | None:
        """The arm of a family with the smallest median."""
        arms = [arm for arm in self.arms if arm.family == family]
        return min(arms, key=lambda arm: arm.spread.median) if arms else None

    def speedup(self, name: str, over: ArmResult | None) -> Ratio | None:
        """How many times faster the named arm is than another; above 1 is faster."""
        arm = self.arm(name)
        return None if arm is None or over is None else ratio(over.samples, arm.samples)

    def to_roof(self, name: str) -> Ratio | None:
        """The named arm's time over that of the dense computation; below 1 is faster than dense."""
        arm, roof = self.arm(name), self.first_of(ROOF)
        return None if arm is None or roof is None else ratio(arm.samples, roof.samples)

    def gemm_share(self, name: str) -> float | None:
        """The named arm's achieved FLOP/s over those of the plain GEMM."""
        arm, gemm = self.arm(name), self.first_of(GEMM)
        if arm is None or gemm is None or not arm.gflops:
            return None
        return arm.gflops / (gemm.gflops or math.nan)


class Report(NamedTuple):
    """Everything of one run.

    `machine` is `describe_machine`'s, `command` the words that repeat the run. `further` holds what a suite measures
    besides its groups, by name: NamedTuples, lists, dicts and numbers.
    """

    title: str
    command: str
    seed: int
    machine: dict[str, Any]
    groups: list[GroupResult]
    interrupted: bool = False
    further: Mapping[str, Any] = {}

    def of_case(self, case: str) -> Iterator[tuple[str, list[GroupResult]]]:
        """Each mode of a case, with its groups."""
        groups = [group for group in self.groups if group.case == case]
        for mode in dict.fromkeys(group.mode for group in groups):
            yield mode, [group for group in groups if group.mode == mode]

    @property
    def cases(self) -> list[str]:
        """The cases that were measured, in order."""
        return list(dict.fromkeys(group.case for group in self.groups))

    @property
    def wrong(self) -> list[str]:
        """The arms that computed something else than their reference."""
        return list(dict.fromkeys(one.name for group in self.groups for one in group.skipped if one.wrong))


def plain(value: Any) -> Any:
    """The value as what a JSON file can hold: NamedTuples are dicts by their fields' names.

    >>> plain([Ratio(2.0, 1.5)])
    [{'of_medians': 2.0, 'paired': 1.5}]
    """
    if isinstance(value, Mapping):
        return {name: plain(one) for name, one in value.items()}
    # A NamedTuple is a tuple, which JSON would write as a list without names.
    fields = getattr(type(value), "_fields", None)
    if fields is not None:
        return {name: plain(getattr(value, name)) for name in fields}
    return [plain(one) for one in value] if isinstance(value, list | tuple) else value


def to_json(report: Report) -> dict[str, Any]:
    """The report as what a JSON file can hold, with medians and quartiles beside the samples."""
    data = plain(report)
    for group, of in zip(report.groups, data["groups"], strict=True):
        of["arms"] = [_arm_to_json(arm) for arm in group.arms]
    further = data.pop("further")
    return {**data, **further}


def _arm_to_json(arm: ArmResult) -> dict[str, Any]:
    summary = arm.spread
    of_samples = {"median": summary.median, "low_quartile": summary.low, "high_quartile": summary.high}
    return {**plain(arm), **(of_samples if summary.samples else {}), "gflops": arm.gflops}
