"""What was measured, in a form that a JSON file holds without loss, and what can be asked of it."""

import math
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

from moe_hf.bench.harness.spread import Ratio, Spread, ratio, spread
from moe_hf.bench.harness.timing import Samples
from moe_hf.bench.speed.arms import GEMM, OWN, ROOF, TRANSFORMERS, Skipped
from moe_hf.bench.speed.sizes import Size


class ArmResult(NamedTuple):
    """One arm's samples and memory; None where something was not measured.

    `error` is the relative error of its output, `saved_bytes` what it keeps for backward, `peak_bytes` the most that
    one call holds at once beyond what was there, the returned gradients among it.
    """

    name: str
    family: str
    samples: Samples
    flops: float = 0.0
    error: float | None = None
    saved_bytes: int | None = None
    peak_bytes: int | None = None

    @property
    def spread(self) -> Spread:
        """Median and quartiles, in seconds per call."""
        return spread(self.samples.seconds)

    @property
    def gflops(self) -> float | None:
        """Achieved 10^9 floating-point operations per second."""
        return self.flops / self.spread.median / 1e9 if self.flops else None


class GroupResult(NamedTuple):
    """One group's arms, which may be compared with one another and with nothing else."""

    case: str
    mode: str
    size: Size
    clock: str
    arms: list[ArmResult]
    skipped: list[Skipped]
    gradient_bytes: int = 0

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
    """Everything of one run: `machine` is `describe_machine`'s, `command` the words that repeat the run."""

    title: str
    command: str
    seed: int
    machine: dict[str, Any]
    groups: list[GroupResult]
    interrupted: bool = False

    def of_case(self, case: str) -> Iterator[tuple[str, list[GroupResult]]]:
        """Each mode of a case, with its groups."""
        groups = [group for group in self.groups if group.case == case]
        for mode in dict.fromkeys(group.mode for group in groups):
            yield mode, [group for group in groups if group.mode == mode]

    @property
    def cases(self) -> list[str]:
        """The cases that were measured, in order."""
        return list(dict.fromkeys(group.case for group in self.groups))


def own_names(groups: list[GroupResult]) -> list[str]:
    """Names of this package's arms in any of the groups, in order."""
    return list(dict.fromkeys(arm.name for group in groups for arm in group.arms if arm.family == OWN))


def to_json(report: Report) -> dict[str, Any]:
    """The report as what a JSON file can hold, with medians and quartiles beside the samples."""
    return {
        **report._asdict(),
        "groups": [
            {
                **group._asdict(),
                "size": group.size._asdict(),
                "arms": [_arm_to_json(arm) for arm in group.arms],
                "skipped": [skipped._asdict() for skipped in group.skipped],
            }
            for group in report.groups
        ],
    }


def from_json(data: Mapping[str, Any]) -> Report:
    """The report that `to_json` was given."""
    groups = [
        GroupResult(
            **{
                **group,
                "size": Size(**group["size"]),
                "arms": [_arm_from_json(arm) for arm in group["arms"]],
                "skipped": [Skipped(**skipped) for skipped in group["skipped"]],
            }
        )
        for group in data["groups"]
    ]
    return Report(**{**{name: data[name] for name in Report._fields}, "groups": groups})


def _arm_to_json(arm: ArmResult) -> dict[str, Any]:
    summary = arm.spread
    return {
        **arm._asdict(),
        "samples": arm.samples._asdict(),
        "median": summary.median,
        "low_quartile": summary.low,
        "high_quartile": summary.high,
        "gflops": arm.gflops,
    }


def _arm_from_json(data: Mapping[str, Any]) -> ArmResult:
    fields = {name: data[name] for name in ArmResult._fields}
    return ArmResult(**{**fields, "samples": Samples(**data["samples"])})
