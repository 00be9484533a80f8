"""Draws time and memory against the length, one line per kind of mixer."""

from collections.abc import Sequence
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

from moe_hf.bench.harness.drawing import GRID, INK, QUIET, Look, dress, save
from moe_hf.bench.mixers.cases import FORWARD, TRAINING
from moe_hf.bench.mixers.layers import ATTENTION, BLOCKS
from moe_hf.bench.mixers.lengths import WIDTH, Point

# Okabe and Ito's palette, told apart by colour-blind readers; the marks say the same once more.
_LOOKS = {
    ATTENTION: Look("#000000", "*", ":"),
    BLOCKS: Look("#777777", "X", ":"),
    "RetNet": Look("#0072B2", "o"),
    "Mamba-1": Look("#D55E00", "s"),
    "Mamba-2": Look("#E69F00", "D"),
    "Hyena": Look("#CC79A7", "P"),
    "RWKV-4": Look("#56B4E9", "v"),
    "RWKV-7": Look("#009E73", "^"),
}
_MODES = {FORWARD: "forward", TRAINING: "forward + backward"}


def draw_lengths(points: Sequence[Point], folder: Path) -> list[Path]:
    """Two pictures, time and memory, each with a panel per mode, on logarithmic axes; returns their paths."""
    if not points:
        return []
    drawn = []
    for name, label, field, unit in (
        ("time_by_length", "CPU milliseconds per call", "seconds", 1e-3),
        ("memory_by_length", "MiB held at once", "peak_bytes", 2.0**20),
    ):
        modes = [mode for mode in _MODES if any(point.mode == mode for point in points)]
        figure = Figure(figsize=(1.5 + 4.8 * len(modes), 5.2), layout="constrained")
        for axes, mode in zip(figure.subplots(1, len(modes), squeeze=False)[0], modes, strict=True):
            _draw(axes, [point for point in points if point.mode == mode], field, unit)
            dress(axes, _MODES[mode], "tokens")
            axes.grid(color=GRID, linewidth=0.8)
            axes.set_ylabel(label, color=INK)
        handles, labels = figure.axes[0].get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside lower center", ncols=4, frameon=False, labelcolor=QUIET)
        figure.suptitle(f"One layer of width {WIDTH}, one sequence, one thread", color=INK, fontsize=12)
        drawn.append(save(figure, folder / f"{name}.png"))
    return drawn


def _draw(axes: Axes, points: Sequence[Point], field: str, unit: float) -> None:
    for kind, look in _LOOKS.items():
        line = sorted((point.length, getattr(point, field) / unit) for point in points if point.kind == kind)
        if line:
            x, y = zip(*line, strict=True)
            axes.plot(x, y, marker=look.marker, color=look.color, linestyle=look.line, linewidth=1.6, label=kind)
    axes.set_xscale("log", base=2)
    axes.set_yscale("log")
    axes.set_xticks(sorted({point.length for point in points}))
    axes.xaxis.set_major_formatter(FuncFormatter(_short))
    axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.yaxis.set_major_formatter("{x:g}")
    axes.yaxis.set_minor_formatter(NullFormatter())


def _short(tokens: float, _: int | None = None) -> str:
    return f"{tokens / 1024:g}k" if tokens >= 1024 else f"{tokens:g}"
