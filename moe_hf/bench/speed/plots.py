"""Draws a report's pictures: time over the roof, growth in tokens and in experts, memory, and use of the experts."""

import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from matplotlib.axes import Axes

from moe_hf.bench.harness.arms import GEMM, ROOF, TRAINING
from moe_hf.bench.harness.drawing import INK, PANEL, draw_lines, legend_below, look_of, one_two_five, picture, shown
from moe_hf.bench.harness.results import ArmResult, GroupResult, Report
from moe_hf.bench.speed.growth import GROWTH, split_by_experts
from moe_hf.bench.speed.utilization import Utilization

_MOST_ROWS = 14
_MOST_COLUMNS = 3
Modes = Mapping[str, Sequence[GroupResult]]


class _Dot(NamedTuple):
    """One mark of a dot plot."""

    row: str
    arm: str
    value: float


def draw_plots(report: Report, utilization: Sequence[Utilization], folder: Path) -> list[Path]:
    """Every picture that the report has the numbers for; returns their paths."""
    drawn = []
    for case in report.cases:
        modes = {mode: [one for group in of for one in split_by_experts(group)] for mode, of in report.of_case(case)}
        for name, draw in _PICTURES.items():
            file = folder / f"{name}_{case}.png"
            if draw(case, modes, file):
                drawn.append(file)
    return drawn + _draw_utilization(utilization, folder)


def _ratio_to_roof(case: str, modes: Modes, file: Path) -> bool:
    panels = {
        mode: [
            _Dot(_row(group), arm.name, found.of_medians)
            for group in groups
            for arm in group.arms
            if arm.family not in (ROOF, GEMM) and (found := group.to_roof(arm.name)) is not None
        ]
        for mode, groups in modes.items()
    }
    roofs = [roof.name for groups in modes.values() for group in groups if (roof := group.first_of(ROOF))]
    title = f"{case}: time / {roofs[0] if roofs else ''}"
    return _draw_dots(panels, dict.fromkeys(panels, "time / roof"), title, file, line=1.0)


def _memory(case: str, modes: Modes, file: Path) -> bool:
    panels, labels = {}, {}
    for name, label, measure in (
        ("saved for backward, bytes per token", "bytes per token", _saved_per_token),
        ("peak without returned gradients, MiB", "MiB", _temporary_mebibytes),
    ):
        labels[name] = label
        panels[name] = [
            _Dot(_row(group), arm.name, value)
            for group in modes.get(TRAINING, ())
            for arm in group.arms
            if (value := measure(group, arm)) is not None
        ]
    return _draw_dots(panels, labels, f"{case}, training: memory", file, line=None)


def _saved_per_token(group: GroupResult, arm: ArmResult) -> float | None:
    return None if arm.saved_bytes is None else arm.saved_bytes / group.size.tokens


def _temporary_mebibytes(group: GroupResult, arm: ArmResult) -> float | None:
    if arm.peak_bytes is None or not arm.gradient_bytes:
        return None
    return max(arm.peak_bytes - arm.gradient_bytes, 0) / 2**20


def _draw_dots(
    dots_of: Mapping[str, Sequence[_Dot]], labels: Mapping[str, str], title: str, file: Path, line: float | None
) -> bool:
    dots_of = {name: dots for name, dots in dots_of.items() if dots}
    if not dots_of:
        return False
    rows_of = {name: list(dict.fromkeys(dot.row for dot in dots))[:_MOST_ROWS] for name, dots in dots_of.items()}
    most = max(len(rows) for rows in rows_of.values())
    # Names of rows take as much room again as a panel of few marks.
    with picture(file, 1, len(dots_of), (PANEL[0] + 1.0, 0.9 + 0.42 * most), title) as (figure, panels):
        for axes, (name, dots) in zip(panels[0], dots_of.items(), strict=True):
            rows = rows_of[name]
            for dot in dots:
                if dot.row in rows:
                    look = look_of(dot.arm)
                    axes.plot(dot.value, rows.index(dot.row), look.marker, color=look.color, markersize=8, alpha=0.85)
            axes.set_yticks(range(len(rows)), rows)
            axes.set_ylim(most - 0.5, -0.5)
            axes.set(title=name, xlabel=labels[name])
            if line is not None:
                axes.axvline(line, color=INK, linewidth=1.2)
            _logarithmic_if_wide(axes, [dot.value for dot in dots])
        legend_below(figure, [dot.arm for dots in dots_of.values() for dot in dots], lines=False)
    return True


def _logarithmic_if_wide(axes: Axes, values: Sequence[float]) -> None:
    if min(values) > 0 and max(values) / min(values) > 6:
        axes.set_xscale("log")
        one_two_five(axes.xaxis)
    else:
        axes.set_xlim(0, 1.05 * max(values))


