"""What all pictures of the bench share: colours and marks of the arms, quiet axes, and files that appear whole."""

import zlib
from pathlib import Path
from typing import NamedTuple

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from moe_hf.base.files import whole_file

INK, QUIET, GRID = "#222222", "#555555", "#e4e4e4"


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
}
_SPARE = (Look("#117733", "p"), Look("#AA4499", "<"), Look("#999933", ">"))


def look_of(arm: str) -> Look:
    """The look of an arm; one that the table does not know gets a look that depends on its name alone."""
    return _LOOKS.get(arm) or _SPARE[zlib.crc32(arm.encode()) % len(_SPARE)]


def dress(axes: Axes, title: str, x_label: str) -> None:
    """Title to the left, no box, quiet ticks."""
    axes.set_title(title, loc="left", fontsize=10, color=INK)
    axes.set_xlabel(x_label, color=INK)
    axes.tick_params(colors=QUIET, labelsize=8)
    axes.set_axisbelow(True)
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.spines["bottom"].set_color(QUIET)


def save(figure: Figure, file: Path) -> Path:
    """Write the figure as a PNG, aside first; returns its path."""
    # The canvas by hand: pyplot would pick a window system and keep every figure alive.
    FigureCanvasAgg(figure)
    with whole_file(file) as aside:
        figure.savefig(aside, dpi=120, format="png")
    return file
