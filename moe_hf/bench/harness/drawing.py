"""What all pictures of this package share: one style sheet, looks of arms, scales, legends, files that appear whole."""

import math
import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import matplotlib
import numpy
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.cm import ScalarMappable
from matplotlib.colors import TwoSlopeNorm
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

from moe_hf.base.files import atomic_file

HOUSE_STYLE = Path(__file__).with_name("house.mplstyle")
INK, QUIET = "#222222", "#555555"
PANEL = (4.4, 3.7)
"""Width and height of one panel in inches."""
# Room beside and below the panels, for names and legends.
_MARGIN = (1.0, 0.9)
_INCHES_PER_NAME = 1.8


class Look(NamedTuple):
    """How one arm is drawn, everywhere."""

    color: str
    marker: str
    line: str = "-"


# Okabe and Ito's palette, told apart by colour-blind readers; the marks say the same once more.
_LOOKS = {
    "eager": Look("#56B4E9", "s", "--"),
    "grouped_mm": Look("#0072B2", "D", "--"),
    "batched_mm": Look("#CC79A7", "v", "--"),
    "grouped_mm, one kernel": Look("#332288", "h", "--"),
    "scattermoe": Look("#E69F00", "P", "--"),
    "sorted": Look("#009E73", "o"),
    "auto": Look("#D55E00", "o"),
    "triton": Look("#009E73", "^"),
    "sorted packed": Look("#882255", "X"),
    "dense MLP": Look("#000000", "*", ":"),
    "dense, equal FLOPs": Look("#000000", "*", ":"),
    "dense twin": Look("#000000", "*", ":"),
    "transformers' GPT-2": Look("#777777", "*", ":"),
    "logits alone": Look("#000000", "*", ":"),
    "top_k": Look("#0072B2", "o"),
    "switch": Look("#56B4E9", "s"),
    "sigmoid_bias": Look("#009E73", "^"),
    "hash": Look("#E69F00", "D"),
    "expert_choice": Look("#D55E00", "v"),
    "expert_threshold": Look("#CC79A7", "P"),
    "attention (sdpa)": Look("#000000", "*", ":"),
    "attention (topk_block)": Look("#777777", "X", ":"),
    "RetNet": Look("#0072B2", "o"),
    "Mamba-1": Look("#D55E00", "s"),
    "Mamba-2": Look("#E69F00", "D"),
    "Hyena": Look("#CC79A7", "P"),
    "RWKV-4": Look("#56B4E9", "v"),
    "RWKV-7": Look("#009E73", "^"),
    "dense": Look("#0072B2", "o"),
    "dense, as many CPU seconds as the MoE": Look("#56B4E9", "s", "--"),
    "MoE": Look("#D55E00", "^"),
    "kept": Look("#0072B2", "s", ""),
    "dropped": Look("#D55E00", "s", ""),
    "training": Look("#0072B2", ""),
    "held out": Look("#D55E00", "o"),
}
_COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00", "#000000")
_SPARE = (Look("#117733", "p"), Look("#AA4499", "<"), Look("#999933", ">"))


def look_of(arm: str) -> Look:
    """The look of an arm; one that the table does not know gets a look that depends on its name alone."""
    return _LOOKS.get(arm) or _SPARE[zlib.crc32(arm.encode()) % len(_SPARE)]


