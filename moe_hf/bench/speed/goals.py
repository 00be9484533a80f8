"""The numbers that the experts have to reach, and whether measured groups reach them."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from moe_hf.bench.harness.spread import Ratio, ratio
from moe_hf.bench.speed.arms import FORWARD, ROOF, TRAINING, TRANSFORMERS
from moe_hf.bench.speed.cases import DECODE
from moe_hf.bench.speed.experts_case import captured_name
from moe_hf.bench.speed.growth_case import FEW, GROWTH, MANY, at
from moe_hf.bench.speed.model_case import DENSE_TWIN, STOCK_GPT2
from moe_hf.bench.speed.opponents import GPU_SUBJECT, PACKED, SUBJECT
from moe_hf.bench.speed.results import ArmResult, GroupResult
from moe_hf.bench.speed.sizes import Size, expert_gradient_bytes

SMALL_WIDTHS = (Size(1536, 128, 128, 8, 1, activation="gelu_new"), Size(512, 128, 256, 8, 2))
"""Experts so small that the work around the GEMMs decides, the tiny preset's first; they have rows of their own."""


class Value(NamedTuple):
    """One measured number and where it was measured; `paired` is its second form (see `Ratio`), where it has one."""

    where: str
    number: float
    paired: float | None = None


Measure = Callable[[Sequence[GroupResult]], list[Value]]


class Goal(NamedTuple):
    """A number to reach: at least `must` where `higher` is better, else at most; `goal` is what is hoped for."""

    quantity: str
    must: float
    goal: float | None
    higher: bool
    measure: Measure


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


def judge(goals: Sequence[Goal], groups: Sequence[GroupResult]) -> list[Verdict]:
    """Every goal with what the groups say about it."""
    return [Verdict(goal, goal.measure(groups)) for goal in goals]


def _experts(
    groups: Sequence[GroupResult],
    mode: str,
    dtype: str = "float32",
    activation: str | None = "gelu",
    least_rows: int = 0,
    tokens: int | None = None,
    small: bool = False,
) -> list[GroupResult]:
    """The experts groups of that kind; `small` are those of `SMALL_WIDTHS`, which no other row counts."""
    shapes = {size.label for size in SMALL_WIDTHS}
    return [
        group
        for group in groups
        if (group.case, group.mode) == ("experts", mode)
        and group.size.dtype == dtype
        and activation in (None, group.size.activation)
        and (group.size.label in shapes) == small
        and group.size.rows_per_expert >= least_rows
        and tokens in (None, group.size.tokens)
    ]


def _value(group: GroupResult, found: Ratio | None) -> list[Value]:
    where = f"{group.size.label}, {group.size.setting}"
    return [] if found is None else [Value(where, found.of_medians, found.paired)]


def _each(mode: str, number: Callable[[GroupResult], Ratio | None], **which: Any) -> Measure:
    """One value for each experts group of that mode; `which` are the other arguments of `_experts`."""

    def measure(groups: Sequence[GroupResult]) -> list[Value]:
        return [value for group in _experts(groups, mode, **which) for value in _value(group, number(group))]

    return measure


def _over_best(name: str, mode: str, **which: Any) -> Measure:
    return _each(mode, lambda group: group.speedup(name, group.best(TRANSFORMERS)), **which)


def _over_arm(name: str, other: str, mode: str, **which: Any) -> Measure:
    return _each(mode, lambda group: group.speedup(name, group.arm(other)), **which)


def _to_roof(name: str, mode: str, **which: Any) -> Measure:
    return _each(mode, lambda group: group.to_roof(name), **which)


def _of_roof(name: str, mode: str, **which: Any) -> Measure:
    """The share of the dense computation's throughput: the roof's time over the arm's."""
    return _each(mode, lambda group: group.speedup(name, group.first_of(ROOF)), **which)


def _model_step(dense: str) -> Measure:
    def measure(groups: Sequence[GroupResult]) -> list[Value]:
        values = []
        for group in groups:
            arm, roof = group.arm(SUBJECT), group.arm(dense)
            if (group.case, group.mode) == ("model", TRAINING) and arm and roof:
                values += _value(group, ratio(arm.samples, roof.samples))
        return values

    return measure


def _saved(activation: str, over: str | None) -> Measure:
    """Bytes saved for backward over those of an arm, or, without one, over k F x itemsize x 1.05 + 128 per token."""

    def measure(groups: Sequence[GroupResult]) -> list[Value]:
        values = []
        for group in _experts(groups, TRAINING, activation=activation):
            size, arm = group.size, group.arm(SUBJECT)
            if arm is None or arm.saved_bytes is None:
                continue
            allowed = float(size.tokens * (size.k * size.expert_width * size.torch_dtype.itemsize * 1.05 + 128))
            if over is not None:
                other = group.arm(over)
                if other is None or other.saved_bytes is None:
                    continue
                allowed = float(other.saved_bytes)
            where = f"{size.label}, {size.setting}: {arm.saved_bytes / size.tokens:,.0f} B per token"
            values.append(Value(where, arm.saved_bytes / allowed))
        return values

    return measure


def _growth(name: str, mode: str) -> Measure:
    def measure(groups: Sequence[GroupResult]) -> list[Value]:
        values = []
        for group, few, many in _growing(groups, name, mode):
            values += _value(group, ratio(many.samples, few.samples))
        return values

    return measure


def _temporaries(name: str) -> Measure:
    """Growth of the peak of a training step without the gradients that it returns."""

    def measure(groups: Sequence[GroupResult]) -> list[Value]:
        values = []
        for group, few, many in _growing(groups, name, TRAINING):
            if few.peak_bytes is None or many.peak_bytes is None:
                continue
            returned = [expert_gradient_bytes(group.size._replace(num_experts=count)) for count in (FEW, MANY)]
            left = [few.peak_bytes - returned[0], many.peak_bytes - returned[1]]
            where = f"{group.size.label}: {left[0] / 2**20:.1f} and {left[1] / 2**20:.1f} MiB"
            values.append(Value(where, left[1] / max(left[0], 1)))
        return values

    return measure


