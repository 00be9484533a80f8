"""Draws a run's pictures: the loss, and how evenly the experts are used over time."""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import TwoSlopeNorm
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, MaxNLocator

_INK, _QUIET, _TRAIN, _HELD_OUT = "#222222", "#8a8a8a", "#3b6fb6", "#d1495b"
_MOST_ROWS = 8


def draw_loss(events: Sequence[dict[str, Any]], title: str, file: Path) -> bool:
    """Draw the cross-entropies of training and of held-out data against steps; False if there is no line to draw.

    Both are of the answers alone. A run that was logged before they were has its training loss as a whole.

    Args:
        events: of `read_metrics`.
        title: stands above the picture.
        file: PNG to write.
    """
    alike = any("cross_entropy" in event for event in events)
    steps, losses = _series(events, "cross_entropy" if alike else "loss")
    held_steps, held_losses = _series(events, "eval_loss")
    if max(len(steps), len(held_steps)) < 2:
        return False
    figure = Figure(figsize=(7.5, 4.2), layout="constrained")
    axes = figure.add_subplot()
    if steps:
        axes.plot(steps, losses, color=_TRAIN, linewidth=1.6, label=f"training, last {losses[-1]:.3f}")
    if held_steps:
        label = f"held out, last {held_losses[-1]:.3f}"
        axes.plot(held_steps, held_losses, color=_HELD_OUT, marker="o", markersize=5, label=label)
    lowest = min([*losses, *held_losses])
    if lowest > 0 and max([*losses, *held_losses]) / lowest > 5:
        axes.set_yscale("log", subs=[])
        axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axes.yaxis.set_major_formatter("{x:g}")
    _dress(axes, title, "step", "cross-entropy (nats per label)" if alike else "loss (nats per label)")
    axes.legend(frameon=False, labelcolor=_INK)
    _save(figure, file)
    return True


def draw_expert_utilization(events: Sequence[dict[str, Any]], layers: Sequence[int], title: str, file: Path) -> bool:
    """Draw a heat map per sparse layer, experts against steps; False if no expert's load was logged.

    A field's colour is the expert's load over its fair share: 1 is fair, 0 an expert that gets no token.

    Args:
        events: of `read_metrics`.
        layers: numbers of the sparse layers, from 0.
        title: stands above the picture.
        file: PNG to write.
    """
    loads = expert_loads(events, layers)
    if not loads:
        return False
    columns = math.ceil(len(loads) / _MOST_ROWS)
    rows = math.ceil(len(loads) / columns)
    figure = Figure(figsize=(max(7.5, 5.0 * columns), 1.0 + 1.3 * rows), layout="constrained")
    grid = figure.subplots(rows, columns, squeeze=False, sharex=True)
    highest = max(2.0, max(float(load.max()) for _, load in loads.values()))
    norm = TwoSlopeNorm(vmin=0.0, vcenter=1.0, vmax=highest)
    image = None
    for index, (layer, (steps, load_SE)) in enumerate(loads.items()):
        axes = grid[index % rows][index // rows]
        image = axes.pcolormesh(_edges(steps), numpy.arange(load_SE.shape[1] + 1), load_SE.T, cmap="RdBu_r", norm=norm)
        axes.set_ylabel(f"layer {layer}\nexpert", fontsize=9, color=_INK)
        ticks = range(0, load_SE.shape[1], max(1, load_SE.shape[1] // 4))
        axes.set_yticks([tick + 0.5 for tick in ticks], [str(tick) for tick in ticks])
        axes.tick_params(colors=_QUIET, labelsize=8, length=2)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        for side in axes.spines.values():
            side.set_visible(False)
    for index in range(len(loads), rows * columns):
        grid[index % rows][index // rows].set_visible(False)
    for column in range(columns):
        last = min(rows, len(loads) - column * rows) - 1
        grid[last][column].set_xlabel("step", fontsize=9, color=_INK)
        grid[last][column].tick_params(labelbottom=True)
    assert image is not None
    bar = figure.colorbar(image, ax=grid, label="load / fair share", ticks=_load_ticks(highest), format="{x:.1f}")
    bar.outline.set_visible(False)
    bar.ax.tick_params(colors=_QUIET, labelsize=8, length=2)
    figure.suptitle(title, fontsize=11, color=_INK)
    _save(figure, file)
    return True


def expert_loads(events: Sequence[dict[str, Any]], layers: Sequence[int]) -> dict[int, tuple[list[int], numpy.ndarray]]:
    """By layer: the steps at which loads were logged, and the loads (steps, experts), 1 = fair share."""
    logged = [(event["step"], event["layers"]["load"]) for event in events if "layers" in event]
    if not logged:
        return {}
    steps = [step for step, _ in logged]
    share_SLE = numpy.array([load for _, load in logged])
    return {layer: (steps, share_SLE[:, i] * share_SLE.shape[2]) for i, layer in enumerate(layers)}


def _series(events: Sequence[dict[str, Any]], name: str) -> tuple[list[int], list[float]]:
    """Steps and values of one metric, where it was logged."""
    found = [(event["step"], event[name]) for event in events if event.get(name) is not None]
    return [step for step, _ in found], [value for _, value in found]


def _edges(steps: list[int]) -> numpy.ndarray:
    """Borders of the windows that end at the steps; the first window is taken to be as long as the second."""
    length = steps[1] - steps[0] if len(steps) > 1 else 1
    return numpy.array([max(0, steps[0] - length), *steps])


def _load_ticks(highest: float) -> list[float]:
    return [0.0, 0.5, 1.0, *([(1 + highest) / 2] if highest > 2.5 else []), highest]


def _dress(axes: Axes, title: str, x_label: str, y_label: str) -> None:
    axes.set_title(title, fontsize=11, color=_INK, loc="left")
    axes.set_xlabel(x_label, color=_INK)
    axes.set_ylabel(y_label, color=_INK)
    axes.tick_params(colors=_QUIET)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.grid(axis="y", color="#e6e6e6", linewidth=0.8)
    axes.set_axisbelow(True)
    for side in ("top", "right", "left"):
        axes.spines[side].set_visible(False)
    axes.spines["bottom"].set_color(_QUIET)


def _save(figure: Figure, file: Path) -> None:
    # The canvas by hand: pyplot would pick a window system and keep every figure alive.
    FigureCanvasAgg(figure)
    figure.savefig(file, dpi=130)