def _growth(field: str, letter: str, label: str) -> Callable[[str, Modes, Path], bool]:
    def draw(case: str, modes: Modes, file: Path) -> bool:
        series = {}
        for mode, groups in modes.items():
            series.update(_series(mode, groups, field, letter))
        if not series:
            return False
        columns = min(len(series), _MOST_COLUMNS)
        title = f"{'experts' if case == GROWTH else case}: growth with the {label}"
        with picture(file, math.ceil(len(series) / columns), columns, title=title) as (figure, panels):
            for axes, (name, lines) in zip(shown(panels, len(series)), series.items(), strict=True):
                draw_lines(axes, lines, name, label, "milliseconds per call")
            legend_below(figure, [arm for lines in series.values() for arm in lines])
        return True

    return draw


def _series(
    mode: str, groups: Sequence[GroupResult], field: str, letter: str
) -> dict[str, dict[str, list[tuple[float, float]]]]:
    """By panel and arm: points (value of the field, milliseconds) of groups that differ in that field alone."""
    families: dict[tuple, list[GroupResult]] = {}
    for group in groups:
        rest = {**group.size._asdict(), field: None}
        families.setdefault(tuple(rest.values()), []).append(group)
    panels = {}
    for alike in families.values():
        if len({getattr(group.size, field) for group in alike}) < 2:
            continue
        of_arm: dict[str, list[tuple[float, float]]] = {}
        for group in alike:
            for arm in group.arms:
                if arm.family != GEMM:
                    of_arm.setdefault(arm.name, []).append((getattr(group.size, field), 1e3 * arm.spread.median))
        size = alike[0].size
        shape = f"T{size.tokens} E{size.num_experts}".replace(f"{letter}{getattr(size, field)}", "").strip()
        text = f"{mode}, {shape}, {size.hidden_size}x{size.expert_width} k{size.k}\n{size.setting}"
        panels[text] = {name: points for name, points in of_arm.items() if len(points) > 1}
    # The first few stand for the rest, which report.json holds.
    return {name: panels[name] for name in list(panels)[:3]}


def _row(group: GroupResult) -> str:
    return f"{group.size.label}\n{group.size.setting}"


def _draw_utilization(measured: Sequence[Utilization], folder: Path) -> list[Path]:
    """`expert_utilization_k{k}_cf{capacity_factor}.png` files (cfnone without a limit); returns their paths."""
    groups: dict[tuple, list[Utilization]] = {}
    for one in measured:
        groups.setdefault((one.k, one.capacity_factor, one.num_experts), []).append(one)
    several = len({one.num_experts for one in measured}) > 1
    drawn = []
    for (k, factor, num_experts), routers in groups.items():
        name = f"expert_utilization_k{k}_cf{'none' if factor is None else f'{factor:g}'}"
        # The number of experts is part of the name only where it tells two files apart.
        drawn.append(folder / (f"{name}_E{num_experts}.png" if several else f"{name}.png"))
        limit = "no capacity limit" if factor is None else f"capacity factor {factor:g}"
        title = f"Fresh routers on random tokens: {num_experts} experts, k={k}, {limit}"
        columns = min(_MOST_COLUMNS, len(routers))
        rows = math.ceil(len(routers) / columns)
        with picture(drawn[-1], rows, columns, (PANEL[0], 2.4), title, sharey=True) as (figure, panels):
            for axes, one in zip(shown(panels, len(routers)), routers, strict=True):
                _draw_use(axes, one)
            for row in panels:
                row[0].set_ylabel("slots / fair share")
            legend_below(figure, ["kept"] if factor is None else ["kept", "dropped"])
    return drawn


def _draw_use(axes: Axes, one: Utilization) -> None:
    experts = range(one.num_experts)
    kept = [count / one.fair for count in one.kept]
    dropped = [(offered - count) / one.fair for offered, count in zip(one.offered, one.kept, strict=True)]
    axes.bar(experts, kept, color=look_of("kept").color)
    axes.bar(experts, dropped, bottom=kept, color=look_of("dropped").color)
    axes.axhline(1.0, color=INK, linewidth=1)
    title = f"{one.router_type}: busiest {max(one.offered) / one.fair:.2f}"
    title += f", dropped {one.dropped:.1%}" if one.capacity_factor is not None else ""
    axes.set(title=title, xlabel="expert")
    axes.set_xticks(range(0, one.num_experts, max(1, one.num_experts // 8)))
    axes.grid(visible=False, axis="x")


_PICTURES: dict[str, Callable[[str, Modes, Path], bool]] = {
    "ratio_to_roof": _ratio_to_roof,
    "growth_tokens": _growth("tokens", "T", "number of tokens"),
    "growth_experts": _growth("num_experts", "E", "number of experts"),
    "memory": _memory,
}