def _growing(groups: Sequence[GroupResult], name: str, mode: str) -> list[tuple[GroupResult, ArmResult, ArmResult]]:
    found = []
    for group in groups:
        few, many = group.arm(at(name, FEW)), group.arm(at(name, MANY))
        if (group.case, group.mode) == (GROWTH, mode) and few and many:
            found.append((group, few, many))
    return found


_NEW = {"activation": "gelu_new"}
_BF16 = {"dtype": "bfloat16"}
_SMALL = {"activation": None, "small": True}
_CAPTURED = captured_name(GPU_SUBJECT)

CPU_GOALS: tuple[Goal, ...] = (
    Goal("forward, gelu, vs the best transformers backend", 1.05, 1.15, True, _over_best(SUBJECT, FORWARD)),
    Goal("the same, weights packed for inference", 1.05, 1.2, True, _over_best(PACKED, FORWARD)),
    Goal(
        "forward, gelu, vs transformers' default grouped_mm", 1.2, 1.4, True, _over_arm(SUBJECT, "grouped_mm", FORWARD)
    ),
    Goal("forward, gelu_new, vs the best", 1.2, 1.4, True, _over_best(SUBJECT, FORWARD, **_NEW)),
    Goal("forward, gelu_new, vs grouped_mm", 1.9, 2.5, True, _over_arm(SUBJECT, "grouped_mm", FORWARD, **_NEW)),
    Goal("forward+backward, gelu, vs the best", 1.05, 1.10, True, _over_best(SUBJECT, TRAINING)),
    Goal("forward+backward, gelu_new, vs the best", 1.2, 1.25, True, _over_best(SUBJECT, TRAINING, **_NEW)),
    Goal("forward, time / dense MLP of equal active FLOPs", 1.0, 0.87, False, _to_roof(SUBJECT, FORWARD)),
    Goal(
        "forward+backward, time / dense, >= 256 rows per expert",
        1.15,
        1.0,
        False,
        _to_roof(SUBJECT, TRAINING, least_rows=256),
    ),
    Goal("small widths, forward, vs the best", 1.0, None, True, _over_best(SUBJECT, FORWARD, **_SMALL)),
    Goal("small widths, forward+backward, vs the best", 1.0, None, True, _over_best(SUBJECT, TRAINING, **_SMALL)),
    Goal("decode, T=1, vs the best", 1.3, 1.6, True, _over_best(SUBJECT, DECODE, tokens=1)),
    Goal("decode, T=8, vs the best", 1.7, 2.2, True, _over_best(SUBJECT, DECODE, tokens=8)),
    Goal("bf16 forward vs the best", 0.98, 1.05, True, _over_best(SUBJECT, FORWARD, **_BF16)),
    Goal("bf16 forward+backward vs the best", 0.98, 1.05, True, _over_best(SUBJECT, TRAINING, **_BF16)),
    Goal("GPT-2 256x4 train step / transformers' GPT-2", 1.2, 1.12, False, _model_step(STOCK_GPT2)),
    Goal("GPT-2 256x4 train step / this package's dense twin", 1.2, 1.12, False, _model_step(DENSE_TWIN)),
    Goal("saved for backward / (kF x itemsize x 1.05 + 128), gelu", 1.0, None, False, _saved("gelu", None)),
    Goal("saved for backward / grouped_mm, gelu", 0.5, 0.40, False, _saved("gelu", "grouped_mm")),
    Goal("saved for backward / grouped_mm, gelu_new", 0.25, 0.18, False, _saved("gelu_new", "grouped_mm")),
    Goal("growth: forward E 64 / E 8", 1.3, None, False, _growth(SUBJECT, FORWARD)),
    Goal("growth: forward+backward E 64 / E 8", 2.0, None, False, _growth(SUBJECT, TRAINING)),
    Goal("growth: temporaries without returned gradients", 1.2, None, False, _temporaries(SUBJECT)),
)

GPU_GOALS: tuple[Goal, ...] = (
    Goal("forward vs ScatterMoE", 0.95, 1.10, True, _over_arm(GPU_SUBJECT, "scattermoe", FORWARD, **_BF16)),
    Goal("forward+backward vs ScatterMoE", 1.0, 1.20, True, _over_arm(GPU_SUBJECT, "scattermoe", TRAINING, **_BF16)),
    Goal("forward vs grouped_mm", 1.1, 1.3, True, _over_arm(GPU_SUBJECT, "grouped_mm", FORWARD, **_BF16)),
    Goal("forward+backward vs grouped_mm", 1.2, 1.5, True, _over_arm(GPU_SUBJECT, "grouped_mm", TRAINING, **_BF16)),
    Goal("forward, share of a dense MLP's throughput", 0.45, 0.60, True, _of_roof(GPU_SUBJECT, FORWARD, **_BF16)),
    Goal("forward+backward, the same", 0.45, 0.60, True, _of_roof(GPU_SUBJECT, TRAINING, **_BF16)),
    Goal("growth: forward E 64 / E 8", 1.3, None, False, _growth(GPU_SUBJECT, FORWARD)),
    Goal("growth: forward+backward E 64 / E 8", 1.3, None, False, _growth(GPU_SUBJECT, TRAINING)),
    Goal(
        "decode in a CUDA graph vs without",
        1.0,
        None,
        True,
        _over_arm(captured_name(GPU_SUBJECT), GPU_SUBJECT, DECODE, **_BF16),
    ),
)
