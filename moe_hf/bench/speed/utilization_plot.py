"""Draws how evenly routers use the experts, and what a capacity limit drops: one picture per k and capacity factor."""

import math
from collections.abc import Sequence
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Patch

from moe_hf.bench.harness.drawing import GRID, INK, QUIET, dress, save
from moe_hf.bench.speed.utilization import Utilization

_KEPT, _DROPPED = "#0072B2", "#D55E00"


def draw_utilization(measured: Sequence[Utilization], folder: Path) -> list[Path]:
    """Write `expert_utilization_k{k}_cf{capacity_factor}.png` files (cfnone without a limit); returns their paths."""
    groups: dict[tuple, list[Utilization]] = {}
    for one in measured:
        groups.setdefault((one.k, one.capacity_factor, one.num_experts), []).append(one)
    several = len({one.num_experts for one in measured}) > 1
    drawn = []
    for (k, factor, num_experts), routers in groups.items():
        name = f"expert_utilization_k{k}_cf{'none' if factor is None else f'{factor:g}'}"
        # The number of experts is part of the name only where it tells two files apart.
        name += f"_E{num_experts}" if several else ""
        drawn.append(save(_figure(routers), folder / f"{name}.png"))
    return drawn


def _figure(routers: Sequence[Utilization]) -> Figure:
    columns = min(3, len(routers))
    rows = math.ceil(len(routers) / columns)
    figure = Figure(figsize=(1.0 + 3.6 * columns, 1.4 + 2.4 * rows), layout="constrained")
    grid = figure.subplots(rows, columns, squeeze=False, sharey=True)
    for index, one in enumerate(routers):
        _draw(grid[index // columns][index % columns], one)
    for index in range(len(routers), rows * columns):
        grid[index // columns][index % columns].set_visible(False)
    for row in grid:
        row[0].set_ylabel("slots / fair share", color=INK)
    first = routers[0]
    limit = "no capacity limit" if first.capacity_factor is None else f"capacity factor {first.capacity_factor:g}"
    figure.suptitle(
        f"Fresh routers on random tokens: {first.num_experts} experts, k={first.k}, {limit}", color=INK, fontsize=12
    )
    patches = [Patch(color=_KEPT, label="kept")]
    if first.capacity_factor is not None:
        patches.append(Patch(color=_DROPPED, label="dropped"))
    figure.legend(handles=patches, loc="outside lower center", ncols=2, frameon=False, labelcolor=QUIET)
    return figure


def _draw(axes: Axes, one: Utilization) -> None:
    experts = range(one.num_experts)
    kept = [count / one.fair for count in one.kept]
    dropped = [(offered - count) / one.fair for offered, count in zip(one.offered, one.kept, strict=True)]
    axes.bar(experts, kept, color=_KEPT, width=0.8)
    axes.bar(experts, dropped, bottom=kept, color=_DROPPED, width=0.8)
    axes.axhline(1.0, color=INK, linewidth=1)
    busiest = max(one.offered) / one.fair
    title = f"{one.router_type}: busiest {busiest:.2f}"
    dress(axes, title + (f", dropped {one.dropped:.1%}" if one.capacity_factor is not None else ""), "expert")
    axes.grid(axis="y", color=GRID, linewidth=0.8)
    step = max(1, one.num_experts // 8)
    axes.set_xticks(range(0, one.num_experts, step))