def look_number(index: int) -> Look:
    """The look of the arm at that place of a list whose names are not known beforehand."""
    return Look(_COLORS[index % len(_COLORS)], "o^sDvP*"[index % 7], ("-", "--", ":")[index // len(_COLORS) % 3])


@contextmanager
def picture(
    file: Path,
    rows: int = 1,
    columns: int = 1,
    panel: tuple[float, float] = PANEL,
    title: str = "",
    **grid: Any,
) -> Iterator[tuple[Figure, numpy.ndarray]]:
    """A figure in the style of the house and its panels; on leaving without an error it is at `file`, whole.

    Args:
        file: PNG to write, in a folder that is made if it is missing.
        rows, columns: of panels.
        panel: width and height of one, in inches.
        title: stands above all panels.
        **grid: further arguments of `Figure.subplots`.
    """
    size = [margin + inches * count for margin, inches, count in zip(_MARGIN, panel, (columns, rows), strict=True)]
    # Ticks are made only when the figure is drawn, so that saving belongs inside the style as well.
    with matplotlib.rc_context(fname=HOUSE_STYLE):
        figure = Figure(figsize=(size[0], size[1]))
        # The canvas by hand: pyplot would pick a window system and keep every figure alive.
        FigureCanvasAgg(figure)
        if title:
            figure.suptitle(title)
        yield figure, figure.subplots(rows, columns, squeeze=False, **grid)
        file.parent.mkdir(parents=True, exist_ok=True)
        with atomic_file(file) as aside:
            figure.savefig(aside, format="png")


def shown(panels: numpy.ndarray, count: int) -> list[Axes]:
    """The first `count` panels, row by row; the others are hidden."""
    for axes in panels.flatten()[count:]:
        axes.set_visible(False)
    return list(panels.flatten()[:count])


def draw_lines(
    axes: Axes, lines: Mapping[str, Iterable[tuple[float, float]]], title: str, x_label: str, y_label: str
) -> None:
    """One line per arm, on logarithmic axes; a number doubles from tick to tick of x."""
    ticks = set()
    for arm, points in lines.items():
        look = look_of(arm)
        x, y = zip(*sorted(points), strict=True)
        ticks |= set(x)
        axes.plot(x, y, marker=look.marker, color=look.color, linestyle=look.line)
    axes.set_xscale("log", base=2)
    axes.set_xticks(sorted(ticks))
    axes.xaxis.set_major_formatter(FuncFormatter(_short))
    axes.set_yscale("log")
    one_two_five(axes.yaxis)
    axes.set(title=title, xlabel=x_label, ylabel=y_label)


def one_two_five(axis: Axis) -> None:
    """Plain numbers at 1, 2 and 5 times the powers of ten of a logarithmic axis."""
    axis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axis.set_major_formatter("{x:g}")
    axis.set_minor_formatter(NullFormatter())


def _short(number: float, _: int | None = None) -> str:
    return f"{number / 1024:g}k" if number >= 1024 else f"{number:g}"


def legend_below(
    figure: Figure, arms: Iterable[str], labels: Mapping[str, str] | None = None, lines: bool = True
) -> None:
    """The looks of the arms, each once, below all panels; without `lines` the marks alone."""
    names = list(dict.fromkeys(arms))
    marks = []
    for name in names:
        look = look_of(name)
        label = (labels or {}).get(name, name)
        style: Any = look.line if lines else ""
        marks.append(Line2D([], [], marker=look.marker, color=look.color, linestyle=style, label=label))
    longest = max((len(str(mark.get_label())) for mark in marks), default=1)
    columns = max(1, min(len(names), int(figure.get_figwidth() / max(_INCHES_PER_NAME, 0.09 * longest))))
    figure.legend(handles=marks, loc="outside lower center", ncols=columns)


def load_norm(loads: Iterable[numpy.ndarray], most: float = math.inf) -> TwoSlopeNorm:
    """Colours of loads over their fair share: 0 is blue, 1 white, the largest (2 at least, `most` at most) red."""
    largest = max(float(load.max()) for load in loads)
    # Twice the fair share is always red, or else a balanced layer would look as torn as a collapsed one.
    return TwoSlopeNorm(vmin=0.0, vcenter=1.0, vmax=max(2.0, min(most, largest)))


def load_axes(axes: Axes) -> None:
    """Make the panel of a heat map: no grid, no box."""
    axes.grid(visible=False)
    axes.spines[:].set_visible(False)
    axes.tick_params(length=0)


def load_bar(figure: Figure, panels: Sequence[Axes], norm: TwoSlopeNorm) -> None:
    """The bar that explains the colours of `load_norm`."""
    highest = float(norm.vmax or 2.0)
    ticks = [0.0, 0.5, 1.0, *([(1 + highest) / 2] if highest > 2.5 else []), highest]
    bar = figure.colorbar(
        ScalarMappable(norm=norm), ax=list(panels), label="load / fair share", ticks=ticks, format="{x:.1f}"
    )
    bar.outline.set_visible(False)
