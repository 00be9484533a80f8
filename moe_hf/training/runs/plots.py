"""Draws a run's pictures: the loss, and how evenly the experts are used over time."""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy
from matplotlib.ticker import MaxNLocator

from moe_hf.bench.harness.drawing import load_axes, load_bar, load_norm, look_of, one_two_five, picture

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
    lines = {
        "training": _series(events, "cross_entropy" if alike else "loss"),
        "held out": _series(events, "eval_loss"),
    }
    if max(len(steps) for steps, _ in lines.values()) < 2:
        return False
    with picture(file, panel=(6.5, 3.3)) as (_, panels):
        axes = panels[0, 0]
        for name, (steps, losses) in lines.items():
            look = look_of(name)
            if steps:
                label = f"{name}, last {losses[-1]:.3f}"
                axes.plot(steps, losses, color=look.color, marker=look.marker, label=label)
        losses = [loss for _, of_line in lines.values() for loss in of_line]
        if min(losses) > 0 and max(losses) / min(losses) > 5:
            axes.set_yscale("log", subs=[])
            one_two_five(axes.yaxis)
        axes.set(title=title, xlabel="step", ylabel=f"{'cross-entropy' if alike else 'loss'} (nats per label)")
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.grid(visible=False, axis="x")
        axes.legend()
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
    norm = load_norm(load for _, load in loads.values())
    with picture(file, rows, columns, (max(6.5 / columns, 4.5), 1.3), title, sharex=True) as (figure, panels):
        # Column by column, so that neighbouring layers stand above each other.
        for axes in panels.T.flatten()[len(loads) :]:
            axes.set_visible(False)
        for index, (axes, (layer, (steps, load_SE))) in enumerate(zip(panels.T.flatten(), loads.items(), strict=False)):
            load_axes(axes)
            axes.pcolormesh(_edges(steps), numpy.arange(load_SE.shape[1] + 1), load_SE.T, norm=norm)
            axes.set_ylabel(f"layer {layer}\nexpert")
            ticks = range(0, load_SE.shape[1], max(1, load_SE.shape[1] // 4))
            axes.set_yticks([tick + 0.5 for tick in ticks], [str(tick) for tick in ticks])
            axes.xaxis.set_major_locator(MaxNLocator(integer=True))
            if index % rows == rows - 1 or index == len(loads) - 1:
                axes.set_xlabel("step")
                axes.tick_params(labelbottom=True)
        load_bar(figure, list(panels.flatten()), norm)
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
